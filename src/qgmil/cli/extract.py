"""``qgmil extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from pydantic import BaseModel, ConfigDict, Field

from qgmil.cli.options import Positive, flat
from qgmil.errors import ConfigError

app = App(
    name="extract",
    help="Make bags of features from slides or images of cells; resumable.",
    help_epilogue=(
        "Examples:\n\n"
        "    qgmil extract slides/ -o features --mpp 0.5 --tile 224\n"
        "    qgmil extract slides.csv -o features --magnification 20 --encoder uni --workers 8\n"
        "    qgmil extract cells/ -o features --cells --centre 288\n\n"
        "The folder gets features_ENCODER/BAG.h5 in the layout of TRIDENT, bags.csv, and for slides previews/ of the\n"
        "tissue and tiles that were found. Stopped, the same command goes on; what failed is in failed.csv, and is\n"
        "tried again."
    ),
)


class Encoding(BaseModel):
    """Which encoder, and where it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    encoder: str = Field(
        "efficientnet_lite0", description="qgmil encoders lists them; or timm:MODEL, hf:REPOSITORY, FILE.onnx."
    )
    weights: Path | None = Field(None, description="A checkpoint of your own, instead of the published weights.")
    input_size: Positive = Field(None, description="Edge of the square that the encoder sees. Default: its own.")
    resize: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bilinear", description="How pictures of another size become that square."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to run.")
    precision: Literal["auto", "32", "bf16", "16"] = Field("auto", description="auto: bf16 on GPUs, 32 bits on CPUs.")
    batch_size: Positive = Field(None, description="Pictures at a time. Default: 16 on CPUs, 128 on GPUs.")
    workers: Positive = Field(None, description="Threads that read pictures. Default: one a core, 8 at most.")


class Tiling(BaseModel):
    """How slides are cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tile: Positive = Field(None, description="Edge of a tile in pixels at --mpp. Default: what the encoder sees.")
    mpp: float | None = Field(None, description="Microns per pixel of the tiles. Default: 0.5, which is 20x.")
    magnification: float | None = Field(None, description="Instead of --mpp: 10 / microns per pixel.")
    overlap: Annotated[int, Parameter(validator=Number(gte=0))] = Field(
        0, description="Pixels that neighbouring tiles share."
    )
    slide_mpp: float | None = Field(None, description="Microns per level-0 pixel, where slides do not say it.")
    min_tissue: float = Field(0.25, description="Least share of tissue in a tile.")
    tissue: Literal["auto", "all"] = Field("auto", description="all: take every tile, for images without glass.")
    pens: Literal["drop", "keep"] = Field("drop", description="keep: saturated green, blue and red are stain, not pen.")
    min_area: float = Field(0.02, description="Smallest piece of tissue in mm².")
    max_hole: float = Field(0.02, description="Holes up to this size in mm² count as tissue.")
    coords: Path | None = Field(
        None, description="Folder of coordinates of TRIDENT, CLAM or CSV (x, y), instead of looking for tissue."
    )
    previews: bool = Field(True, description="Draw the tissue and the tiles of each slide.")


class Cells(BaseModel):
    """How images of cells become squares."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cells: Annotated[bool, Parameter(negative=())] = Field(
        False, description="The sources are images of cells: <class>/<patient>/<cell>, <patient>/<cell>, tars, tables."
    )
    centre: Positive = Field(None, description="Take the middle square of this many pixels.")
    fit: Literal["pad", "crop", "stretch"] = Field(
        "pad", description="Images that are no squares: pad with white, crop to the middle, or stretch."
    )


@app.default
def extract(
    sources: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    encoding: Annotated[Encoding | None, flat("Encoder")] = None,
    tiling: Annotated[Tiling | None, flat("Slides")] = None,
    cells: Annotated[Cells | None, flat("Cells")] = None,
    quiet: Annotated[bool, Parameter(alias="-q", negative=())] = False,
) -> int:
    """Make bags of features from slides or images of cells; resumable.

    Parameters
    ----------
    sources
        Slides, folders of slides, or a table with a column slide (and bag_id, label, patient_id, mpp). With --cells:
        folders, tars, or a table with columns image and bag_id.
    output
        Folder of the features.
    quiet
        No progress and no summary, only errors.

    Returns
    -------
    int
        1 if a bag failed.
    """
    from qgmil.encoders.load import load_encoder
    from qgmil.encoders.work import find_cells, find_slides

    encoding, tiling, cells = encoding or Encoding(), tiling or Tiling(), cells or Cells()
    check_kind(tiling, cells)
    works = find_cells(sources) if cells.cells else find_slides(sources)
    asked = encoding.model_dump(include={"weights", "input_size", "resize", "device", "precision"})
    encoder = load_encoder(encoding.encoder, **asked)
    made = plan(encoder, encoding.encoder, tiling, cells)
    return int(bool(run(works, encoder, made, output, encoding, tiling, quiet=quiet).failed))


def check_kind(tiling: Tiling, cells: Cells) -> None:
    """Refuse options of the other kind, which would do nothing.

    Raises:
        ConfigError: one was given; or mpp and magnification both.
    """
    if cells.cells and tiling.model_fields_set:
        raise ConfigError(f"--{_typed(tiling)} is about slides; with --cells there are --centre and --fit")
    if not cells.cells and cells.model_fields_set - {"cells"}:
        raise ConfigError(f"--{_typed(cells)} is about images of cells: add --cells")
    if tiling.mpp is not None and tiling.magnification is not None:
        raise ConfigError("give --mpp or --magnification, not both: 20x is 0.5 microns per pixel")


def _typed(section: BaseModel) -> str:
    return sorted(section.model_fields_set)[0].replace("_", "-")


def plan(encoder: Any, asked: str, tiling: Tiling, cells: Cells) -> Any:
    """The settings of the extraction."""
    from qgmil.encoders.pictures import Shaping
    from qgmil.encoders.settings import TissueSearch, settings
    from qgmil.images.tiling import MICRONS, Grid

    if cells.cells:
        return settings(encoder, asked, shaping=Shaping(cells.fit, cells.centre))
    if tiling.magnification is not None and tiling.magnification <= 0:
        raise ConfigError(f"--magnification {tiling.magnification}: is above 0, for instance 20")
    mpp = tiling.mpp if tiling.magnification is None else MICRONS / tiling.magnification
    grid = Grid(tiling.tile or encoder.info.input_size, 0.5 if mpp is None else mpp, tiling.overlap, tiling.min_tissue)
    search = TissueSearch(tiling.pens, tiling.min_area, tiling.max_hole, tiling.tissue == "all")
    return settings(encoder, asked, grid=grid, tissue=search if tiling.coords is None else None)


def run(
    works: list[Any],
    encoder: Any,
    made: Any,
    output: Path,
    encoding: Encoding,
    tiling: Tiling,
    *,
    quiet: bool,
    remake: bool = False,
) -> Any:
    """Extract with progress, and say what became of it: the report."""
    from qgmil.bags.check.pool import processors
    from qgmil.cli.output import BagProgress, how_to_go_on, say
    from qgmil.encoders.extract import extract_bags
    from qgmil.encoders.ledger import FAILED, UNREADABLE

    with BagProgress(len(works), quiet) as progress, how_to_go_on("bags"):
        report = extract_bags(
            works,
            encoder,
            made,
            output,
            workers=encoding.workers or min(8, processors()),
            batch_size=encoding.batch_size or (128 if encoder.device.startswith("cuda") else 16),
            slide_mpp=tiling.slide_mpp,
            coords=tiling.coords,
            previews=tiling.previews,
            remake=remake,
            on_bag=lambda number, work, said: progress(number, f"{work.bag_id}: {said}"),
        )
    if not quiet:
        rate = f", {report.instances / report.seconds:.0f} a second" if report.seconds else ""
        say(
            f"{report.made} bags made of {report.instances:,} images{rate}; {report.kept} were there"
            + (f"; table: {report.manifest}" if report.manifest.is_file() else "")
        )
    if report.unreadable:
        say(f"{len(report.unreadable)} images could not be read and are left out: {output / UNREADABLE}")
    if report.failed:
        say(f"{len(report.failed)} of {len(works)} bags failed: {output / FAILED}")
        for name, reason in report.failed[:3]:
            say(f"  {name}: {reason}")
    return report
