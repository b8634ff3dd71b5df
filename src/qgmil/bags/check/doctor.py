"""`check_bags`: everything is read once, and everything that is wrong is said."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from qgmil.bags import hints
from qgmil.bags.bag import TILE_FACTS, Bag
from qgmil.bags.check.copies import check_copies
from qgmil.bags.check.facts import FileFacts, Moments, inspect_file, kind_of, sum_up, task
from qgmil.bags.check.findings import check_coords, check_features
from qgmil.bags.check.leaks import Leaks
from qgmil.bags.check.locks import about_lock, find_locks, on_disk
from qgmil.bags.check.pool import Lost, Pool, processors
from qgmil.bags.check.report import CheckReport, bags_of
from qgmil.bags.check.rows import RowIndex
from qgmil.bags.check.seen import Seen, remember, summarise
from qgmil.bags.check.sides import check_columns, check_files
from qgmil.bags.manifest import BagRecord
from qgmil.bags.problems import Problem, sorted_labels
from qgmil.bags.readers import BagFile, listing
from qgmil.bags.source import Item, PathLikes, items_per_patient, scan_source
from qgmil.bags.store import StoredRecord, is_store, verify_store
from qgmil.errors import BagError, ConfigError, ReadError

FEW_PATIENTS = 5  # fewer of a class cannot fill the usual five folds
BYTES_PER_CHILD = 2**30  # of files: starting a child takes seconds of a processor, which less would not repay
MOST_CHILDREN = 8
Answer = dict[str, Any] | Lost
Progress = Callable[[int, int], None]


def check_bags(
    path: PathLikes,
    *,
    features: str | None = None,
    label: str = "label",
    bag_id: str = "bag_id",
    patient_id: str | None = "patient_id",
    format: str | None = None,
    dataset: str | None = None,
    bag_per: Literal["bag", "patient"] = "bag",
    labels: bool = True,
    split_column: Sequence[str] = (),
    split_file: Sequence[str | PathLike[str]] = (),
    isolate: bool | Pool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Read everything once and report; options as for `open_bags`.

    Kinds of problems: "missing", "locked", "broken", "empty", "nan", "width", "duplicate-id", "bad-id", "label",
    "unlabelled", "class", "number", "split", "permission", "leak" (a label among the features), and with `isolate`
    "crash" and "hangs". Kinds of warnings: "identical", "shared" and "common" (instances), "few", "label", "patient",
    "split", "leak" (a number of the bag), "lock", "constant", "zero", "one-row", "scale", "coords", "unit",
    "tile-size", "mpp", "magnification", "tiles" (on each other).

    Args:
        split_column: columns to train with, which must keep a patient on one side. Other columns that look like a
            split are looked at too, and warned of.
        split_file: split files to train with, likewise.
        isolate: read the files in child processes, which a file may crash without harm. A `Pool` is used as it is
            and left open. The table itself, and a packed store (plain numbers, with checksums), are read in this one.
        progress: called with (bags done, bags in all).

    Raises:
        ManifestError: the table cannot be read, or lacks a column.
        ConfigError: an unknown `bag_per`.
        ReadError: the child process cannot be started.
    """
    if bag_per not in ("bag", "patient"):
        raise ConfigError(f"--bag-per (bag_per in Python) is {bag_per!r}; it must be 'bag' or 'patient'")
    store = isinstance(path, str | PathLike) and is_store(path)
    problems: list[Problem] = []
    if store:
        step = None if progress is None else lambda done, total: progress(done, 2 * total)
        problems += [p for p in verify_store(str(path), step) if p.kind != "nan"]  # which is found below
        if any(p.bag_id is None for p in problems):
            return CheckReport(str(path), problems=problems)
    options = {"features": features, "label": label, "bag_id": bag_id, "patient_id": patient_id, "labels": labels}
    options["dataset"] = dataset
    source = scan_source(path, **options)  # type: ignore[arg-type]
    items, problems = source.items, [*problems, *source.problems]
    if bag_per == "patient":
        items, more = items_per_patient(items)
        problems += more
    report = CheckReport(str(source.path), problems=problems)
    _count_labels(report, items, labels)
    wrong, suspected = check_columns(source.items, split_column)
    report.problems += [*wrong, *check_files(items, split_file)]
    report.warnings += suspected
    report.locks, lock = find_locks(items)
    report.warnings += [] if lock is None else [lock]
    with ExitStack() as stack:
        pool = None
        if isolate is not False and _files(items):
            pool = isolate if isinstance(isolate, Pool) else stack.enter_context(Pool())
            pool.grow(_children(items))
        ward = _Ward(report, {"format": format, "dataset": dataset}, pool)
        for done, _ in enumerate(ward.visit(items), start=1):
            if progress is not None:
                progress(done + len(items) * store, len(items) * (1 + store))
    ward.conclude()
    return report


class _Ward:
    """Goes through the bags one by one and keeps of each what the conclusions need."""

    def __init__(self, report: CheckReport, options: dict[str, str | None], pool: Pool | None) -> None:
        self.report, self.options, self.pool = report, options, pool
        self.seen: list[Seen] = []
        self.moments: dict[int, Moments] = {}
        self.leaks: dict[int, Leaks] = {}
        self.index = RowIndex()

    def visit(self, items: Sequence[Item]) -> Iterator[Item]:
        """Every item, once it has been looked at."""
        tasks = (
            task(file, item.bag_id, **item.reading(**self.options), bound=self.index.bound)
            for item in items
            if isinstance(item, BagRecord)
            for file in _read_in_child(item)
        )
        answers: Iterator[Answer] = map(inspect_file, tasks) if self.pool is None else self.pool.run(tasks)
        for at, item in enumerate(items):
            files = _read_in_child(item)
            parts = [(str(f), next(answers)) for f in files] if files else [_in_memory(item, self.index.bound)]
            self._take(at, item, parts)
            yield item

    def _take(self, at: int, item: Item, parts: Sequence[tuple[str, Answer]]) -> None:
        bad = [problem for where, answer in parts if (problem := self._problem(item.bag_id, where, answer))]
        self.report.problems += bad
        if bad or not parts:
            return
        facts = [FileFacts(**answer) for _, answer in parts if isinstance(answer, dict)]
        if len({f.width for f in facts}) > 1:
            each = ", ".join(f"{where} has {f.width}" for (where, _), f in zip(parts, facts, strict=True))
            message = f"the files of bag {item.bag_id!r} differ in width: {each}"
            self.report.problems.append(Problem("width", item.bag_id, message))
            return
        for f in facts:
            self.index.add(at, f.hashes, f.distinct)
        seen, moments = remember(at, item.bag_id, item.group, item.label, parts[0][0], facts)
        self.seen.append(seen)
        total = self.moments.setdefault(seen.width, Moments(seen.width))
        total.add(moments.rows, moments.mean, moments.m2, moments.low, moments.high)
        self.leaks.setdefault(seen.width, Leaks(seen.width)).add(seen.label, moments)

    def _problem(self, bag_id: str, where: str, answer: Answer) -> Problem | None:
        if isinstance(answer, Lost):
            did = "did not come to an end" if answer.kind == "hangs" else "crashed the process that read it"
            message = (
                f"bag {bag_id!r}: {where}: {did} ({answer.how}); the file is broken or hostile, or larger than the "
                "memory: make it again or take the bag out"
            )
            return Problem(answer.kind, bag_id, message)
        if "kind" not in answer:
            return None
        kind, text = answer["kind"], answer["message"]
        text = text if repr(bag_id) in text else f"bag {bag_id!r}: {text}"
        text = text if where in text else f"{text} [file {where}]"
        return Problem(kind, bag_id, about_lock(text, self.report.locks) if kind == "locked" else text)

    def conclude(self) -> None:
        """What all bags together say."""
        summarise(self.report, self.seen)
        _check_widths(self.report, self.seen)
        check_copies(self.report, self.seen, self.index)
        usual = self.report.width or 0
        check_features(self.report, self.seen, self.moments.get(usual))
        if usual in self.leaks:
            problems, warnings = self.leaks[usual].problems()
            self.report.problems += problems
            self.report.warnings += warnings
        check_coords(self.report, self.seen)


def _read_in_child(item: Item) -> tuple[Path, ...]:
    """The files of an item that are nobody's but the user's; a store's are read here, as numbers."""
    return item.files if isinstance(item, BagRecord) and not isinstance(item, StoredRecord) else ()


def _in_memory(item: Item, bound: int) -> tuple[str, Answer]:
    where = str(item.files[0]) if isinstance(item, BagRecord) else ""
    try:
        bag = item.read() if isinstance(item, StoredRecord) else item
        assert isinstance(bag, Bag)
        known = {n: getattr(bag, n) for n in ("coords", "coord_unit", *TILE_FACTS)}
        return where, vars(sum_up(BagFile(bag.features, **known), item.bag_id, bound))
    except (ReadError, BagError) as error:
        return where, {"kind": kind_of(error), "message": str(error)}


def _files(items: Sequence[Item]) -> list[Path]:
    return [file for item in items for file in _read_in_child(item)]


def _children(items: Sequence[Item]) -> int:
    """As many as the size of the files repays, and there are processors for."""
    total = 0
    for file in {on_disk(f) for f in _files(items)}:
        try:
            total += file.stat().st_size
        except (OSError, ValueError):  # said when the bag is read
            continue
    return max(1, min(processors(), MOST_CHILDREN, total // BYTES_PER_CHILD))


def _count_labels(report: CheckReport, items: tuple[Item, ...], labels: bool) -> None:
    counts = Counter(item.label for item in items)
    report.bags = len(items)
    report.patients = len({item.group for item in items})
    report.classes = {c: counts[c] for c in sorted_labels(counts)}
    if not labels:
        return
    for item in items:
        if item.label is None:
            where = f" (line {item.line})" if isinstance(item, BagRecord) and item.line else ""
            message = f"bag {item.bag_id!r} has no label{where}; fill it in, or {hints.skip('unlabelled')}"
            report.problems.append(Problem("unlabelled", item.bag_id, message))
    if len(report.classes) == 1:
        message = f"all bags have the label {next(iter(report.classes))!r}; there is nothing to learn"
        report.problems.append(Problem("class", None, message))
    for name, bags in report.classes.items():
        patients = len({item.group for item in items if item.label == name})
        if patients == 1:
            message = f"class {name!r} has one patient ({bags_of(bags)}): it cannot be both trained and tested on"
            report.problems.append(Problem("class", None, message))
        elif patients < FEW_PATIENTS:
            message = f"class {name!r} has only {patients} patients ({bags_of(bags)}): use at most {patients} folds"
            report.warnings.append(Problem("few", None, message))
    by_group: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.label is not None:
            by_group[item.group].add(item.label)
    if several := [g for g, found in by_group.items() if len(found) > 1]:
        have = "1 patient has" if len(several) == 1 else f"{len(several)} patients have"
        message = f"{have} bags of several classes: {listing(several)}"
        report.warnings.append(Problem("patient", None, message))
    report.warnings += _alike(report.classes)


def _alike(classes: dict[str, int]) -> Iterator[Problem]:
    """Labels that only capitals and blanks tell apart."""
    spelled: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        spelled["".join(name.split()).casefold()].append(name)
    for names in spelled.values():
        if len(names) > 1:
            each = " and ".join(f"{name!r} ({bags_of(classes[name])})" for name in names)
            message = f"the labels {each} differ in capitals or blanks alone, and are taken for different classes"
            yield Problem("label", None, f"{message}; if they are one, write them alike")


def _check_widths(report: CheckReport, seen: Sequence[Seen]) -> None:
    usual = report.width
    if usual is None or len(report.widths) < 2:
        return
    for s in seen:
        if s.width != usual:
            message = (
                f"bag {s.bag_id!r} has {s.width} features an instance but {report.widths[usual]} of {len(seen)} bags "
                f"have {usual}; all bags must come from the same encoder [file {s.where}]"
            )
            report.problems.append(Problem("width", s.bag_id, message))
