"""The tables and figures of docs/results.md, from the results tables in benchmarks/results/.

    python benchmarks/results.py                                  # write them into the page
    python benchmarks/results.py --check                          # only say whether the page has them
    python benchmarks/results.py --take runs/paper/results.parquet --as paper

A block of the page is between ``<!-- NAME -->`` and ``<!-- end NAME -->``; NAME is a results table, and every table has
a block. A table named ``recipe...`` documents a choice that was made on validation bags, and is shown by validation
figures alone; ``ablation`` is shown as `qgmil ablate` does. ``one_seed`` has the cells of further models at the first
seed, and is shown with those of ``paper`` at that seed by the tables over all data sets. `--take` copies the table of a
benchmark that has run, after seeing that it forgets no cell of the one that is there.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

from cyclopts import Parameter, run

from qgmil.benchmark.ablate import variants
from qgmil.benchmark.ablation_table import ablation_lines
from qgmil.benchmark.ablation_table import markdown_page as ablation_page
from qgmil.benchmark.markdown import markdown_page
from qgmil.benchmark.results import as_table, key_of, read_rows
from qgmil.benchmark.summary import summarise_benchmark
from qgmil.benchmark.tables import write_tables
from qgmil.evaluation import text as words
from qgmil.files import atomic_path, write_text

HERE = Path(__file__).resolve().parent
TABLES = HERE / "results"
PAGE = HERE.parent / "docs" / "results.md"
IMAGES = PAGE.parent / "images"
BLOCK = re.compile(r"<!-- ([\w-]+) -->\n(.*?)<!-- end \1 -->", re.S)
RECIPE, ABLATION, ONE_SEED = "recipe", "ablation", "one_seed"
ABLATED: dict[str, Any] = {"width": 128, "num_heads": 4, "ffn_dim": 512}  # the options that ablation.yaml names
FACTORS = ("components", "gate", "qk_norm", "norm", "mlp")
VALIDATION = {"val_macro_f1": "macro F1", "val_auroc": "AUROC", "val_nll": "NLL"}


def results(
    *, check: bool = False, take: Path | None = None, name: Annotated[str, Parameter(name="--as")] = "paper"
) -> None:
    """Write the blocks of docs/results.md.

    Parameters
    ----------
    check
        Write nothing; end with 1 if the page is not up to date.
    take
        First copy this results table here.
    name
        What it is called here.
    """
    if take is not None:
        take_table(take, TABLES / f"{name}.parquet")
    page = PAGE.read_text(encoding="utf-8")
    wrong = mismatches(page, TABLES)
    if wrong:
        sys.exit(f"{PAGE}: {'; '.join(wrong)}")
    new = with_blocks(page, TABLES, None if check else IMAGES)
    if check and new != page:
        sys.exit(f"{PAGE}: is not what the results tables say: run python benchmarks/results.py")
    if new != page:
        write_text(PAGE, new)


def take_table(source: Path, target: Path) -> None:
    """Copy a results table, unless a finished cell of the old one would be lost."""
    if target.is_file():
        there = {key_of(r) for r in read_rows(source) if r["status"] == "finished"}
        lost = [r for r in read_rows(target) if r["status"] == "finished" and key_of(r) not in there]
        if lost:
            sys.exit(f"{source}: lacks {len(lost)} cells that {target} has: run it with --known {target} first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as partial:
        if target.stem == ONE_SEED:
            known = {key_of(r) for r in read_rows(target.with_name("paper.parquet"))}
            as_table([r for r in read_rows(source) if r["seed"] == 0 and key_of(r) not in known]).write_parquet(partial)
        else:
            shutil.copyfile(source, partial)


def mismatches(page: str, tables: Path) -> list[str]:
    """Blocks without a table and tables without a block, in words; that there are neither is wrong as well."""
    blocks = {found[1] for found in BLOCK.finditer(page)}
    files = {path.stem for path in tables.glob("*.parquet")}
    wrong = [f"the block {name} has no results table {tables / name}.parquet" for name in sorted(blocks - files)]
    for name in sorted(files - blocks):
        wrong.append(f"no block shows {tables / name}.parquet: add <!-- {name} --> and <!-- end {name} -->")
    return wrong if blocks or files else [f"has no block, and {tables} no results table"]


def with_blocks(page: str, tables: Path, images: Path | None) -> str:
    """The page with every block made anew; figures go to `images`, if given."""
    return BLOCK.sub(
        lambda found: f"<!-- {found[1]} -->\n{block(found[1], tables, images)}<!-- end {found[1]} -->", page
    )


def block(name: str, tables: Path, images: Path | None) -> str:
    """What `qgmil benchmark` writes of a results table, one heading deeper, its figures named after it."""
    found = read_rows(tables / f"{name}.parquet")
    if name.startswith(RECIPE):
        return recipe_block(found)
    if name == ONE_SEED:
        found += [r for r in read_rows(tables / "paper.parquet") if r["seed"] == 0]
    rows = as_table(found)
    if name == ABLATION:
        return deeper(ablation_page(ablation_lines(rows, variants("qgmil", ABLATED, FACTORS))))
    with tempfile.TemporaryDirectory() as folder:
        files = write_tables(Path(folder), summary := summarise_benchmark(rows))
        drawn = [f for f in files if f.suffix == ".png" and (name != ONE_SEED or f.stem == "critical_difference")]
        for file in drawn if images is not None else []:
            images.mkdir(exist_ok=True)
            shutil.copyfile(file, images / f"{name}_{file.name}")
    text = markdown_page(summary, name, [f.name for f in drawn], tasks=name != ONE_SEED)
    return re.sub(r"\]\((\w+\.png)\)", rf"](images/{name}_\1)", deeper(text))


def deeper(page: str) -> str:
    """A page as a part of another: without its title, each heading one level down."""
    return re.sub(r"^## ", "### ", re.sub(r"\A# .*\n+", "", page), flags=re.M)


def recipe_block(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table of validation figures, a row a model in the order of `rows`: what was chosen on them has no test figures.

    Each is mean ± sd over the finished cells of a data set, with their number where others have more.
    """
    cells: dict[str, dict[str, list[Mapping[str, Any]]]] = {}  # {model: {data set: rows}}
    most: dict[str, int] = {}
    for row in rows:
        name = row["dataset"] + (f" ({row['features']})" if row["features"] else "")
        there = cells.setdefault(row["model"], {}).setdefault(name, [])
        if row["status"] == "finished":
            there.append(row)
        most[name] = max(most.get(name, 0), len(there))
    head = ["model", *(f"{words.markdown(name)}: val {figure}" for name in most for figure in VALIDATION.values())]
    lines = []
    for model, mine in cells.items():
        figures = [_over(mine.get(name, []), column, most[name]) for name in most for column in VALIDATION]
        lines.append([words.markdown(model), *figures])
    counts = ", ".join(f"{words.markdown(name)} {count}" for name, count in most.items())
    caption = f"Validation bags alone, mean ± sd over cells ({counts}); test bags played no part in the choice."
    return f"{words.markdown_table(head, lines)}\n\n{caption}\n"


def _over(rows: list[Mapping[str, Any]], column: str, most: int) -> str:
    """``mean ± sd`` of a column over the rows in which it is defined, with their number where it is not `most`."""
    values = [row[column] for row in rows if row[column] is not None]
    if not values:
        return words.UNDEFINED
    said = words.spread(mean(values), stdev(values) if len(values) > 1 else None)
    return said if len(values) == most else f"{said} ({len(values)} of {most})"


if __name__ == "__main__":
    run(results)
