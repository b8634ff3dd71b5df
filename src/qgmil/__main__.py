"""``python -m qgmil``."""

from qgmil.cli import main

main()
