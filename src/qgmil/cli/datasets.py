"""``qgmil datasets``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from qgmil.datasets.base import DatasetInfo, NamedDataset

WIDE = 120  # columns of a terminal below which the list has no titles: they are on the cards


def datasets(
    name: str | None = None,
    /,
    *,
    root: Path | None = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    skip: Annotated[tuple[Literal["empty", "unlabelled", "missing"], ...], Parameter(negative=())] = (),
    options: dict[str, str] | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """List the named data sets, show the card of one, or write its table of bags.

    Parameters
    ----------
    name
        A data set, to see its licence, citation, split and layout.
    root
        Folder that holds data sets, each in a folder of its name. Default: the environment variable QGMIL_DATA.
    output
        Write the table of bags (CSV) for qgmil train, with the official split as columns where there is one.
    skip
        Kinds of bags to leave out instead of stopping.
    options
        The data set's own options, as --options.prevalence 0.1.
    overwrite
        Replace the table and its folder of features if they are there.
    """
    from qgmil.datasets.registry import dataset_info
    from qgmil.errors import ConfigError

    if name is None:
        if output is not None or skip or options or overwrite:
            raise ConfigError("name a data set first: qgmil datasets NAME -o bags.csv")
        _list(root)
        return
    _card(dataset_info(name), root)
    if output is None:
        if skip or options or overwrite:
            raise ConfigError("--skip, --options and --overwrite say how the table is written: give -o bags.csv too")
        return
    _write(name, root, output, skip, options or {}, overwrite)


def _list(root: Path | None) -> None:
    from rich.table import Table

    from qgmil.cli.output import console, say
    from qgmil.datasets.registry import dataset_info, find_dataset, list_datasets

    table = Table(title="Named data sets")
    table.add_column("data set", no_wrap=True)
    wide = ("what it is",) if console.width >= WIDE else ()
    for header in (*wide, "bags", "classes", "licence", "here"):
        table.add_column(header)
    for name in list_datasets():
        info = dataset_info(name)
        here = "yes" if find_dataset(name, root) is not None else "no"
        licence = re.split(r" \(|[;:,]", info.licence)[0]  # in full on the card
        title = (info.title,) if wide else ()
        table.add_row(name, *title, _count(info), ", ".join(info.classes), licence, here)
    console.print(table)
    say("qgmil datasets NAME shows where to get one, how to cite it and its split; -o bags.csv writes its table")


def _card(info: DatasetInfo, root: Path | None) -> None:
    from rich.table import Table

    from qgmil.cli.output import console
    from qgmil.datasets.registry import dataset_options, find_dataset

    path = find_dataset(info.name, root)
    table = Table(show_header=False, title=f"{info.name}: {info.title}")
    options = ", ".join(f"{k}={v!r}" for k, v in dataset_options(info.name).items() if k != "skip")
    for key, value in {
        "task": info.task,
        "classes": ", ".join(info.classes),
        "bags": _count(info),
        "licence": info.licence,
        "cite": info.citation,
        "split": info.split,
        "get it from": info.url,
        "layout": info.layout,
        "options": options or "none",
        "here": str(path) if path is not None else "no",
    }.items():
        table.add_row(key, value)
    console.print(table, markup=False)


def _write(
    name: str, root: Path | None, output: Path, skip: tuple[str, ...], options: dict[str, str], overwrite: bool
) -> None:
    from qgmil.cli.output import say
    from qgmil.datasets.export import check_target, export
    from qgmil.datasets.registry import load_dataset, parse_options

    check_target(output, overwrite=overwrite)
    given = parse_options(name, options)
    loaded = load_dataset(name, root, **given, **({"skip": skip} if skip else {}))
    export(loaded, output, overwrite=overwrite)
    for note in loaded.notes:
        say(note)
    say(f"wrote {len(loaded.bags)} bags to {output}: {_next_step(loaded, output)}")


def _next_step(loaded: NamedDataset, output: Path) -> str:
    columns = "".join(f" --split-column {name}" for name in loaded.split_columns)
    return f"qgmil train {output}{columns or ' --folds 5'}"


def _count(info: DatasetInfo) -> str:
    return "varies" if info.bags is None else f"{info.bags:,}"
