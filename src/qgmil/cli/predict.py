"""``qgmil predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from qgmil.cli.extract import Cells, Encoding, Tiling
from qgmil.cli.options import Device, Positive, check_new, flat, given
from qgmil.cli.predict_images import are_images, draw, encode
from qgmil.errors import ConfigError
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
    overlays: bool = True,
    data: Annotated[DataConfig | None, Parameter(name="*", group="Bags")] = None,
    encoding: Annotated[Encoding | None, flat("Slides and cells: encoder")] = None,
    tiling: Annotated[Tiling | None, flat("Slides")] = None,
    cells: Annotated[Cells | None, flat("Cells")] = None,
) -> int:
    """Predict bags with a run: the mean over its models, probabilities calibrated and not.

    Slides and images of cells are tiled, encoded and predicted in one go, as the run's own features were made
    (extract.json of the run); of slides the attention is drawn.

    Parameters
    ----------
    run
        Run folder made by qgmil train.
    bags
        A manifest (labels are not needed), a folder of feature files, or feature files; or slides, a folder of them,
        or a table with a column slide; with --cells images of cells, as for qgmil extract.
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
    overlays
        Of slides: draw the attention on each, into the folder OUTPUT_overlays.

    Returns
    -------
    int
        1 if a slide could not be made into a bag; the others are predicted.
    """
    from qgmil.cli.output import Counter, say
    from qgmil.files import write_csv
    from qgmil.training.members import load_run, open_asked, predict_run

    check_new(output, overwrite=overwrite)
    loaded = load_run(run)
    slides: dict[str, Path] = {}
    whole = True
    if are_images(bags, cells):
        if data is not None and data.model_fields_set:
            raise ConfigError("options of the group Bags say how feature files are read; these are images")
        images = (encoding or Encoding(), tiling or Tiling(), cells or Cells())
        table, slides, whole = encode(run, bags, output, *images, overwrite=overwrite)
        bags = [table]
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
    if slides and overlays:
        draw(loaded, found, slides, output, device, overwrite=overwrite)
    return int(not whole)
