"""What `overlay` and `gallery` share: a bag of a run, or a file, with its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgmil.errors import RunError


def check_new(*paths: Path | None, overwrite: bool) -> None:
    """Nothing of the user's is replaced unless asked.

    Raises:
        RunError: a file that is there already, or a folder.
    """
    for path in paths:
        if path is not None and path.is_dir():
            raise RunError(f"{path} is a folder: give the name of a file")
        if path is not None and path.exists() and not overwrite:
            raise RunError(f"{path} exists already: choose another name, or --overwrite")


def explained(run: Path, bag: str, bags: Path | None, score: str, options: dict[str, Any], reading: Any) -> Any:
    """What a run says of a bag of its own manifest or another one, or of a feature file that is no bag of it.

    Raises:
        QGMILError: a run, bag or file that cannot be used.
    """
    from qgmil.analysis.sources import manifest_of
    from qgmil.bags.dataset import open_bags
    from qgmil.training.explain import explain_bag
    from qgmil.training.members import load_run

    loaded = load_run(run)
    used = loaded.config.model_copy(update=reading)
    table = bags if bags is not None else Path(bag) if Path(bag).is_file() else manifest_of(run)
    skip = tuple(kind for kind in used.skip if kind != "unlabelled")
    found = open_bags(table, **used.opening(), skip=skip, labels=False)
    name = found.bag_ids[0] if bags is None and Path(bag).is_file() and len(found) == 1 else bag
    return explain_bag(loaded, found, name, score=score, **options)


def headline(said: Any) -> str:
    """The bag, what is predicted and what is true, on one line."""
    p = said.probabilities.max()
    truth = "" if said.label is None else f", labelled {said.label}"
    return f"{said.bag.bag_id}: predicted {said.classes[said.predicted]} ({p:.2f}){truth}"
