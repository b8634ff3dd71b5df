"""``qgmil check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from qgmil.training.config import BagsConfig

if TYPE_CHECKING:
    from qgmil.bags.check import CheckReport, Pool
    from qgmil.cli.estimate import TrainingMemory
    from qgmil.images.colours import Colours


def check(
    manifest: Path,
    /,
    *,
    split_column: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    split_file: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    images: Annotated[bool, Parameter(negative=())] = False,
    image_column: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    in_process: Annotated[bool, Parameter(negative=())] = False,
    file_seconds: Annotated[float, Parameter(validator=Number(gt=0))] = 300.0,
    data: Annotated[BagsConfig | None, Parameter(name="*", group="Bags")] = None,
) -> int:
    """Read every bag once; print what is there, every problem, and what deserves a look. Exit code 1 if there is any
    problem; warnings alone give 0.

    Parameters
    ----------
    manifest
        Table of bags, long table of instances, or a packed store, whose checksums are then verified first.
    split_column
        Columns that you will train with (train/val/test or fold numbers): a patient on two sides is a problem. Other
        columns that look like a split are warned of.
    split_file
        Split files that you will train with, or a folder of them.
    images
        Also look at the images that the table names (columns images, slide or image: a folder, tar or slide a bag) and
        warn if their colours alone tell the classes apart.
    image_column
        The column of the table that names them.
    json
        Print one JSON document instead of tables.
    in_process
        Read the files in this process instead of in a child. A file that crashes its library then ends the check.
    file_seconds
        Longest time that one file may take to read before it counts as hanging.
    """
    pool = None if in_process or manifest.is_dir() else _start_pool(file_seconds)
    try:
        return _check(
            manifest,
            (data or BagsConfig()).opening(),
            split_column,
            split_file,
            pool,
            json,
            images or image_column is not None,
            image_column,
        )
    finally:
        if pool is not None:
            pool.close()


def _start_pool(seconds: float) -> Pool:
    """Its child imports torch while this process does: hardly anybody waits for it."""
    from qgmil.bags.check.pool import Pool

    return Pool(seconds=seconds)


def _check(
    manifest: Path,
    opening: dict[str, Any],
    split_column: tuple[str, ...],
    split_file: tuple[Path, ...],
    pool: Pool | None,
    as_json: bool,
    images: bool,
    image_column: str | None,
) -> int:
    from qgmil.bags.check import CheckReport, check_bags
    from qgmil.bags.problems import Problem
    from qgmil.cli.estimate import training_memory
    from qgmil.cli.output import Counter
    from qgmil.errors import QGMILError

    with Counter("bags", 0) as count:

        def progress(done: int, total: int) -> None:
            count.bars.update(count.task, completed=done, total=total)

        opening |= {"split_column": split_column, "split_file": split_file}
        try:
            report = check_bags(manifest, **opening, isolate=pool or False, progress=progress)
        except QGMILError as error:
            if not as_json:
                raise
            report = CheckReport(str(manifest), problems=[Problem("table", None, str(error))])
    memory = training_memory(report)
    if memory is not None and (warning := memory.warning()):
        report.warnings.append(warning)
    colours = _colours(manifest, opening, image_column) if images else None
    if colours is not None:
        report.warnings += colours.warnings()
    if as_json:
        _print_json(report, memory, colours)
    else:
        _print_tables(report, memory, str(manifest), colours)
    return 1 if report.problems else 0


def _colours(manifest: Path, opening: dict[str, Any], column: str | None) -> Colours:
    """The colours of the images that the table names."""
    from qgmil.bags.manifest import scan_manifest
    from qgmil.bags.tabular import TABLE_SUFFIXES
    from qgmil.cli.output import Counter
    from qgmil.errors import ConfigError
    from qgmil.images.colours import check_colours

    if manifest.suffix.lower() not in TABLE_SUFFIXES:
        raise ConfigError(f"{manifest}: --images needs a table of bags with a column that names their images")
    named = {name: opening[name] for name in ("features", "label", "bag_id", "patient_id") if name in opening}
    table, _ = scan_manifest(manifest, **named, require_labels=False)
    with Counter("images of bags", len(table)) as count:
        return check_colours(table.records, manifest.parent, column, lambda done, _: count(done))


def _print_json(report: CheckReport, memory: TrainingMemory | None, colours: Colours | None) -> None:
    import json

    from qgmil import __version__

    estimate = None if memory is None else memory.as_dict()
    document = {"qgmil": __version__, **report.as_dict(), "training_memory": estimate}
    if colours is not None:
        document["colours"] = colours.as_dict()
    print(json.dumps(document, indent=2, allow_nan=False))


def _print_tables(
    report: CheckReport, memory: TrainingMemory | None, title: str, colours: Colours | None = None
) -> None:
    from qgmil.cli.output import console
    from qgmil.report.check_tables import check_table, colour_table, problem_table

    console.print(check_table(report, title, "" if memory is None else str(memory)))
    if colours is not None:
        console.print(colour_table(colours))
    for name, problems in (("warning", report.warnings), ("problem", report.problems)):
        if problems:
            console.print(problem_table(problems, f"{len(problems):,} {name}{'s' * (len(problems) > 1)}"))
    if not report.problems:
        console.print("no problems: ready for [bold]qgmil train[/bold]")
