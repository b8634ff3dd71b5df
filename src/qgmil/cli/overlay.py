"""``qgmil overlay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from qgmil.cli.options import Asking, Placing, check_new, flat, given
from qgmil.errors import ConfigError
from qgmil.training.config import BagsConfig

app = App(
    help_epilogue="""Examples:

    qgmil overlay runs/first slide_17 -o slide_17.png --slide slides/slide_17.svs
    qgmil overlay runs/first slide_17 -o map.png --score rollout --colours magma --range 0-max
    qgmil overlay runs/first new.h5 -o map.png --geojson map.geojson

The bag is looked into only by the models that never saw it or its patient.""",
    help_format="plaintext",
)


@app.default
def overlay(
    run: Path,
    bag: str,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    bags: Path | None = None,
    slide: Path | None = None,
    geojson: Path | None = None,
    percentile: float = 90.0,
    colours: str = "viridis",
    value_range: Annotated[str, Parameter(name="--range", allow_leading_hyphen=True)] = "percentile",
    opacity: float | None = None,
    smooth: Annotated[bool, Parameter(negative=())] = False,
    size: int = 2000,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    asking: Annotated[Asking | None, flat("Models")] = None,
    placing: Annotated[Placing | None, flat("Tiles")] = None,
    data: Annotated[BagsConfig | None, flat("Bags")] = None,
) -> None:
    """Draw the attention of a bag on its slide, or export it to QuPath.

    Parameters
    ----------
    run
        Run folder made by qgmil train.
    bag
        Name of a bag of the run's table (or of --bags), or a feature file.
    output
        Picture to write: .png, .pdf or .svg.
    bags
        Another table of bags.
    slide
        Slide or image to draw on, through OpenSlide or Pillow. Without: the outlines of the tiles.
    geojson
        Also (or only) write tiles and high regions for QuPath.
    percentile
        Tiles from this percentile on are joined to regions in the GeoJSON.
    colours
        Colour map of matplotlib.
    value_range
        Ends of the colours: percentile (1st to 99th), absolute (0 to 1), 0-max, or LOW,HIGH.
    opacity
        Of the map, 0 to 1. Default: 0.5 on a slide, 1 without.
    smooth
        Interpolate between tiles. What is seen is then no longer what was computed.
    size
        Longer edge of the picture in pixels.
    overwrite
        Replace files that are there.
    """
    from qgmil.attention.geojson import write_geojson
    from qgmil.attention.overlay import make_overlay, place_tiles
    from qgmil.attention.overlay_picture import save_overlay
    from qgmil.cli.output import say
    from qgmil.cli.pictures import explained
    from qgmil.images.slides import open_slide

    if output is None and geojson is None:
        raise ConfigError("name what to write: -o PICTURE.png, --geojson FILE.geojson, or both")
    limits = _range(value_range)
    check_new(output, geojson, overwrite=overwrite)
    drawn_on = open_slide(slide) if slide is not None else None
    said = explained(run, bag, bags, asking, given(data))
    placed = place_tiles(said.bag, **{"mpp": None if drawn_on is None else drawn_on.mpp, **given(placing)})
    made = make_overlay(placed, said.scores, drawn_on, size=size, colours=colours, value_range=limits, smooth=smooth)
    if output is not None:
        shown = opacity if opacity is not None else 1.0 if drawn_on is None else 0.5
        save_overlay(made, output, opacity=shown, title=said.headline)
        say(f"{said.headline}; {said.scores.name} of {len(said.members)} models: {output}")
    if geojson is not None:
        count = write_geojson(made, geojson, bag_id=said.bag.bag_id, percentile=percentile)
        say(f"{count - len(placed)} regions and {len(placed)} tiles for QuPath: {geojson}")


def _range(text: str) -> str | tuple[float, float]:
    if "," not in text:
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--range {text}: give two numbers, as --range 0,0.01") from None
    return low, high
