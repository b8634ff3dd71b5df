"""What `overlay` and `gallery` share: a bag of a run, or a file, with its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgmil.cli.options import Asking


def explained(run: Path, bag: str, bags: Path | None, asking: Asking | None, reading: dict[str, Any]) -> Any:
    """What a run says of a bag of its own manifest or another one, or of a feature file that is no bag of it.

    Raises:
        QGMILError: a run, bag or file that cannot be used.
    """
    from qgmil.analysis.sources import manifest_of
    from qgmil.training.explain import explain_bag
    from qgmil.training.members import load_run, open_asked

    loaded = load_run(run)
    alone = bags is None and Path(bag).is_file()
    found = open_asked(loaded, Path(bag) if alone else bags or manifest_of(run), **reading)
    name = found.bag_ids[0] if alone and len(found) == 1 else bag
    return explain_bag(loaded, found, name, **(asking or Asking()).model_dump())
