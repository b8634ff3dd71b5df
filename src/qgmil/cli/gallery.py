"""``qgmil gallery``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from qgmil.cli.options import Asking, Placing, Positive, check_new, flat, given
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
    top: Positive = 24,
    bottom: int = 8,
    positive: Annotated[tuple[int, ...], Parameter(negative=(), consume_multiple=True)] = (),
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    asking: Annotated[Asking | None, flat("Models")] = None,
    placing: Annotated[Placing | None, flat("Tiles")] = None,
    data: Annotated[BagsConfig | None, flat("Bags")] = None,
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
    top
        How many of the most attended.
    bottom
        How many of the least attended.
    positive
        Instance labels that get a frame. Default: all above 0.
    overwrite
        Replace files that are there.
    """
    from qgmil.attention.gallery import gallery_figure, gallery_items
    from qgmil.attention.overlay import place_tiles
    from qgmil.cli.output import say
    from qgmil.cli.pictures import explained
    from qgmil.evaluation.style import save_figure
    from qgmil.files import write_csv
    from qgmil.images.instances import is_slide, open_images
    from qgmil.images.slides import open_slide

    check_new(output, table, overwrite=overwrite)
    said = explained(run, bag, bags, asking, given(data))
    placed = said.bag
    if placed.coords is not None and is_slide(images):
        placed = place_tiles(placed, **{"mpp": open_slide(images).mpp, **given(placing)})
    items = gallery_items(placed, said.scores, open_images(images, placed), top=top or 24, bottom=bottom)
    broken = [item for item in items if item.problem is not None]
    figure = gallery_figure(items, said.scores, title=said.headline, positives=tuple(positive) or None)
    save_figure(figure, output)
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        write_csv(table, [item.table_row() for item in items])
    for item in broken[:5]:
        say(f"no picture of {item.instance_id or f'instance {item.row}'}: {item.problem}")
    if len(broken) > 5:
        say(f"and {len(broken) - 5} more without a picture")
    missing = f", {len(broken)} without a picture" if broken else ""
    say(f"{said.headline}; {len(items)} of {len(placed)} instances{missing}: {output}")
