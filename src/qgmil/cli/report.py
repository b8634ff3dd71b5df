"""``qgmil report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from qgmil.cli.options import Device, Placing, check_new, flat, given
from qgmil.errors import BagError, QGMILError
from qgmil.training.config import BagsConfig

app = App(
    help_epilogue="""Examples:

    qgmil report runs/first
    qgmil report runs/first --slides slides/ --coord-unit px -o first.html
    qgmil report runs/first --images cells/ --show patient_3 patient_9 --compare runs/abmil

The page needs no network and no other file. What needs the bags is left out, and the page says why, where the run's
table of bags is not there any more.""",
    help_format="plaintext",
)


@app.default
def report(
    run: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    bags: Path | None = None,
    slides: Path | None = None,
    images: Path | None = None,
    show: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)] = (),
    compare: Annotated[tuple[Path, ...], Parameter(negative=(), consume_multiple=True)] = (),
    faithful: int = 50,
    device: Device = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    placing: Annotated[Placing | None, flat("Tiles")] = None,
    data: Annotated[BagsConfig | None, flat("Bags")] = None,
) -> None:
    """Write one self-contained page of a run: metrics, calibration, attention, maps to zoom into.

    Parameters
    ----------
    run
        Run folder made by qgmil train.
    output
        HTML file to write. Default: report.html in the run folder, which is replaced.
    bags
        Table of bags. Default: that of the run.
    slides
        Folder of slides or images named by bag, to draw on.
    images
        Folder with a folder or tar of pictures a bag (or one for all), named by instance_ids.
    show
        Bags to show. Default: the surest wrong ones and the surest right one of each class.
    compare
        Other runs, or one model's cells of a benchmark (BENCHMARK/cells/DATASET/MODEL), whose attention-mass curves
        stand beside this one's.
    faithful
        Bags on which faithfulness is measured; 0: none.
    device
        Where to run. Default: as the run was configured.
    overwrite
        Replace the file named by --output if it exists.
    """
    from qgmil.cli.output import say
    from qgmil.report.data import load_result
    from qgmil.report.page import write_report

    check_new(output, overwrite=overwrite)
    result = load_result(run)
    pictures = {"images": images, "slides": slides, "placing": given(placing), "faithful": faithful}
    looks = _looks(run, result, bags, show, device, pictures, given(data))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    page = write_report(run, output, looks=looks, compare=compare)
    for reason in looks.left_out:
        say(f"left out: {reason}")
    say(f"{len(looks.bags)} bags shown; {page.stat().st_size / 1e6:.1f} MB: {page}")


def _looks(
    run: Path,
    result: Any,
    bags: Path | None,
    show: tuple[str, ...],
    device: Any,
    pictures: dict[str, Any],
    reading: dict[str, Any],
) -> Any:
    from qgmil.analysis.sources import manifest_of, run_source
    from qgmil.cli.output import Counter
    from qgmil.report.bags import Looks, chosen_bags, look

    if result.metrics["attention"] is None:
        return Looks(left_out=[f"{result.config.model} pools without attention: there is no map to show"])
    try:
        table = bags if bags is not None else manifest_of(run)
        source = run_source(run, table, run.resolve().name, device=device, reading=reading)
    except QGMILError as error:
        if bags is not None or show:
            raise
        return Looks(left_out=[f"Maps, galleries and faithfulness: {error}"])
    chosen = dict.fromkeys(show, "Chosen") or {b: why for b, why in chosen_bags(result).items() if b in source.bag_ids}
    missing = [b for b in chosen if b not in source.bag_ids]
    if missing:
        raise BagError(f"there is no bag {missing[0]!r} that a model of the run has not seen; see its predictions.csv")
    with Counter("bags", len(chosen) + min(pictures["faithful"], len(source.bag_ids))) as count:
        return look(source, chosen, on_bag=count, **pictures)
