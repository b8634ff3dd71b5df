"""The command line in this process, as a user types it."""

from __future__ import annotations

import pytest

from qgmil.cli import main


def run(*arguments: object) -> int:
    """Type a command; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)
