"""Where aggregators look on real data: the tables and figures of docs/attention.md.

    QGMIL_DATA=DATA qgmil benchmark benchmarks/paper.yaml           # its cells hold the models
    QGMIL_DATA=DATA python benchmarks/attention.py runs/paper       # measure, and write the page
    python benchmarks/attention.py --check                          # only say whether the page has the tables' figures

Every bag is looked into by the models of a benchmark that never saw it. Only cells (fold and seed) that all four
aggregators have are used. Measuring can be interrupted and goes on (runs/attention); what it found is kept, a row a bag
and aggregator, in benchmarks/results/attention/, from which the page is written.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from cyclopts import run

from qgmil.analysis.measure import Plan, measure
from qgmil.analysis.output import verdict_of, write_figures
from qgmil.analysis.records import Journal, Record, by_source
from qgmil.analysis.summary import compare_records, summarise_records
from qgmil.attention.truth import agreement
from qgmil.bags.dataset import BagDataset
from qgmil.benchmark.sources import describe_source, open_source
from qgmil.benchmark.spec import BenchmarkSpec
from qgmil.evaluation import text as words
from qgmil.evaluation.metrics import evaluate
from qgmil.files import atomic_path, write_text
from qgmil.training.explain import explain_bag
from qgmil.training.members import Run, load_run

HERE = Path(__file__).resolve().parent
TABLES, PAGE = HERE / "results" / "attention", HERE.parent / "docs" / "attention.md"
IMAGES = PAGE.parent / "images"
BLOCK = re.compile(r"<!-- ([\w-]+) -->\n(.*?)<!-- end \1 -->", re.S)
TASKS = ("deepapl", "glas", "pbc10")
MODELS = ("qgmil", "abmil_gated", "transmil", "acmil")
#: What is shown of each aggregator, and under which name.
SHOWN = {
    "top_10pct": "top 10 %",
    "entropy": "entropy",
    "deletion_advantage": "deletion advantage",
    "insertion_advantage": "insertion advantage",
    "attention_tv_50": "TV, half removed",
    "seed_attention_tv": "TV between seeds",
    "seed_probability_tv": "probability TV between seeds",
    "instance_auroc": "instance AUROC",
    "blast_auroc": "blast AUROC",
    "promyelocyte_auroc": "promyelocyte AUROC",
}


def attention(
    cells: Path | None = None,
    *,
    spec: Path = HERE / "paper.yaml",
    only: tuple[str, ...] = TASKS,
    repeats: int = 3,
    check: bool = False,
) -> None:
    """Measure the cells of a benchmark, or only write the page from the tables that are there.

    Parameters
    ----------
    cells
        Output folder of the benchmark.
    spec
        The benchmark.
    only
        Data sets to measure.
    repeats
        Random orders and removals a bag.
    check
        Write nothing; end with 1 if the page is not up to date.
    """
    if cells is not None:
        loaded = BenchmarkSpec.read(spec)
        for task in only:
            measure_task(loaded, cells, task, repeats)
    page = PAGE.read_text(encoding="utf-8")
    new = BLOCK.sub(lambda found: f"<!-- {found[1]} -->\n{block(found[1])}<!-- end {found[1]} -->", page)
    if check and new != page:
        sys.exit(f"{PAGE}: is not what the tables say: run python benchmarks/attention.py")
    if new != page:
        write_text(PAGE, new)


def measure_task(spec: BenchmarkSpec, cells: Path, task: str, repeats: int) -> None:
    """Measure all aggregators on one data set; table and figures."""
    places = [_cells(cells / "cells" / task / model) for model in MODELS]
    common = sorted(set.intersection(*places))
    if not common:
        sys.exit(f"{cells}: has no cell of {task} that all of {', '.join(MODELS)} finished")
    plan = Plan(repeats=repeats)
    types = _cell_types(spec, task)
    out = cells.parent / "attention" / task
    journal = Journal(out, {"task": task, "cells": _identities(cells, task, common), "repeats": repeats})
    for fold in sorted({f for f, _ in common}):
        bags = _bags(spec, task, fold)
        for model in MODELS:
            parts = [load_run(cells / "cells" / task / model / f"fold{f}_seed{s}") for f, s in common if f == fold]
            joined = replace(parts[0], members=tuple(m for part in parts for m in part.members))
            for record in _records(joined, bags, model, fold, plan, types, journal):
                print(f"{task} fold {fold} {model}: {record.bag_id}", end="\r", file=sys.stderr)
    found = by_source(journal.records.values())
    TABLES.mkdir(parents=True, exist_ok=True)
    rows = [{"source": r.source, **r.row} for r in journal.records.values()]
    with atomic_path(TABLES / f"{task}.parquet") as partial:
        pl.DataFrame(rows, infer_schema_length=None).sort("source", "bag_id").write_parquet(partial)
    for path in write_figures(out, found):
        if path.stem in ("mass_curves", "faithfulness"):
            (IMAGES / f"attention_{task}_{path.name}").write_bytes(path.read_bytes())


def _identities(cells: Path, task: str, common: Sequence[tuple[int, int]]) -> list[list[str]]:
    """What each cell was computed from, so that a benchmark computed anew is measured anew."""
    folders = [[cells / "cells" / task / model / f"fold{f}_seed{s}" for f, s in common] for model in MODELS]
    return [[json.loads((p / "cell.json").read_text())["fingerprint"] for p in found] for found in folders]


def _records(
    joined: Run, bags: BagDataset, model: str, fold: int, plan: Plan, types: Mapping[str, str], journal: Journal
) -> Iterator[Record]:
    """Measure the test bags of a fold; in drawn data sets the bags of each fold are others of the same names."""
    seen = frozenset.intersection(*(m.seen_bags for m in joined.members))
    for bag_id in (b for b in bags.bag_ids if b not in seen):
        name = f"{fold}/{bag_id}"
        if (model, name) not in journal.records:
            said = explain_bag(joined, bags, bag_id, device="cpu")
            record = measure(said, model, plan)
            extra: dict[str, Any] = {"bag_id": name, "patient_id": f"{fold}/{said.patient}", "fold": fold}
            if types:
                kinds = np.array([types.get(i, "") for i in said.bag.instance_ids or ()])
                for kind in ("Blast", "Promyelocyte"):
                    truth = np.char.startswith(kinds, kind).astype(int)
                    compared = agreement(said.scores.values, truth)
                    extra[f"{kind.lower()}_auroc"] = None if compared is None else compared.auroc
            journal.add(replace(record, row={**record.row, **extra}))
        yield journal.records[model, name]


def _bags(spec: BenchmarkSpec, task: str, fold: int) -> BagDataset:
    source = spec.datasets[task]
    drawn = describe_source(source, fold if source.draws else None)
    return open_source(drawn).bags


def _cell_types(spec: BenchmarkSpec, task: str) -> dict[str, str]:
    """Type of each cell, where a table of them lies beside the bags. Never seen by a model."""
    manifest = spec.datasets[task].manifest
    path = None if manifest is None else Path(manifest).parent / "cells.csv"
    if path is None or not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["instance_id"]: row["cell_type"] for row in csv.DictReader(file)}


def _cells(folder: Path) -> set[tuple[int, int]]:
    """(fold, seed) of the finished cells in a folder."""
    found = (
        re.fullmatch(r"fold(\d+)_seed(\d+)", p.name) for p in folder.glob("fold*") if (p / "metrics.json").is_file()
    )
    return {(int(m[1]), int(m[2])) for m in found if m}


def block(task: str) -> str:
    """The tables of one data set, from its rows."""
    frame = pl.read_parquet(TABLES / f"{task}.parquet")
    records = [Record(r.pop("source"), r, []) for r in frame.to_dicts()]
    sources = {model: [r for r in records if r.source == model] for model in MODELS}
    means = {(r["source"], r["figure"]): r for r in _summary(sources)}
    shown = [f for f in SHOWN if any((model, f) in means for model in MODELS)]
    head = ["aggregator", "macro F1", "NLL", "ECE", *(SHOWN[f] for f in shown)]
    lines = []
    for model, found in sources.items():
        lines.append([words.markdown(model), *_quality(found), *(_cell(means.get((model, f))) for f in shown)])
    members = sorted({r.row["members"] for r in records})
    bags, patients = len(sources[MODELS[0]]), len({r.row["patient_id"] for r in sources[MODELS[0]]})
    caption = (
        f"{bags} bags of {patients} patients, each by the {' or '.join(map(str, members))} models (seeds) that never "
        "saw it. Mean over bags [95 % interval over patients]. macro F1, NLL and ECE: of the models' mean prediction, "
        "not calibrated, folds pooled."
    )
    verdicts = [f"- **{words.markdown(m)}**: {_verdict(found)}" for m, found in sources.items()]
    pairs = _pairs(sources, shown)
    return f"{words.markdown_table(head, lines)}\n\n{caption}\n\n" + "\n".join(verdicts) + f"\n\n{pairs}\n"


def _summary(sources: Mapping[str, list[Record]]) -> list[dict[str, Any]]:
    return [r for r in summarise_records(sources, figures=SHOWN) if r["group"] == "all"]


def _pairs(sources: Mapping[str, list[Record]], shown: list[str]) -> str:
    rows = [r for r in compare_records(sources, figures=SHOWN) if r["first"] == "qgmil" and r["figure"] in shown]
    head = ["QG-MIL minus", *(SHOWN[f] for f in shown)]
    lines = []
    for other in MODELS[1:]:
        found = {r["figure"]: r for r in rows if r["second"] == other}
        lines.append([words.markdown(other), *(_difference(found.get(f)) for f in shown)])
    note = "Difference on the same bags, with p of Wilcoxon's test over patients (Holm, six pairs)."
    return f"{words.markdown_table(head, lines)}\n\n{note}"


def _verdict(found: list[Record]) -> str:
    return str(verdict_of([replace(r, faithfulness={"measured": True}) for r in found]))


def _quality(found: list[Record]) -> list[str]:
    """Macro F1, NLL and ECE of the predictions; with the two classes of all data sets here one probability says all."""
    classes = sorted({r.row["label"] for r in found})
    assert len(classes) == 2, classes
    said = np.array([r.row["probability"] for r in found])
    first = np.array([r.row["predicted"] == classes[0] for r in found])
    p = np.where(first, said, 1 - said)
    truth = np.array([classes.index(r.row["label"]) for r in found])
    figures = evaluate(np.stack([p, 1 - p], axis=1), truth, classes)
    return [f"{figures['macro_f1']:.2f}", f"{figures['nll']:.3f}", f"{figures['ece']:.3f}"]


def _cell(r: Mapping[str, Any] | None) -> str:
    if r is None:
        return "–"
    return f"{r['mean']:.3f}" + ("" if r["low"] is None else f" [{r['low']:.2f}, {r['high']:.2f}]")


def _difference(r: Mapping[str, Any] | None) -> str:
    if r is None:
        return "–"
    p = "" if r["p_holm"] is None else " (p < .001)" if r["p_holm"] < 0.001 else f" (p = {r['p_holm']:.3f})"
    return f"{r['difference']:+.3f}{p}"


if __name__ == "__main__":
    run(attention)
