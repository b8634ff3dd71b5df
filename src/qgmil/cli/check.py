"""``qgmil check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from qgmil.training.config import BagsConfig


def check(
    manifest: Path,
    /,
    *,
    data: Annotated[BagsConfig | None, Parameter(name="*", group="Bags")] = None,
) -> int:
    """Read every bag once; print what is there and every problem. Exit code 1 if there is any.

    Parameters
    ----------
    manifest
        Table of bags, or long table of instances.
    """
    from qgmil.bags.check import check_bags
    from qgmil.cli.output import Counter, console
    from qgmil.report.tables import check_table, problem_table

    with Counter("bags", 0) as count:

        def progress(done: int, total: int) -> None:
            count.bars.update(count.task, completed=done, total=total)

        report = check_bags(manifest, **(data or BagsConfig()).opening(), progress=progress)
    console.print(check_table(report, str(manifest)))
    for title, problems in (("warnings", report.warnings), ("problems", report.problems)):
        if problems:
            console.print(problem_table(problems, f"{len(problems)} {title}"))
    if not report.problems:
        console.print("no problems: ready for [bold]qgmil train[/bold]")
    return 1 if report.problems else 0
