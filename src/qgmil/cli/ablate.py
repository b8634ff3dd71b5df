"""``qgmil ablate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from qgmil.cli.options import Positive, flat, given
from qgmil.errors import ConfigError
from qgmil.training.config import DataConfig, FitConfig

app = App(
    help_epilogue="""Examples:

    qgmil ablate bags.csv -o runs/ablation
    qgmil ablate a.csv b.csv -o runs/ablation --only norm,gate --options.width 128 --options.ffn-dim 512
    qgmil ablate --spec paper.yaml -o runs/ablation --only components
    qgmil ablate bags.csv --dry-run

Killed or interrupted, the same command goes on: what is finished is not computed again.""",
    help_format="plaintext",
    default_parameter=Parameter(consume_multiple=True),
)


@app.default
def ablate(
    manifests: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    /,
    *,
    spec: Path | None = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    base: str = "qgmil",
    only: tuple[str, ...] = (),
    options: dict[str, str] | None = None,
    folds: int | None = None,
    seeds: Positive = None,
    seed: int | None = None,
    val: float | None = None,
    workers: Positive = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    max_minutes: float | None = None,
    retry_failed: Annotated[bool, Parameter(negative=())] = False,
    redo_changed: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    quiet: Annotated[bool, Parameter(alias="-q", negative=())] = False,
    data: Annotated[DataConfig | None, flat("Bags")] = None,
    fit: Annotated[FitConfig | None, flat("Training")] = None,
) -> None:
    """Move one component of QG-MIL at a time, on the same folds and seeds, and say what each does.

    Parameters
    ----------
    manifests
        Tables of bags; each is a data set.
    spec
        YAML file of qgmil benchmark instead: its data sets, folds, seeds and recipe, with the variants for models.
    output
        Folder of the results: tables/ablation.csv, .md and .tex, and all that qgmil benchmark writes.
    base
        The QG-MIL that variants depart from.
    only
        Factors to move, separated by commas: norm, qk_norm, gate, mlp, depth, heads, pooling, components, presets.
    options
        Options of the base, as --options.width 128; the variants have them too.
    folds
        Cross-validation folds. Default: 5, or those of the YAML file.
    seeds
        How many seeds to train, on the same splits. Default: 3, or those of the YAML file.
    seed
        First seed.
    val
        Share of each training part that validates.
    workers
        Cells at a time.
    engine
        local: processes of this machine. ray: a cluster.
    address
        Of the Ray cluster: auto, or host:port.
    max_minutes
        Start no cell after that; the command then ends well and says how to go on.
    retry_failed
        Compute cells again that failed.
    redo_changed
        Move results of changed settings aside and compute them again, instead of refusing.
    dry_run
        Show the variants, and stop.
    quiet
        No progress and no tables on the terminal, only errors.
    """
    from qgmil.benchmark.ablate import check_recipe, variants

    factors = [name.strip().replace("-", "_") for text in only for name in text.split(",") if name.strip()]
    plan = variants(base, options, factors)
    check_recipe(plan, given(fit).get("recipe"), "--recipe published")
    if dry_run:
        _show(plan)
        return
    grid = {"folds": folds, "seeds": seeds, "seed": seed, "val": val}
    grid = {name: value for name, value in grid.items() if value is not None}
    loaded, source = _spec(plan, manifests, spec, grid, given(data), given(fit))
    if output is None:
        raise ConfigError("name a folder for the results: qgmil ablate ... -o FOLDER")
    settings: dict[str, Any] = {
        "workers": workers, "engine": engine, "address": address, "max_minutes": max_minutes,
        "retry_failed": retry_failed, "redo_changed": redo_changed,
    }  # fmt: skip
    _run(plan, loaded, output, source, quiet, settings)


def _run(plan: Sequence[Any], spec: Any, output: Path, source: str, quiet: bool, settings: Mapping[str, Any]) -> None:
    from qgmil.benchmark.ablation_table import ablation_lines, print_ablation, write_ablation
    from qgmil.benchmark.grid import run_benchmark
    from qgmil.benchmark.results import as_table
    from qgmil.cli.benchmark import Progress
    from qgmil.cli.output import console, how_to_go_on, say

    with Progress(quiet) as progress, how_to_go_on():
        result = run_benchmark(spec, output, source=source, progress=progress, **settings)
    if not result.rows:
        say("no cell has ended yet: there are no tables")
        return
    lines = ablation_lines(as_table(result.rows), plan)
    written = write_ablation(result.output, lines)
    if quiet:
        return
    print_ablation(lines, console)
    say(f"{result.finished} of {result.cells} cells are finished; tables: {', '.join(str(path) for path in written)}")
    if result.note:
        say(result.note)


def _spec(
    plan: Sequence[Any],
    manifests: Sequence[Path],
    spec: Path | None,
    grid: Mapping[str, Any],
    data: Mapping[str, Any],
    fit: Mapping[str, Any],
) -> tuple[Any, str]:
    """The benchmark of the variants, and its name for messages."""
    from qgmil.benchmark.ablate import check_recipe
    from qgmil.benchmark.spec import BenchmarkSpec
    from qgmil.training.config import read_yaml

    if (spec is None) == (not manifests):
        raise ConfigError("give tables of bags (qgmil ablate bags.csv -o FOLDER), or --spec bench.yaml, not both")
    fit = dict(fit)
    recipe = fit.pop("recipe", None)
    fixed: dict[str, Any] = {**grid, "controls": False, **({"recipe": recipe} if recipe else {})}
    if spec is not None:
        if data:
            raise ConfigError(f"--{next(iter(data)).replace('_', '-')} says how a table is read: write it into {spec}")
        values = read_yaml(spec)
        common = values.get("common") or {}
        if not isinstance(common, dict):
            raise ConfigError(f"{spec}: common is {common!r}; it must be a table of name: value")
        recipe = recipe or values.get("recipe")
        check_recipe(plan, recipe, f"{spec}: recipe published")
        sections = {"models": _models(plan, recipe, fit), "common": {**common, **fit}}
        return BenchmarkSpec.read(spec, **fixed, **sections), str(spec)
    names = [_name(path) for path in manifests]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two tables of bags would both be data set {twice!r}: rename one")
    datasets = {name: {"manifest": str(path.absolute()), **data} for name, path in zip(names, manifests, strict=True)}
    sections = {"models": _models(plan, recipe, fit), "datasets": datasets, "common": fit}
    return BenchmarkSpec.build({**fixed, **sections}, "qgmil ablate"), "qgmil ablate"


def _models(plan: Sequence[Any], recipe: str | None, fit: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What was typed departs from a published recipe as well, which `common` does not: then it is each model's own."""
    from qgmil.benchmark.ablate import models_section

    return models_section(plan, fit if recipe == "published" else None)


def _name(path: Path) -> str:
    """The name of a data set: its folder's where the table is called bags, as they all are."""
    import re

    stem = path.absolute().parent.name if path.stem in ("bags", "manifest") else path.stem
    return re.sub(r"[^A-Za-z0-9_+=-]+", "_", stem).strip("_") or "bags"


def _show(plan: Sequence[Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from qgmil.benchmark.ablate import changes
    from qgmil.cli.output import console

    by_name = {variant.name: variant for variant in plan}
    table = Table("variant", "what is moved", "options", "against", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for variant in plan:
        moved = changes(variant, by_name[variant.reference]) if variant.reference else {}
        options = ", ".join(f"{name}={now}" for name, (_, now) in moved.items())
        same = f" (the same model as {variant.same_as})" if variant.same_as else ""
        table.add_row(variant.name, variant.moved + same, options, variant.reference or "")
    console.print(table, markup=False)
    trained = sum(variant.same_as is None for variant in plan)
    console.print(f"{len(plan)} variants, {trained} different models")
