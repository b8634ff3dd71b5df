"""Stores that lie: each is refused by a named error, at once, and without allocating what it claims."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bags.stores import ROWS, change_json, make_manifest, rewrite
from qgmil.bags.dataset import open_bags
from qgmil.bags.store import open_store, verify_store
from qgmil.bags.store.layout import (
    CHECKSUMS,
    COORDS,
    FEATURES,
    HEADER,
    INDEX,
    INSTANCE_IDS,
    INSTANCE_LABELS,
    MEMBERS,
    OFFSETS,
)
from qgmil.bags.store.pack import pack_store
from qgmil.errors import QGMILError, ReadError

OFFSETS_OF = [0, *np.cumsum(ROWS).tolist()]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return pack_store(make_manifest(tmp_path / "data"), tmp_path / "store").path


def refused(store: Path, said: str) -> None:
    """Opening and verifying say the same at once."""
    before = _peak()
    started = time.process_time()
    with pytest.raises(ReadError, match=said) as caught:
        open_bags(store)
    (problem,) = verify_store(store)
    assert time.process_time() - started < 1.0
    assert _peak() - before < 50 * 2**20
    assert problem.kind == "broken" and str(caught.value) == problem.message and str(store) in problem.message


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def header(store: Path, **values: Any) -> None:
    change_json(store / HEADER, lambda said: said.update(values))


def index(store: Path, **values: Any) -> None:
    content = json.loads((store / INDEX).read_text()) | values
    rewrite(store, INDEX, json.dumps(content).encode())


def offsets(store: Path, values: list[int]) -> None:
    rewrite(store, OFFSETS, np.array(values, "<i8").tobytes())


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("change", [-1, 4096])
def test_a_file_of_another_size(store: Path, name: str, change: int) -> None:
    size = (store / name).stat().st_size
    os.truncate(store / name, max(0, size + change))
    refused(store, rf"{name}: has [\d,]+ bytes where store\.json says {size:,}")


@pytest.mark.parametrize("name", [HEADER, *MEMBERS])
def test_a_file_that_is_not_there(store: Path, name: str) -> None:
    (store / name).unlink()
    if name == HEADER:
        with pytest.raises(ReadError, match=r"store\.json: is missing from the store"):
            open_store(store)
    else:
        refused(store, rf"{name}: is missing from the store")


@pytest.mark.parametrize("name", [HEADER, *MEMBERS])
def test_a_link_is_not_followed(store: Path, tmp_path: Path, name: str) -> None:
    (store / name).rename(tmp_path / "outside")
    (store / name).symlink_to(tmp_path / "outside")
    refused(store, rf"{name}: is a link; a store keeps its own files")


@pytest.mark.parametrize("name", [OFFSETS, FEATURES, INDEX])
def test_a_pipe_is_not_waited_for(store: Path, name: str) -> None:
    (store / name).unlink()
    os.mkfifo(store / name)
    refused(store, rf"{name}: is not a regular file")


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ([0, 2, 5, 9, 15], 4),
        ([0, 2, 5, 9, 13], 4),
        ([1, 2, 5, 9, 14], 0),
        ([-(2**63), 2, 5, 9, 14], 0),
        ([0, -1, 5, 9, 14], 1),
        ([0, 2**63 - 1, 5, 9, 14], 1),
        ([0, 5, 2, 9, 14], 2),
        ([0, 2, 2, 9, 14], 2),
    ],
)
def test_offsets_that_do_not_rise_from_nothing_to_all(store: Path, values: list[int], at: int) -> None:
    assert OFFSETS_OF == [0, 2, 5, 9, 14]
    offsets(store, values)
    refused(store, rf"offsets\.bin: entry {at} is {values[at]}; the entries must rise from 0 to 14")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"instances": 10**15}, r"so features\.bin should have 12,000,000,000,000,000 bytes"),
        ({"width": 2**40}, r"so features\.bin should have"),
        ({"width": 10**4000}, r"so features\.bin should have"),
        ({"bags": 10**15}, r"so offsets\.bin should have 8,000,000,000,000,008 bytes"),
        ({"bags": 3}, r"so offsets\.bin should have 32 bytes, but it is given 40"),
        ({"bags": 0}, "bags is 0; expected a whole number"),
        ({"instances": -14}, "instances is -14"),
        ({"width": 6.0}, r"width is 6\.0"),
        ({"width": True}, "width is True"),
        ({"bags": "4"}, "bags is '4'"),
        ({"bags": None}, "bags is None"),
        ({"bags": [[]] * 1000}, r"bags is \[\[\]"),
        ({"dtype": "object"}, "dtype is 'object'; expected one of 'float16'"),
        ({"dtype": ["float16"]}, r"store\.json"),
        ({"dtype": "float32"}, r"so features\.bin should have 336 bytes, but it is given 168"),
        ({"version": 2}, "the store has version 2 and this qgmil reads version 1"),
        ({"format": "zarr"}, "is not the header of a store"),
        ({"files": []}, r"files are \[\]"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "blake2b": None}}}, "files are"),
    ],
)
def test_headers_that_lie(store: Path, values: dict[str, Any], said: str) -> None:
    sys.set_int_max_str_digits(0)
    try:
        header(store, **values)
    finally:
        sys.set_int_max_str_digits(4300)
    refused(store, said)


@pytest.mark.parametrize(
    "entry", [None, 5, {"bytes": -1}, {"bytes": "1"}, {"bytes": 1.5}, {"bytes": 168, "blake2b": 3}]
)
def test_entries_of_files_that_lie(store: Path, entry: Any) -> None:
    change_json(store / HEADER, lambda said: said["files"].update({FEATURES: entry}))
    refused(store, r"files has .* for 'features\.bin'; expected bytes and blake2b")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff\xfe\x00", b"[]", b"null", b'{"format": NaN}', b"9" * 5000]
)
def test_headers_that_are_none(store: Path, content: bytes) -> None:
    (store / HEADER).write_bytes(content)
    refused(store, r"store\.json")


def _sparse(path: Path, size: int) -> None:
    path.write_bytes(b"")
    os.truncate(path, size)


def test_files_of_holes_are_not_read(store: Path) -> None:
    _sparse(store / HEADER, 2**40)
    refused(store, r"store\.json: has 1,099,511,627,776 bytes, more than")


def test_an_index_of_holes_is_not_read(store: Path) -> None:
    _sparse(store / INDEX, 2**40)
    change_json(store / HEADER, lambda said: said["files"][INDEX].update(bytes=2**40))
    refused(store, r"index\.json: has 1,099,511,627,776 bytes, more than")


def test_offsets_of_holes_are_not_read(store: Path) -> None:
    bags = 2**36
    _sparse(store / OFFSETS, 8 * (bags + 1))
    _sparse(store / CHECKSUMS, 16 * bags)
    header(store, bags=bags)
    for name in (OFFSETS, CHECKSUMS):
        size = (store / name).stat().st_size
        change_json(store / HEADER, lambda said, n=name, s=size: said["files"][n].update(bytes=s))
    refused(store, r"index\.json: column 'bag_ids' has 4 entries for 68719476736 bags")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bag_ids": ["a", "b", "c"]}, "column 'bag_ids' has 3 entries for 4 bags"),
        ({"bag_ids": None}, "column 'bag_ids' has a NoneType"),
        ({"bag_ids": {"a": 1}}, "column 'bag_ids' has a dict"),
        ({"bag_ids": ["a", "b", "c", 4]}, "column 'bag_ids' holds a int for bag 3"),
        ({"bag_ids": ["a", "b", "c", "../d"]}, "bag id '../d' cannot be used, it contains a path separator"),
        ({"bag_ids": ["a", "b", "c", ".."]}, r"bag id '\.\.' cannot be used"),
        ({"bag_ids": ["a", "b", "c", "."]}, r"bag id '\.' cannot be used"),
        ({"bag_ids": ["a", "b", "c", " "]}, "bag id ' ' cannot be used, it is blank"),
        ({"bag_ids": ["a", "b", "c", "d\u202e"]}, "control or invisible characters"),
        ({"bag_ids": ["a", "b", "c", "d\n"]}, "control or invisible characters"),
        ({"bag_ids": ["a", "b", "c", "a"]}, "two bags have one id"),
        ({"labels": ["1", "0", "1", "0\n"]}, "it contains a line break"),
        ({"labels": [1, 0, 1, 0]}, "column 'labels' holds a int for bag 0"),
        ({"patient_ids": "pqpd"}, "column 'patient_ids' has a str"),
        ({"extra": {"fold": ["0"]}}, "column 'fold' has 1 entries"),
        ({"extra": [1]}, "'extra' holds a list"),
        ({"columns": {"label": 3}}, "'columns' holds something that is no text"),
        ({"conflicts": {"4": {}}}, "'conflicts' names a bag that is not there"),
        ({"conflicts": {"-1": {}}}, "'conflicts' names a bag that is not there"),
        ({"conflicts": {"0": {"fold": [1]}}}, "'conflicts' should hold lists of texts"),
        ({"merged": {"0": "ab"}}, "'merged' should hold lists of texts"),
        ({"skipped": [["a"]]}, "'skipped' cannot be understood"),
        ({"coords": ["object", None, None, None]}, "column 'coords' holds 'object'"),
        ({"coords": ["int64"] * 4}, r"coords\.bin: has 96 bytes where the index of the bags asks for 224"),
        ({"coord_unit": ["parsec"] * 4}, "column 'coord_unit' holds 'parsec'"),
        ({"tile_facts": {"mpp": [0.0] * 4}}, "column 'mpp' holds '0.0'"),
        ({"tile_facts": {"mpp": [float("nan")] * 4}}, "column 'mpp' holds 'nan'"),
        ({"tile_facts": {"mpp": [10**400] * 4}}, r"index\.json"),
        ({"tile_facts": 5}, "'tile_facts' holds a int"),
        ({"instance_labels": [2, 0, 0, 0]}, "column 'instance_labels' holds '2'"),
        ({"instance_labels": [1, 1, 1, 1]}, r"instance_labels\.bin: has 16 bytes where .* asks for 112"),
        ({"instance_ids": [-1, 0, 0, 0]}, "column 'instance_ids' holds '-1'"),
        (
            {"instance_ids": [2**61] * 4},
            r"instance_ids\.bin: has \d+ bytes where .* asks for 9,223,372,036,854,775,808",
        ),
        ({"instance_ids": [10**30, 0, 0, 0]}, "column 'instance_ids' holds"),
        ({"instance_ids": [True, 0, 0, 0]}, "column 'instance_ids' holds a bool"),
    ],
)
def test_indices_that_lie(store: Path, values: dict[str, Any], said: str) -> None:
    index(store, **values)
    refused(store, said)


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"[]", b"\x80", b"{}", b'{"bag_ids": [' + b"9" * 5000 + b"]}"]
)
def test_indices_that_are_none(store: Path, content: bytes) -> None:
    rewrite(store, INDEX, content)
    refused(store, r"index\.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b"[" * len(raw),
        lambda raw: b"\xff" * len(raw),
        lambda raw: b"5".ljust(len(raw)),
        lambda raw: b'["one"]'.ljust(len(raw)),
        lambda raw: b"[1,2]".ljust(len(raw)),
    ],
)
def test_names_of_instances_that_lie(store: Path, change: Callable[[bytes], bytes]) -> None:
    rewrite(store, INSTANCE_IDS, change((store / INSTANCE_IDS).read_bytes()))
    ids = open_bags(store)[0].instance_ids
    assert ids is not None and len(ids) == 2
    with pytest.raises(ReadError, match=r"instance_ids\.bin"):
        list(ids)


@pytest.mark.parametrize("name", [HEADER, INDEX, OFFSETS, INSTANCE_IDS])
def test_whatever_bytes_change_a_named_error_or_bags_come_out(store: Path, name: str) -> None:
    rng = np.random.default_rng(sum(name.encode()))
    whole, header_before = (store / name).read_bytes(), (store / HEADER).read_bytes()
    outcomes = []
    for _ in range(150):
        content = bytearray(whole)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            content[at] = rng.integers(0, 256) if rng.random() < 0.5 else ord(rng.choice(list('0123456789-[]{}",.eN')))
        if name == HEADER:
            (store / HEADER).write_bytes(content)
        else:  # with a header that agrees, as an attacker would write it
            (store / HEADER).write_bytes(header_before)
            rewrite(store, name, bytes(content))
        try:
            data = open_bags(store)
            for i in range(len(data)):
                assert len(data[i]) == len(list(data[i].instance_ids or range(len(data[i]))))
            outcomes.append("read")
        except QGMILError:
            outcomes.append("refused")
    assert outcomes.count("refused") >= 15, "mutations that break nothing test nothing"


def test_rows_stay_inside_their_files(store: Path) -> None:
    """What a bag may ask for is bounded when the store is opened: every slice of every bag is inside."""
    opened = open_store(store)
    assert opened.offsets.tolist() == OFFSETS_OF
    assert (store / COORDS).stat().st_size == (2 + 4) * 16 and (store / INSTANCE_LABELS).stat().st_size == 2 * 8
    for i in range(4):
        bag = opened.bag(i, bag_id="x", label=None, patient_id=None)
        assert len(bag) == ROWS[i] and (bag.coords is None) == (i in (1, 3))
