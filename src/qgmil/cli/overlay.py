"""``qgmil overlay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from qgmil.cli.options import Device, given
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
    score: str = "attention",
    colours: str = "viridis",
    value_range: Annotated[str, Parameter(name="--range", allow_leading_hyphen=True)] = "percentile",
    opacity: float | None = None,
    smooth: Annotated[bool, Parameter(negative=())] = False,
    size: int = 2000,
    tile_size: float | None = None,
    coord_unit: Literal["px", "um", "grid"] | None = None,
    mpp: float | None = None,
    include_seen: Annotated[bool, Parameter(negative=())] = False,
    new_cohort: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    device: Device = None,
    data: Annotated[BagsConfig | None, Parameter(name="*", group="Bags")] = None,
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
    score
        attention, rollout, gradient, or class:NAME.
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
    tile_size
        Edge of a tile in the unit of the coordinates, where the file does not know it. Of a grid: level-0 pixels from
        one column to the next.
    coord_unit
        Unit of the coordinates, where the file does not know it.
    mpp
        Microns per level-0 pixel, where neither file nor slide knows it.
    include_seen
        Also ask models that were trained on the bag.
    new_cohort
        Bags and patients named as in training are others.
    overwrite
        Replace files that are there.
    device
        Where to run. Default: as the run was configured.
    """
    from qgmil.attention.geojson import write_geojson
    from qgmil.attention.overlay import make_overlay, place_tiles
    from qgmil.attention.overlay_picture import save_overlay
    from qgmil.attention.slides import open_slide
    from qgmil.cli.output import say
    from qgmil.cli.pictures import check_new, explained, headline

    if output is None and geojson is None:
        raise ConfigError("name what to write: -o PICTURE.png, --geojson FILE.geojson, or both")
    limits = _range(value_range)
    check_new(output, geojson, overwrite=overwrite)
    options = {"include_seen": include_seen, "new_cohort": new_cohort, "device": device}
    drawn_on = open_slide(slide) if slide is not None else None
    said = explained(run, bag, bags, score, options, given(data))
    known = mpp if mpp is not None or drawn_on is None else drawn_on.mpp
    placed = place_tiles(said.bag, tile_size=tile_size, coord_unit=coord_unit, mpp=known)
    made = make_overlay(placed, said.scores, drawn_on, size=size, colours=colours, value_range=limits, smooth=smooth)
    if output is not None:
        shown = opacity if opacity is not None else 1.0 if drawn_on is None else 0.5
        save_overlay(made, output, opacity=shown, title=headline(said))
        say(f"{headline(said)}; {said.scores.name} of {len(said.members)} models: {output}")
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
