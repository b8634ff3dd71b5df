"""``qgmil gallery``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from qgmil.cli.options import Device, Positive, given
from qgmil.training.config import BagsConfig

app = App(
    help_epilogue="""Examples:

    qgmil gallery runs/first patient_3 --images cells/patient_3 -o patient_3.png
    qgmil gallery runs/first patient_3 --images cells/patient_3.tar -o patient_3.png --top 40 --table patient_3.csv
    qgmil gallery runs/first slide_17 --images slides/slide_17.svs -o slide_17.png

The bag is looked into only by the models that never saw it or its patient.""",
    help_format="plaintext",
)


@app.default
def gallery(
    run: Path,
    bag: str,
    /,
    *,
    images: Path,
    output: Annotated[Path, Parameter(alias="-o")],
    bags: Path | None = None,
    table: Path | None = None,
    score: str = "attention",
    top: Positive = 24,
    bottom: int = 8,
    positive: Annotated[tuple[int, ...], Parameter(negative=(), consume_multiple=True)] = (),
    tile_size: float | None = None,
    coord_unit: Literal["px", "um", "grid"] | None = None,
    mpp: float | None = None,
    include_seen: Annotated[bool, Parameter(negative=())] = False,
    new_cohort: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    device: Device = None,
    data: Annotated[BagsConfig | None, Parameter(name="*", group="Bags")] = None,
) -> None:
    """Show the cells or tiles of a bag in order of attention, with the mass that each holds.

    Parameters
    ----------
    run
        Run folder made by qgmil train.
    bag
        Name of a bag of the run's table (or of --bags), or a feature file.
    images
        Where the pictures are: a folder or tar with files named by instance_ids, or the slide.
    output
        Picture to write: .png, .pdf or .svg.
    bags
        Another table of bags.
    table
        Also write the instances that are shown as CSV.
    score
        attention, rollout, gradient, or class:NAME.
    top
        How many of the most attended.
    bottom
        How many of the least attended.
    positive
        Instance labels that get a frame. Default: all above 0.
    tile_size
        Edge of a tile in the unit of the coordinates, where the file does not know it. Of a grid: level-0 pixels from
        one column to the next.
    coord_unit
        Unit of the coordinates, where the file does not know it.
    mpp
        Microns per level-0 pixel, for coordinates in microns where neither file nor slide knows it.
    include_seen
        Also ask models that were trained on the bag.
    new_cohort
        Bags and patients named as in training are others.
    overwrite
        Replace files that are there.
    device
        Where to run. Default: as the run was configured.
    """
    from qgmil.attention.gallery import gallery_figure, gallery_items
    from qgmil.attention.images import is_slide, open_images
    from qgmil.attention.overlay import place_tiles
    from qgmil.attention.slides import open_slide
    from qgmil.cli.output import say
    from qgmil.cli.pictures import check_new, explained, headline
    from qgmil.evaluation.style import save_figure
    from qgmil.files import write_csv

    check_new(output, table, overwrite=overwrite)
    options = {"include_seen": include_seen, "new_cohort": new_cohort, "device": device}
    said = explained(run, bag, bags, score, options, given(data))
    placed = said.bag
    if placed.coords is not None and is_slide(images):
        known = mpp if mpp is not None else open_slide(images).mpp
        placed = place_tiles(placed, tile_size=tile_size, coord_unit=coord_unit, mpp=known)
    items = gallery_items(placed, said.scores, open_images(images, placed), top=top or 24, bottom=bottom)
    broken = [item for item in items if item.problem is not None]
    figure = gallery_figure(items, said.scores, title=headline(said), positives=tuple(positive) or None)
    save_figure(figure, output)
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        write_csv(table, [item.table_row() for item in items])
    for item in broken[:5]:
        say(f"no picture of {item.instance_id or f'instance {item.row}'}: {item.problem}")
    if len(broken) > 5:
        say(f"and {len(broken) - 5} more without a picture")
    missing = f", {len(broken)} without a picture" if broken else ""
    say(f"{headline(said)}; {len(items)} of {len(placed)} instances{missing}: {output}")
