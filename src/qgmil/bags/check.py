"""`check_bags`: read every bag once and list everything that is wrong, instead of stopping at the first."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from qgmil.bags import hints
from qgmil.bags.bag import Bag
from qgmil.bags.manifest import BagRecord
from qgmil.bags.problems import Problem, sorted_labels
from qgmil.bags.readers import BagFile, EmptyBagError, LockedFileError, MissingFileError, listing, read_bag_file
from qgmil.bags.source import Item, PathLikes, items_per_patient, scan_source
from qgmil.errors import BagError, ConfigError, ReadError

FEW_PATIENTS = 5  # fewer of a class cannot fill the usual five folds


@dataclass
class CheckReport:
    """What a table of bags holds, and what is wrong with it.

    Args:
        source: what was checked.
        bags: usable rows of the table, whether or not their files could be read.
        classes: bags of each label, sorted; unlabelled bags are not in it.
        patients: different patients (a bag without one is its own).
        readable: bags whose files could all be read.
        instances_min, instances_median, instances_max, instances_total: over the readable bags.
        widths: bags of each feature width.
        dtypes: bags of each type of features, as text ("float16").
        with_coords: bags whose every file has coordinates.
        bytes: size of the features in memory, as stored.
        problems: errors: training on these bags would fail or lie.
        warnings: what may be as it should be, and deserves a look.
    """

    source: str
    bags: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    patients: int = 0
    readable: int = 0
    instances_min: int = 0
    instances_median: float = 0.0
    instances_max: int = 0
    instances_total: int = 0
    widths: dict[int, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    with_coords: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no problems (warnings may be)."""
        return not self.problems


@dataclass(frozen=True)
class _Seen:
    """What is remembered of a bag once its features are dropped."""

    bag_id: str
    where: str
    instances: int
    width: int
    dtype: str
    has_coords: bool
    size: int
    digest: str


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
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read everything once and report; options as for `open_bags`.

    Kinds of problems: "missing", "locked", "broken", "empty", "nan", "width", "duplicate-id", "bad-id", "label",
    "unlabelled", "class", "number", "table". Kinds of warnings: "identical", "few", "patient".

    Args:
        progress: called with (bags done, bags in all).

    Raises:
        ManifestError: the table cannot be read, or lacks a column.
        ConfigError: an unknown `bag_per`.
    """
    if bag_per not in ("bag", "patient"):
        raise ConfigError(f"--bag-per (bag_per in Python) is {bag_per!r}; it must be 'bag' or 'patient'")
    source = scan_source(path, features=features, label=label, bag_id=bag_id, patient_id=patient_id, labels=labels)
    items, problems = source.items, list(source.problems)
    if bag_per == "patient":
        items, more = items_per_patient(items)
        problems += more
    report = CheckReport(str(source.path), problems=problems)
    _count_labels(report, items, labels)
    seen = []
    for done, item in enumerate(items, start=1):
        found = _inspect(item, report.problems, format, dataset)
        if found is not None:
            seen.append(found)
        if progress is not None:
            progress(done, len(items))
    _summarise(report, seen)
    _check_widths(report, seen)
    _find_identical(report, seen, items)
    return report


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
            message = f"class {name!r} has one patient ({bags} bags): it cannot be both trained and tested on"
            report.problems.append(Problem("class", None, message))
        elif patients < FEW_PATIENTS:
            message = f"class {name!r} has only {patients} patients ({bags} bags): use at most {patients} folds"
            report.warnings.append(Problem("few", None, message))
    by_group: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.label is not None:
            by_group[item.group].add(item.label)
    if several := [g for g, found in by_group.items() if len(found) > 1]:
        message = f"{len(several)} patients have bags of several classes: {listing(several)}"
        report.warnings.append(Problem("patient", None, message))


def _inspect(item: Item, problems: list[Problem], format: str | None, dataset: str | None) -> _Seen | None:
    """Read one bag, file by file; None where any of them cannot be used."""
    parts = []
    bad = False
    for where, load in _parts(item, format, dataset):
        try:
            part = load()
            Bag(part.features, bag_id=item.bag_id).check_finite()
            parts.append((where, part))
        except (ReadError, BagError) as error:
            kind = _kind(error)
            text = str(error) if repr(item.bag_id) in str(error) else f"bag {item.bag_id!r}: {error}"
            problems.append(Problem(kind, item.bag_id, text if where in text else f"{text} [file {where}]"))
            bad = True
    if bad or not parts:
        return None
    widths = {part.features.shape[1] for _, part in parts}
    if len(widths) > 1:
        each = ", ".join(f"{where} has {part.features.shape[1]}" for where, part in parts)
        problems.append(Problem("width", item.bag_id, f"the files of bag {item.bag_id!r} differ in width: {each}"))
        return None
    tensors = [part.features for _, part in parts]
    return _Seen(
        bag_id=item.bag_id,
        where=parts[0][0],
        instances=sum(t.shape[0] for t in tensors),
        width=tensors[0].shape[1],
        dtype="/".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors})),
        has_coords=all(part.coords is not None for _, part in parts),
        size=sum(t.numel() * t.element_size() for t in tensors),
        digest=_digest(tensors),
    )


def _parts(item: Item, format: str | None, dataset: str | None) -> Iterator[tuple[str, Callable[[], BagFile]]]:
    if isinstance(item, Bag):
        yield "", lambda: BagFile(item.features, coords=item.coords)
        return
    for path in item.files:
        yield str(path), lambda path=path: read_bag_file(path, format=format, dataset=dataset)  # type: ignore[misc]


def _kind(error: ReadError | BagError) -> str:
    if isinstance(error, EmptyBagError):
        return "empty"
    if isinstance(error, MissingFileError):
        return "missing"
    if isinstance(error, LockedFileError):
        return "locked"
    return "broken" if isinstance(error, ReadError) else "nan"


def _digest(tensors: list[Tensor]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


def _summarise(report: CheckReport, seen: list[_Seen]) -> None:
    report.readable = len(seen)
    if not seen:
        return
    sizes = [s.instances for s in seen]
    report.instances_min, report.instances_max, report.instances_total = min(sizes), max(sizes), sum(sizes)
    report.instances_median = float(statistics.median(sizes))
    report.widths = dict(sorted(Counter(s.width for s in seen).items()))
    report.dtypes = dict(sorted(Counter(s.dtype for s in seen).items()))
    report.with_coords = sum(s.has_coords for s in seen)
    report.bytes = sum(s.size for s in seen)


def _check_widths(report: CheckReport, seen: list[_Seen]) -> None:
    if len(report.widths) < 2:
        return
    usual = max(report.widths, key=lambda w: report.widths[w])
    for s in seen:
        if s.width != usual:
            message = (
                f"bag {s.bag_id!r} has {s.width} features an instance but {report.widths[usual]} of {len(seen)} bags "
                f"have {usual}; all bags must come from the same encoder [file {s.where}]"
            )
            report.problems.append(Problem("width", s.bag_id, message))


def _find_identical(report: CheckReport, seen: list[_Seen], items: tuple[Item, ...]) -> None:
    by_digest: dict[str, list[str]] = defaultdict(list)
    for s in seen:
        by_digest[s.digest].append(s.bag_id)
    by_id = {item.bag_id: item for item in items}
    for same in by_digest.values():
        if len(same) < 2:
            continue
        several = len({by_id[i].group for i in same}) > 1
        leak = "; they belong to different patients, so a split may put one in training and one in the test" * several
        clash = "; their labels differ" * (len({by_id[i].label for i in same}) > 1)
        message = f"bags {listing(same)} have identical features{clash}{leak}"
        report.warnings.append(Problem("identical", same[0], message))
