"""``qgmil predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def predict(
    run: Path,
    bags: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    features: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None,
    batch_size: int | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Predict bags with a run: the mean over its models, probabilities calibrated and not.

    Parameters
    ----------
    run
        Run folder made by qgmil train.
    bags
        A manifest (labels are not needed), a folder of feature files, or feature files.
    output
        CSV file to write.
    features
        Manifest column with the feature files, if it has another name than in training.
    device
        Where to run. Default: as the run was configured.
    batch_size
        Bags at a time. Default: as in training.
    overwrite
        Replace the output file if it exists.
    """
    from qgmil.bags.dataset import open_bags
    from qgmil.cli.output import Counter, messages
    from qgmil.errors import RunError
    from qgmil.files import write_csv
    from qgmil.training.members import load_run, predict_run

    if output.is_dir():
        raise RunError(f"{output} is a folder: give the name of a CSV file")
    if output.exists() and not overwrite:
        raise RunError(f"{output} exists already: choose another name, or --overwrite")
    loaded = load_run(run)
    given = {} if features is None else {"features": features}
    found = open_bags(bags[0] if len(bags) == 1 else bags, **{**loaded.config.opening(), **given}, labels=False)
    settings = {k: v for k, v in (("device", device), ("batch_size", batch_size)) if v is not None}
    with Counter("bags", len(found) * len(loaded.members)) as count:
        rows = predict_run(loaded, found, on_bags=count, **settings)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_csv(output, rows)
    except OSError as error:
        raise RunError(f"{output}: cannot write the predictions ({error.strerror or error})") from None
    seen = sum(row["seen"] == "yes" for row in rows)
    note = f"; {seen} of them shaped the run (column seen)" if seen else ""
    messages.print(f"{len(rows)} bags predicted by {len(loaded.members)} models{note}: {output}", soft_wrap=True)
