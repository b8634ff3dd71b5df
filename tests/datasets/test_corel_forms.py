"""Fox and tiger in the forms in which they go round, and files that mean harm."""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from qgmil.datasets import load_dataset
from qgmil.datasets.corel import read_bags
from qgmil.datasets.matfile import read_mat
from qgmil.errors import ManifestError, ReadError

# Four bags: the second and the fourth have a positive instance.
BAGS = [
    (np.array([[1.0, 0.0, 2.0]]), [-1]),
    (np.array([[0.0, 3.0, 0.0], [4.0, 0.0, 0.0]]), [-1, 1]),
    (np.array([[5.0, 6.0, 0.0], [0.0, 0.0, 7.0]]), [-1, -1]),
    (np.array([[8.0, 0.0, 9.0]]), [1]),
]
LABELS = ["0", "1", "0", "1"]


def cells(values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def flat() -> dict[str, Any]:
    x = np.concatenate([x for x, _ in BAGS])
    ids = [[i + 1 for i, (x, _) in enumerate(BAGS) for _ in x]]
    return {"features": x, "bag_ids": ids, "labels": [[label for _, truth in BAGS for label in truth]]}


def svm() -> str:
    lines = ["# instance:bag:label"]
    for bag, (x, truth) in enumerate(BAGS, start=1):
        for row, label in zip(x, truth, strict=True):
            pairs = " ".join(f"{i}:{v:g}" for i, v in enumerate(row, start=1) if v)
            lines.append(f"{len(lines)}:{bag}:{label} {pairs}")
    return "\n".join(lines) + "\n"


def structs() -> np.ndarray:
    array = np.empty((1, 4), dtype=[("instance", object), ("label", object), ("name", object)])
    for i, (x, truth) in enumerate(BAGS):
        array[0, i] = (x, float(max(truth)), f"bag{i}")
    return array


def prtools() -> np.ndarray:
    array = np.empty((1, 1), dtype=[("data", object), ("nlab", object), ("lablist", object), ("ident", object)])
    ident = np.empty((1, 1), dtype=[("milbag", object)])
    ident[0, 0] = (np.array(flat()["bag_ids"]).T,)
    truth = np.array(flat()["labels"]).T
    array[0, 0] = (flat()["features"], np.where(truth > 0, 2, 1), np.array(["negative", "positive"]), ident)
    return array


MATS: dict[str, dict[str, Any]] = {
    "andrews": flat(),
    "andrews_sparse": {k: csc_matrix(v) if k != "bag_ids" else v for k, v in flat().items()},
    "cell_rows": {"data": cells([v for x, t in BAGS for v in (x, float(max(t)))], (4, 2))},
    "cell_rows_instance_labels": {"data": cells([v for x, t in BAGS for v in (x, np.array([t]))], (4, 2))},
    "cells_and_labels": {"bags": cells([x for x, _ in BAGS], (4, 1)), "labels": [[0, 1, 0, 1]]},
    "structs": {"bags": structs()},
    "prtools": {"x": prtools()},
}


def check(bags: list[Any]) -> None:
    assert [b.label for b in bags] == LABELS
    assert [b.bag_id for b in bags] == ["1", "2", "3", "4"]
    for bag, (x, _) in zip(bags, BAGS, strict=True):
        assert bag.features.tolist() == x.tolist()


@pytest.mark.parametrize("form", sorted(MATS))
@pytest.mark.parametrize("compressed", [False, True])
def test_every_form_of_mat(form: str, compressed: bool, tmp_path: Path) -> None:
    savemat(tmp_path / "fox.mat", MATS[form], do_compression=compressed)
    check(read_bags(tmp_path / "fox.mat"))


def test_svm_and_csv(tmp_path: Path) -> None:
    (tmp_path / "fox.svm").write_text(svm())
    check(read_bags(tmp_path / "fox.svm"))
    rows = [f"{int(max(t) > 0)},{i},{','.join(map(str, r))}" for i, (x, t) in enumerate(BAGS, 1) for r in x.tolist()]
    (tmp_path / "fox.csv").write_text("\n".join(rows) + "\n")
    check(read_bags(tmp_path / "fox.csv"))


@pytest.mark.parametrize(
    "place", ["fox/data_100x100.svm", "MilData/Fox/data_100x100.svm", "fox_100x100.svm", "Fox/x.svm"]
)
def test_where_the_file_may_lie(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text(svm())
    loaded = load_dataset("fox", tmp_path)
    assert loaded.path == tmp_path / place
    assert len(loaded.bags) == 4
    assert loaded.notes == ("4 bags of 3 features; Andrews' set has 200 of 230",)


def test_several_forms_must_be_chosen_from(tmp_path: Path) -> None:
    (tmp_path / "tiger").mkdir()
    (tmp_path / "tiger" / "tiger.svm").write_text(svm())
    savemat(tmp_path / "tiger" / "tiger.mat", flat())
    with pytest.raises(ReadError, match=r"has 'tiger.mat', 'tiger.svm'; name one with --options.file"):
        load_dataset("tiger", tmp_path)
    tiger = load_dataset("tiger", tmp_path, file="tiger.mat").bags
    check([tiger[i] for i in range(len(tiger))])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1:1:1 1:2\n1:1 1:2\n", "line 2 is '1:1 1:2'; expected 'instance:bag:label"),
        ("1:1:1 0:2\n", "line 1 has an index below 1"),
        ("1:1:1 1:nan\n", "line 1 has an index below 1 or a value that is not finite"),
        ("1:1:1 9000000000:2\n", "the largest index, 9,000,000,000, declares"),
        ("# nothing\n", "has no instances"),
    ],
)
def test_broken_svm_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "fox.svm").write_text(text)
    with pytest.raises(ReadError, match=said):
        read_bags(tmp_path / "fox.svm")


def test_a_bag_whose_name_climbs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fox.svm").write_text("1:../../evil:1 1:2\n")
    with pytest.raises(ManifestError, match=r"bag id '../../evil' cannot be used, it contains a path separator"):
        load_dataset("fox", tmp_path)


def test_mat_files_without_bags_name_what_they_have(tmp_path: Path) -> None:
    savemat(tmp_path / "fox.mat", {"a": [[1.0]], "b": "text"})
    with pytest.raises(ReadError, match="has 'a', 'b'; expected features, bag_ids and labels"):
        read_bags(tmp_path / "fox.mat")
    savemat(tmp_path / "fox.mat", {**flat(), "labels": [[1, 0]]})
    with pytest.raises(ReadError, match="6 rows of features, 6 bag ids and 2 labels do not match"):
        read_bags(tmp_path / "fox.mat")


MUTATIONS = 150  # of each form
HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")


def element(kind: int, data: bytes, size: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if size is None else size) + data + b"\0" * (-len(data) % 8)


def array(kind: int, dims: tuple[int, ...], rest: bytes) -> bytes:
    """A variable "x" of a MATLAB class."""
    flags = element(6, struct.pack("<II", kind, 0))
    shape = element(5, struct.pack(f"<{len(dims)}i", *dims))
    return element(14, flags + shape + element(1, b"x") + rest)


def nested(depth: int) -> bytes:
    inner = array(6, (1, 1), element(9, struct.pack("<d", 1.0)))
    for _ in range(depth):
        inner = array(1, (1, 1), inner)
    return inner


HOSTILE = {
    "object": (array(3, (1, 1), b""), "is a MATLAB object or function"),
    "function": (array(16, (1, 1), b""), "is a MATLAB object or function"),
    "opaque": (array(17, (1, 1), b""), "is a MATLAB object or function"),
    "two thousand million cells": (array(1, (2**31 - 1, 1), b""), "declares 2,147,483,647 elements in 0 bytes"),
    "negative cells": (array(1, (-5, 1), b""), "the array 'x' of shape"),
    "many structs": (
        array(2, (2**30, 1), element(5, struct.pack("<i", 4)) + element(1, b"abc\0def\0")),
        "declares 2,147,483,648 elements in 0 bytes",
    ),
    "cut short": (element(14, b"\0" * 8, 4_000_000_000), "declares 4,000,000,000 bytes but 8 follow"),
    "numbers that are not there": (array(6, (2, 2), element(9, b"\0" * 8, 3_000_000_000)), "declares 3,000,000,000"),
    "deep": (nested(12), "cells inside cells, 9 deep"),
    "bomb": (element(15, zlib.compress(b"\0" * 120_000_000, 9)), "inflates to more than any honest data would"),
    "cut stream": (element(15, zlib.compress(nested(1))[:-8]), "a variable is cut short"),
    "no array": (element(9, b"\0" * 8), "an element of type 9"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_mat_files_are_refused_at_once(name: str, tmp_path: Path) -> None:
    body, said = HOSTILE[name]
    (tmp_path / "fox.mat").write_bytes(HEADER + body)
    start = time.perf_counter()
    with pytest.raises(ReadError, match=said):
        read_bags(tmp_path / "fox.mat")
    assert time.perf_counter() - start < 1.0


def test_a_well_made_file_of_this_test_is_read(tmp_path: Path) -> None:
    """The files above are refused for what they hold, not for how they are made."""
    (tmp_path / "x.mat").write_bytes(HEADER + array(6, (1, 2), element(9, struct.pack("<2d", 3.0, 4.0))))
    assert read_mat(tmp_path / "x.mat")["x"].tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 200, "is a MATLAB 7.3 file; save it with"),
        (b"MATLAB 7.3 MAT-file".ljust(200), "is a MATLAB 7.3 file"),
        (b"\0" * 200, "is not a MATLAB 5 to 7 file"),
        (b"short", "is not a MATLAB 5 to 7 file"),
    ],
)
def test_other_kinds_of_mat_are_named(raw: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(raw)
    with pytest.raises(ReadError, match=said):
        read_mat(tmp_path / "x.mat")


@pytest.mark.parametrize("form", sorted(MATS))
def test_mutated_mat_files_raise_nothing_else(form: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Bits flipped and ends cut: read, or refused with an error of ours."""
    savemat(tmp_path / "good.mat", MATS[form], do_compression=False)
    good = (tmp_path / "good.mat").read_bytes()
    for _ in range(MUTATIONS):
        raw = bytearray(good)
        for _ in range(int(rng.integers(1, 6))):
            raw[int(rng.integers(124, len(raw)))] = int(rng.integers(256))
        cut = len(raw) if rng.random() < 0.7 else int(rng.integers(100, len(raw)))
        (tmp_path / "bad.mat").write_bytes(bytes(raw[:cut]))
        try:
            read_bags(tmp_path / "bad.mat")
        except (ReadError, ManifestError, ValueError) as error:
            assert type(error).__module__.startswith("qgmil"), repr(error)
