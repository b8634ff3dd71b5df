"""``qgmil predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from qgmil.cli.options import Device, Positive, check_new, given
from qgmil.training.config import DataConfig


def predict(
    run: Path,
    bags: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    new_cohort: Annotated[bool, Parameter(negative=())] = False,
    device: Device = None,
    batch_size: Positive = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    data: Annotated[DataConfig | None, Parameter(name="*", group="Bags")] = None,
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
    new_cohort
        Bags and patients named as in training are others: mark none as seen.
    device
        Where to run. Default: as the run was configured.
    batch_size
        Bags at a time. Default: as in training.
    overwrite
        Replace the output file if it exists.
    """
    from qgmil.cli.output import Counter, say
    from qgmil.files import write_csv
    from qgmil.training.members import load_run, open_asked, predict_run

    check_new(output, overwrite=overwrite)
    loaded = load_run(run)
    found = open_asked(loaded, bags[0] if len(bags) == 1 else bags, **given(data))
    settings = {k: v for k, v in (("device", device), ("batch_size", batch_size)) if v is not None}
    with Counter("bags", len(found) * len(loaded.members)) as count:
        rows = predict_run(loaded, found, new_cohort=new_cohort, on_bags=count, **settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_csv(output, rows)
    if loaded.note:
        say(loaded.note)
    for bag_id, reason in found.skipped:
        say(f"skipped {bag_id}: {reason}")
    seen = sum(row["seen"] == "yes" for row in rows)
    note = f"; {seen} of them, by name, shaped the run (column seen)" if seen else ""
    say(f"{len(rows)} bags predicted by {len(loaded.members)} models{note}: {output}")
