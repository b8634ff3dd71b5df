"""``qgmil verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from qgmil.benchmark.verify import Check

app = App(
    help_epilogue="""Bags of Gaussian instances, some of which are witnesses: what can be learnt of them, and what not,
is known from theory. Examples:

    qgmil verify --quick
    qgmil verify --models qgmil,abmil_gated --prevalence 0.05 0.2 --classes 2 3
    qgmil verify --models qgmil --sizes 50 200
    qgmil verify --models mine --load my_aggregator""",
    help_format="plaintext",
    default_parameter=Parameter(consume_multiple=True),
)


@app.default
def verify(
    *,
    models: tuple[str, ...] = ("all",),
    quick: Annotated[bool, Parameter(negative=())] = False,
    prevalence: tuple[float, ...] = (),
    classes: tuple[int, ...] = (),
    separation: float | None = None,
    sizes: tuple[float, ...] = (),  # as int, 10.5 would be 10 without a word
    seed: int = 0,
    load: tuple[str, ...] = (),
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
) -> int:
    """Check that aggregators learn what can be learnt, find the witnesses, and learn nothing from shuffled labels.

    The exit code is 1 if a figure is out of bounds.

    Parameters
    ----------
    models
        Aggregators, separated by commas or blanks; all of them by default.
    quick
        One small task and the shuffled one.
    prevalence
        Shares of witnesses in the bags that have any.
    classes
        Numbers of classes.
    separation
        Of the means of the witnesses from all else, in standard deviations of an instance.
    sizes
        Fewest and most instances of a bag. Default: 10 30.
    seed
        Of the bags and of the trainings.
    load
        Python modules to import first, which register aggregators of your own.
    output
        Write the figures as CSV.
    """
    from qgmil.benchmark.verify import tasks, verify
    from qgmil.cli.output import console, say
    from qgmil.files import write_csv

    for module in load:
        _import(module)
    names = [name.strip() for text in models for name in text.split(",") if name.strip()]
    on = tasks(quick=quick, prevalence=prevalence, classes=classes, separation=separation, sizes=sizes, seed=seed)
    if output is not None:
        _prepare(output)
    checks: list[Check] = []
    for task in on:
        mine = verify(None if names == ["all"] else names, [task], quick=quick, seed=seed, on_check=_say)
        console.print(_table(mine))
        checks += mine
    wrong = [check for check in checks if check.faults]
    for check in checks:
        if check.faults or check.note:
            say(f"{check.model}, {describe(check.task)}: {'; '.join((*check.faults, check.note)).strip('; ')}")
    say(_EXPLAINED)
    if output is not None:
        write_csv(output, [check.row() for check in checks])
        say(f"figures: {output}")
    say(f"{len(checks) - len(wrong)} of {len(checks)} checks passed" if wrong else f"all {len(checks)} checks passed")
    return 1 if wrong else 0


_EXPLAINED = (
    "Bounds, known before training: macro F1 from the nearest mean of the bags to Bayes (controls and shuffled labels: "
    "chance); AP of attention as a detector of witnesses from a random order to the likelihood ratio; top 10 %: mass "
    "of the most attended tenth of instances, beside what it is if the witnesses share all attention evenly. Each "
    "interval holds 99.9 % of sound models."
)


def _import(module: str) -> None:
    import importlib
    import sys

    from qgmil.errors import ConfigError

    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        where = "it is looked for in this folder and where Python looks"
        raise ConfigError(f"--load {module}: cannot be imported ({error}); {where}") from None
    except (Exception, SystemExit) as error:  # the module runs, and anything may happen
        text = " ".join(str(error).split())
        what = f"{type(error).__name__}{': ' if text else ''}{text}"
        raise ConfigError(f"--load {module}: cannot be imported ({what})") from error
    finally:
        sys.path[:] = before


def _prepare(output: Path) -> None:
    """Make sure that the figures can be written, before the time is spent that they take."""
    import tempfile

    from qgmil.errors import ConfigError

    if output.suffix.lower() != ".csv":
        raise ConfigError(f"{output}: the figures are a CSV; end its name with .csv")
    if output.is_dir():
        raise ConfigError(f"{output} is a folder; name a file for the figures, as {output / 'verify.csv'}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{output}: the figures cannot be written there: {error.strerror or error}") from None


def describe(task: Any) -> str:
    """A task in a few words."""
    what = f"{task.classes} classes, {task.prevalence:.0%} witnesses, {task.separation:g} sd apart"
    if task.sizes != type(task).sizes:
        what += f", bags of {task.sizes[0]} to {task.sizes[1]}"
    return f"{what}, labels shuffled" if task.shuffled else what


def _say(check: Check) -> None:
    """One line a check as it comes, where the table is not there yet."""
    from qgmil.cli.output import messages

    if messages.is_terminal:
        verdict = "ok" if not check.faults else "OUT OF BOUNDS"
        messages.print(f"{describe(check.task)}: {check.model}: {verdict} ({check.seconds:.1f} s)", markup=False)


def _table(checks: Sequence[Check]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=describe(checks[0].task), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("model", no_wrap=True)
    for name in ("macro F1", "bounds", "AP", "bounds", "top\n10 %", "even"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for check in checks:
        verdict = Text("ok") if not check.faults else Text("OUT", style="bold red")
        figures = (
            *(_number(check.macro_f1), _limits(check.f1_bounds)),
            *(_number(check.attention_ap), _limits(check.ap_bounds)),
            *(_number(check.top_10pct), _number(check.top_even)),
        )
        table.add_row(check.model, *figures, verdict)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _limits(limits: tuple[float, float] | None) -> str:
    return "" if limits is None else f"{limits[0]:.2f}–{limits[1]:.2f}"
