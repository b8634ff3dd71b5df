"""Figures over bags: by class, by correct and wrong, and between runs on the same bags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from qgmil.analysis.records import FIGURES, Record
from qgmil.evaluation.bootstrap import mean_interval
from qgmil.evaluation.comparison import holm, wilcoxon_signed_rank


def groups_of(records: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    """All bags, those of each class, and those predicted rightly and wrongly, where there are any."""
    yield "all", list(records)
    for label in sorted({r.row["label"] for r in records if r.row["label"] is not None}):
        yield f"class {label}", [r for r in records if r.row["label"] == label]
    for name, wanted in (("correct", True), ("incorrect", False)):
        chosen = [r for r in records if r.row["correct"] is wanted]
        if chosen:
            yield name, chosen


def summarise_records(
    sources: Mapping[str, Sequence[Record]], *, figures: Iterable[str] = FIGURES, seed: int = 0
) -> list[dict[str, Any]]:
    """One row a source, group of bags and figure.

    Returns:
        ``source``, ``group``, ``figure``, ``bags`` and ``patients`` in which the figure is defined, ``mean``, ``sd``
        (over bags) and the 95 % bootstrap interval of the mean over patients (``low``, ``high``; None with one).
    """
    rows = []
    wanted = list(figures)
    for source, records in sources.items():
        for group, chosen in groups_of(records):
            for figure in wanted:
                held = [(r.row[figure], r.row["patient_id"]) for r in chosen if r.row.get(figure) is not None]
                if not held:
                    continue
                values, patients = [v for v, _ in held], [p for _, p in held]
                interval = mean_interval(values, patients, seed=seed)
                rows.append(
                    {
                        "source": source,
                        "group": group,
                        "figure": figure,
                        "bags": len(values),
                        "patients": len(set(patients)),
                        "mean": float(np.mean(values)),
                        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                        "low": interval.low,
                        "high": interval.high,
                    }
                )
    return rows


def compare_records(
    sources: Mapping[str, Sequence[Record]], *, figures: Iterable[str] = FIGURES, seed: int = 0
) -> list[dict[str, Any]]:
    """Every two sources on the bags that both have, figure by figure.

    Returns:
        ``first``, ``second``, ``figure``, ``bags``, ``patients``; ``difference``, mean of first minus second over bags,
        with its 95 % bootstrap interval over patients; ``p`` of Wilcoxon's signed-rank test over patients (the bags of
        a patient are averaged first; None where it is undefined) and ``p_holm``, corrected for all pairs of one figure.
    """
    rows: list[dict[str, Any]] = []
    for figure in figures:
        compared = [
            row
            for first, second in combinations(sources, 2)
            if (row := _paired(first, second, sources[first], sources[second], figure, seed)) is not None
        ]
        corrected = holm([row["p"] for row in compared])
        rows += [{**row, "p_holm": p} for row, p in zip(compared, corrected, strict=True)]
    return rows


def _paired(
    first: str, second: str, a: Sequence[Record], b: Sequence[Record], figure: str, seed: int
) -> dict[str, Any] | None:
    other = {r.bag_id: r.row.get(figure) for r in b}
    pairs = [
        (r.row[figure] - other[r.bag_id], r.row["patient_id"])
        for r in a
        if r.row.get(figure) is not None and other.get(r.bag_id) is not None
    ]
    if not pairs:
        return None
    differences, patients = [d for d, _ in pairs], [p for _, p in pairs]
    of_patient: dict[str, list[float]] = {}
    for difference, patient in pairs:
        of_patient.setdefault(patient, []).append(difference)
    interval = mean_interval(differences, patients, seed=seed)
    test = wilcoxon_signed_rank([float(np.mean(d)) for d in of_patient.values()])
    return {
        "first": first,
        "second": second,
        "figure": figure,
        "bags": len(pairs),
        "patients": len(of_patient),
        "difference": float(np.mean(differences)),
        "low": interval.low,
        "high": interval.high,
        "p": test.p,
    }
