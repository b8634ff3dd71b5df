"""What is measured: runs, and attention from elsewhere, each as records bag by bag."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgmil.analysis.measure import Plan, measure, measure_scores
from qgmil.analysis.records import Journal, Record
from qgmil.attention.external import GivenScores, Normalise, as_weights, read_scores, score_files
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.errors import BagError, ConfigError, RunError
from qgmil.training.device import choose_device
from qgmil.training.explain import explain_bag, members_for
from qgmil.training.members import Run, load_run, open_asked
from qgmil.training.runfolder import read_run, source_hash


@dataclass(frozen=True, eq=False)
class RunSource:
    """A run and the bags it is asked about; `left_out` are those that every one of its models has seen."""

    name: str
    folder: Path
    run: Run
    bags: BagDataset
    left_out: tuple[str, ...]
    options: dict[str, Any]

    @property
    def bag_ids(self) -> tuple[str, ...]:
        """Bags that can be measured."""
        out = set(self.left_out)
        return tuple(b for b in self.bags.bag_ids if b not in out)

    def record(self, bag_id: str, plan: Plan) -> Record:
        """Measure one bag."""
        said = explain_bag(self.run, self.bags, bag_id, score=plan.score, **self.options)
        return measure(said, self.name, plan, device=self.options["device"])


@dataclass(frozen=True, eq=False)
class ScoreSource:
    """Attention from elsewhere, for bags of a manifest."""

    name: str
    folder: Path
    scores: dict[str, GivenScores]
    bags: BagDataset
    normalise: Normalise
    left_out: tuple[str, ...]

    @property
    def bag_ids(self) -> tuple[str, ...]:
        """Bags of the manifest that have scores."""
        return tuple(b for b in self.bags.bag_ids if b in self.scores)

    def record(self, bag_id: str, plan: Plan) -> Record:
        """Measure one bag."""
        index = self.bags.bag_ids.index(bag_id)
        bag = self.bags[index]
        weights = as_weights(self.scores[bag_id].of(bag), self.normalise, bag_id=bag_id)
        return measure_scores(bag, self.bags.groups[index], weights, self.name, plan)


Source = RunSource | ScoreSource


def manifest_of(run: Path) -> Path:
    """The bags that a run was trained on.

    Raises:
        RunError: not a run folder, or its bags are no longer where they were.
    """
    _, manifest = read_run(run)
    if not manifest.exists():
        raise RunError(f"{run}: its bags {manifest} are not there any more; name a manifest after the run")
    return manifest


def run_source(
    folder: Path,
    manifest: Path,
    name: str,
    *,
    include_seen: bool = False,
    new_cohort: bool = False,
    device: str | None = None,
    reading: dict[str, Any] | None = None,
) -> RunSource:
    """Load a run and open the bags, as the run reads them unless `reading` says otherwise.

    Raises:
        BagError: every bag shaped every model of the run.
        RunError, ManifestError, ReadError: a run or bags that cannot be read.
    """
    run = load_run(folder)
    bags = open_asked(run, manifest, **(reading or {}))
    asked = members_for(run, bags, include_seen=include_seen, new_cohort=new_cohort)
    left_out = tuple(b for b, members in zip(bags.bag_ids, asked, strict=True) if not members)
    if len(left_out) == len(bags):
        raise BagError(
            f"{folder}: each of the {len(bags)} bags (or its patient) shaped every model of the run; give other bags, "
            "--new-cohort if they are others of the same names, or --include-seen to look all the same"
        )
    where = choose_device(device or run.config.device)
    options = {"include_seen": include_seen, "new_cohort": new_cohort, "device": where}
    return RunSource(name, folder, run, bags, left_out, options)


def score_source(path: Path, manifest: Path, name: str, normalise: Normalise, reading: dict[str, Any]) -> ScoreSource:
    """Read scores from elsewhere and open the bags they are of.

    Raises:
        BagError: no bag of the manifest has scores.
        ReadError, ManifestError: files that cannot be read.
    """
    scores = read_scores(path)
    bags = open_bags(manifest, **reading, labels=False)
    if not any(b in scores for b in bags.bag_ids):
        here, there = next(iter(scores)), bags.bag_ids[0]
        raise BagError(
            f"{path}: none of its {len(scores)} bags is in {manifest} (it has {here!r}, the manifest {there!r}): they "
            "must have the same names"
        )
    left_out = tuple(b for b in bags.bag_ids if b not in scores)
    return ScoreSource(name, path, scores, bags, normalise, left_out)


def source_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: the last parts of it that tell them apart.

    Raises:
        ConfigError: the same path twice.
    """
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(str(p) for p, q in zip(paths, parts, strict=True) if parts.count(q) > 1)
        raise ConfigError(f"{twice} is given twice")
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(p[-depth:]) for p in parts]
        if len(set(found)) == len(found):
            return found
    return [str(path) for path in paths]


def fingerprint(sources: Sequence[Source], manifests: Sequence[Path], plan: Plan) -> dict[str, Any]:
    """What decides a measurement, for the journal."""
    return {
        "sources": [{"name": s.name, "path": str(s.folder.resolve()), **_state(s)} for s in sources],
        "manifests": [source_hash(m) for m in manifests],
        **{name: getattr(plan, name) for name in plan.__dataclass_fields__},
    }


def measure_all(
    sources: Sequence[Source], journal: Journal, plan: Plan, on_bag: Callable[[int], None] | None = None
) -> list[Record]:
    """Measure every bag of every source that the journal does not have, and return all records in order."""
    wanted = [(source, bag_id) for source in sources for bag_id in source.bag_ids]
    for done, (source, bag_id) in enumerate(wanted):
        if (source.name, bag_id) not in journal.records:
            journal.add(source.record(bag_id, plan))
        if on_bag is not None:
            on_bag(done + 1)
    return [journal.records[source.name, bag_id] for source, bag_id in wanted]


def _state(source: Source) -> dict[str, Any]:
    if isinstance(source, ScoreSource):
        stats = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in score_files(source.folder))
        return {"files": stats, "normalise": source.normalise}
    weights = [m.folder / "model.safetensors" for m in source.run.members]
    options = {k: v for k, v in source.options.items() if k != "device"}
    return {"weights": [[w.stat().st_size, w.stat().st_mtime_ns] for w in weights], **options}
