"""What was measured of one bag, and the journal that lets a long measurement be interrupted and resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qgmil.errors import RunError
from qgmil.files import append_json_line, read_json_lines, write_json

JOURNAL, SETTINGS = "journal.jsonl", "settings.json"

#: What a figure of a bag is called where people read it, and whether its bags may be averaged whatever their size.
FIGURES = {
    "top_10pct": "top 10 %",
    "top_1pct": "top 1 %",
    "top_1": "top instance",
    "entropy": "entropy",
    "effective_share": "effective share",
    "ess_share": "ESS share",
    "gini": "Gini",
    "max_over_uniform": "max / uniform",
    "deletion_area": "deletion area",
    "insertion_area": "insertion area",
    "deletion_advantage": "deletion advantage",
    "insertion_advantage": "insertion advantage",
    "same_class_10": "same class without 10 %",
    "same_class_50": "same class without 50 %",
    "probability_tv_10": "probability TV, 10 % removed",
    "probability_tv_50": "probability TV, 50 % removed",
    "attention_tv_10": "attention TV, 10 % removed",
    "attention_tv_50": "attention TV, 50 % removed",
    "attention_rank_10": "attention rank correlation, 10 % removed",
    "attention_rank_50": "attention rank correlation, 50 % removed",
    "seed_probability_tv": "probability TV between models",
    "seed_attention_tv": "attention TV between models",
    "instance_auroc": "instance AUROC",
    "instance_ap": "instance AP",
    "instance_enrichment": "instance enrichment",
}


@dataclass(frozen=True)
class Record:
    """The figures of one bag under one source (a run, or scores from elsewhere); all of it is JSON.

    Args:
        source: name of the run or score file.
        row: the line of the table: ids, label, prediction and every figure by name; None where undefined.
        curve: attention-mass curve at `qgmil.attention.concentration.SHARES`.
        faithfulness: curves as `qgmil.attention.faithfulness.Faithfulness` has them, or None.
        heads: one mapping a layer and head; empty where there are none.
    """

    source: str
    row: dict[str, Any]
    curve: list[float]
    faithfulness: dict[str, Any] | None = None
    heads: list[dict[str, Any]] = field(default_factory=list)

    @property
    def bag_id(self) -> str:
        """Name of the bag."""
        return self.row["bag_id"]


class Journal:
    """Records of a measurement, one line each, in a folder that says what they are of.

    A line that a kill left unfinished is dropped and its bag measured again.

    Raises:
        RunError: the folder holds something else, or a measurement of other things.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        wanted = json.loads(json.dumps(dict(settings), default=str))
        if folder.is_file():
            raise RunError(f"{folder} is a file: name a folder for the tables and figures")
        if overwrite:
            self.path.unlink(missing_ok=True)
        if self.path.is_file():
            if self.path.stat().st_size or (folder / SETTINGS).is_file():
                _check_same(folder, wanted)
        elif folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise RunError(f"{folder} is not empty: choose another folder with -o, or --overwrite")
        folder.mkdir(parents=True, exist_ok=True)
        self.path.touch()  # first: it says that the folder is ours
        write_json(folder / SETTINGS, wanted)
        found = (Record(**line) for line in read_json_lines(self.path))
        self.records = {(r.source, r.bag_id): r for r in found}

    def add(self, record: Record) -> None:
        """Keep a record; it is on disk when this returns."""
        append_json_line(self.path, asdict(record))
        self.records[record.source, record.bag_id] = record


def _check_same(folder: Path, wanted: dict[str, Any]) -> None:
    try:
        before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(
            f"{folder} has a {JOURNAL} but no readable {SETTINGS}: choose another folder, or --overwrite"
        ) from None
    changed = sorted(k for k in {*before, *wanted} if before.get(k) != wanted.get(k))
    if changed:
        name = changed[0]
        raise RunError(
            f"{folder} holds a measurement with other settings ({name}: {before.get(name)!r}, now "
            f"{wanted.get(name)!r}): choose another folder with -o, or --overwrite"
        )


def by_source(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of each source, sources in order of appearance."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.source, []).append(record)
    return found
