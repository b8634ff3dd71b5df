"""Packing: types, what may go wrong halfway, and what is left then."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import signal
import subprocess
import sys
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from bags.stores import ROWS, WIDTH, make_manifest, values
from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset, open_bags
from qgmil.bags.store import is_store, verify_store
from qgmil.bags.store.layout import FEATURES, HEADER, SOURCES
from qgmil.bags.store.pack import pack_store
from qgmil.bags.store.writing import FeatureFile
from qgmil.errors import BagError, ConfigError, ReadError, RunError


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return make_manifest(tmp_path / "data")


def packed_bags(monkeypatch: pytest.MonkeyPatch, *bags: Bag) -> None:
    """Let the next packing find these bags."""
    monkeypatch.setattr("qgmil.bags.store.pack.open_bags", lambda *_, **__: BagDataset.from_bags(bags))


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_features_keep_the_type_that_they_have(manifest: Path, tmp_path: Path) -> None:
    packed = pack_store(manifest, tmp_path / "s")
    assert packed.header.dtype == torch.float16 and packed.reason == "as the files have them"
    assert (packed.header.bags, packed.header.instances, packed.header.width) == (4, sum(ROWS), WIDTH)
    assert packed.rounding.bag_id is None


def test_mixed_types_become_the_smallest_that_holds_all(manifest: Path, tmp_path: Path) -> None:
    third = values(2, np.float32) + np.float32(1 / 3)
    np.savez(manifest.parent / "s2.npz", features=third)
    packed = pack_store(manifest, tmp_path / "s")
    data = open_bags(tmp_path / "s")
    assert [data[i].features.dtype for i in range(4)] == [torch.float32] * 4
    for i in (0, 1, 3):
        assert data[i].features.tolist() == values(i).tolist()
    assert torch.equal(data[2].features, torch.from_numpy(third))
    assert packed.reason.startswith("the files differ, float16 (3 bags) and float32 (1 bags), and float32 holds every")
    assert verify_store(tmp_path / "s") == [] and packed.rounding.error == 0.0


def test_half_precision_of_two_kinds_needs_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.tensor([[1.001, -65504.0]])
    half, brain = numbers.half(), torch.tensor([[1e30, 2.0]], dtype=torch.bfloat16)
    packed_bags(monkeypatch, Bag(half, "0", "h"), Bag(brain, "1", "b"), Bag(half, "1", "i"))
    assert pack_store("m", tmp_path / "s").header.dtype == torch.float32
    monkeypatch.undo()
    data = open_bags(tmp_path / "s")
    assert torch.equal(data[0].features, half.float()) and torch.equal(data[1].features, brain.float())


@pytest.mark.parametrize("chunk", [1, 7, 2**22])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_measured_where_it_is_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, chunk: int
) -> None:
    monkeypatch.setattr("qgmil.bags.store.writing.CHUNK", chunk)
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    worst = features.clone()
    worst[33, 2] = 1000.3
    packed_bags(monkeypatch, Bag(features, "0", "x"), Bag(worst, "1", "y"), Bag(features, "0", "z"))
    packed = pack_store("m", tmp_path / "s", dtype=dtype)
    kind = getattr(torch, dtype)
    expected = float((torch.tensor(1000.3).to(kind).float() - torch.tensor(1000.3)).abs())
    assert (packed.rounding.error, packed.rounding.bag_id) == (expected, "y") and expected > 0
    assert packed.rounding.value == pytest.approx(1000.3) and packed.reason == "as asked"
    monkeypatch.undo()
    data = open_bags(tmp_path / "s")
    assert torch.equal(data[1].features, worst.to(kind)) and torch.equal(data[2].features, features.to(kind))
    assert verify_store(tmp_path / "s") == []


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        ("float16", -70000.0, "is -70000, and float16 ends at 65504; pack with --dtype bfloat16 (dtype='bfloat16' in"),
        ("bfloat16", 3.4e38, "is 3.4e+38, and bfloat16 ends at 3.38953e+38; pack with --dtype float32 (dtype="),
    ],
)
def test_a_value_that_the_type_cannot_hold_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, value: float, said: str
) -> None:
    monkeypatch.setattr("qgmil.bags.store.writing.CHUNK", 6)
    features = torch.ones(9, 3)
    features[7, 1] = value
    packed_bags(monkeypatch, Bag(torch.ones(2, 3), "0", "x"), Bag(features, "1", "y"))
    with pytest.raises(BagError, match=re.escape(f"bag 'y': feature 1 of instance 7 {said}")):
        pack_store("m", tmp_path / "s", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_one_bag_is_in_memory_at_a_time(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Bag]] = []
    most = []
    original = BagDataset.__getitem__

    def watched(self: BagDataset, index: int) -> Bag:
        gc.collect()
        most.append(sum(r() is not None for r in alive))
        bag = original(self, index)
        alive.append(weakref.ref(bag))
        return bag

    monkeypatch.setattr(BagDataset, "__getitem__", watched)
    pack_store(manifest, tmp_path / "s")
    assert len(most) == 4 and max(most) <= 1


def test_where_it_comes_from_is_written_down(manifest: Path, tmp_path: Path) -> None:
    pack_store(manifest, tmp_path / "s", dtype="float32")
    packed = json.loads((tmp_path / "s" / HEADER).read_text())["packed"]
    assert packed["from"]["path"] == str(manifest) and packed["from"]["bytes"] == manifest.stat().st_size
    assert packed["features_were"] == {"float16": 4} and packed["largest_rounding_error"]["error"] == 0.0
    age = datetime.now(UTC) - datetime.fromisoformat(packed["at"])
    assert 0 <= age.total_seconds() < 300 and re.fullmatch(r"\d+\.\d+.*", packed["qgmil"])
    sources = json.loads((tmp_path / "s" / SOURCES).read_text())
    assert [Path(s["path"]).name for s in sources] == ["s0.h5", "s1.npy", "s2.npz", "s3.npy"]
    found = (manifest.parent / "s1.npy").stat()
    assert sources[1]["bytes"] == found.st_size
    assert abs(datetime.fromisoformat(sources[1]["mtime"]).timestamp() - found.st_mtime) < 1e-3


def test_a_part_of_a_file_comes_from_that_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for i in (0, 1):
            file[f"s{i}"] = values(i)
    (tmp_path / "m.csv").write_text("bag_id,label,features\na,0,all.h5::s0\nb,1,all.h5::s1\n")
    pack_store(tmp_path / "m.csv", tmp_path / "s")
    (source,) = json.loads((tmp_path / "s" / SOURCES).read_text())
    assert source["path"] == str(tmp_path / "all.h5") and source["bytes"] == (tmp_path / "all.h5").stat().st_size
    assert open_bags(tmp_path / "s")[1].features.tolist() == values(1).tolist()


def test_a_table_bare_files_and_a_store_can_be_packed(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label,bag,f1,f2\n1,a,5,6\n0,b,6,7\n1,a,7,8\n")
    pack_store(tmp_path / "t.csv", tmp_path / "table")
    assert open_bags(tmp_path / "table")[0].features.tolist() == [[5.0, 6.0], [7.0, 8.0]]
    pack_store([manifest.parent / "s3.npy", manifest.parent / "s1.npy"], tmp_path / "bare", labels=False)
    assert open_bags(tmp_path / "bare", labels=False).bag_ids == ("s3", "s1")
    pack_store(manifest, tmp_path / "one")
    pack_store(tmp_path / "one", tmp_path / "one", dtype="bfloat16", force=True)
    again = open_bags(tmp_path / "one")
    assert again[3].features.dtype == torch.bfloat16 and tuple(again[0].instance_ids or ()) == ("tile one", 'ü"\n')
    assert verify_store(tmp_path / "one") == [] and names(tmp_path) == {"data", "t.csv", "table", "bare", "one"}


def test_a_broken_bag_leaves_nothing(manifest: Path, tmp_path: Path) -> None:
    (manifest.parent / "s2.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(ReadError, match=r"bag 'c': .*s2\.npz"):
        pack_store(manifest, tmp_path / "s")
    assert names(tmp_path) == {"data"}


def test_an_interruption_leaves_nothing(manifest: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            assert not (tmp_path / "s").exists() and (tmp_path / ".s.packing" / FEATURES).exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_store(manifest, tmp_path / "s", progress=stop)
    assert names(tmp_path) == {"data"}


def test_a_full_disk_says_how_far_it_came_and_leaves_nothing(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FeatureFile._write

    def full(self: FeatureFile, rows: torch.Tensor, state: Any) -> None:
        if len(self.sizes) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, rows, state)

    monkeypatch.setattr(FeatureFile, "_write", full)
    with pytest.raises(RunError, match=r"s: No space left on device after 2 of 4 bags; nothing was kept: make room"):
        pack_store(manifest, tmp_path / "s")
    assert names(tmp_path) == {"data"}


def test_a_file_that_the_system_cuts_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    packed_bags(monkeypatch, *(Bag(torch.ones(100, 100), str(i % 2), f"b{i}") for i in range(3)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(RunError, match=r"s: File too large after 2 of 3 bags; nothing was kept"):
            pack_store("m", tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from qgmil.bags.store import layout, writing
from qgmil.bags.store.pack import pack_store
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "bags":
    pack_store(sys.argv[1], sys.argv[2], progress=lambda done, total: done == 3 and die())
else:
    writing.sync_folder = die
    pack_store(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize("when", ["bags", "end"])
def test_a_killed_packing_leaves_no_store_and_the_next_cleans_up(manifest: Path, tmp_path: Path, when: str) -> None:
    command = [sys.executable, "-c", KILLED, str(manifest), str(tmp_path / "s"), when]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert names(tmp_path) == {"data", ".s.packing"}
    assert is_store(tmp_path / ".s.packing") == (when == "end")  # whole, but it has not got its name
    assert pack_store(manifest, tmp_path / "s").cleaned
    assert names(tmp_path) == {"data", "s"} and verify_store(tmp_path / "s") == []
    assert not pack_store(manifest, tmp_path / "s", force=True).cleaned


def test_two_programs_do_not_pack_to_one_place(manifest: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / ".s.packing").mkdir()
    with (tmp_path / ".s.packing" / "packing.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another program is packing to this place"):
            pack_store(manifest, tmp_path / "s")
        assert names(tmp_path) == {"data", ".s.packing"}
    pack_store(manifest, tmp_path / "s")
    assert names(tmp_path) == {"data", "s"} and "packing.lock" not in names(tmp_path / "s")


def test_nothing_is_replaced_silently(manifest: Path, tmp_path: Path) -> None:
    pack_store(manifest, tmp_path / "s")
    before = (tmp_path / "s" / HEADER).read_bytes()
    with pytest.raises(RunError, match=r"s is a store already: .* or replace it with --force"):
        pack_store(manifest, tmp_path / "s", dtype="float32")
    assert (tmp_path / "s" / HEADER).read_bytes() == before
    pack_store(manifest, tmp_path / "s", dtype="float32", force=True)
    assert open_bags(tmp_path / "s")[0].features.dtype == torch.float32
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for place in ("mine", "mine/thesis.txt"):
        with pytest.raises(RunError, match=r"exists already and is no store"):
            pack_store(manifest, tmp_path / place, force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    assert is_store(pack_store(manifest, tmp_path / "empty").path)


def test_a_failed_replacement_leaves_the_old_store(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_store(manifest, tmp_path / "s")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name == ".s.packing":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output"):
        pack_store(manifest, tmp_path / "s", force=True)
    assert names(tmp_path) == {"data", "s"} and verify_store(tmp_path / "s") == []


def test_killed_between_taking_away_and_putting_there(manifest: Path, tmp_path: Path) -> None:
    pack_store(manifest, tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / ".s.replaced")
    (manifest.parent / "s1.npy").write_bytes(b"broken")
    with pytest.raises(ReadError):
        pack_store(manifest, tmp_path / "s")
    assert names(tmp_path) == {"data", "s"} and verify_store(tmp_path / "s") == []


def test_types_that_no_store_has(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'int8'; it must be one of float16, bfloat16, float32"):
        pack_store(manifest, tmp_path / "s", dtype="int8")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(RunError, match="cannot be written"):
            pack_store(manifest, tmp_path / "closed" / "s")
    with pytest.raises(RunError, match=r"cannot be written \(Not a directory\)|exists already"):
        pack_store(manifest, manifest / "s")


def test_what_says_how_features_were_made_comes_along_and_no_link_does(manifest: Path, tmp_path: Path) -> None:
    said = manifest.parent / "extract.json"
    said.write_text('{"encoder": "x"}')
    pack_store(manifest, tmp_path / "s")
    assert (tmp_path / "s" / "extract.json").read_text() == said.read_text()
    verify_store(tmp_path / "s")
    said.rename(tmp_path / "secret.json")
    said.symlink_to(tmp_path / "secret.json")
    pack_store(manifest, tmp_path / "s", force=True)
    assert "extract.json" not in names(tmp_path / "s")
    said.unlink()
    said.write_bytes(b"\xff\xfe")
    with pytest.raises(ReadError, match=r"extract\.json: cannot be read .*; make it readable, or move it away"):
        pack_store(manifest, tmp_path / "t")
    said.write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ReadError, match=r"extract\.json: has 1,048,577 bytes, it is not from qgmil extract"):
        pack_store(manifest, tmp_path / "t")
    assert names(tmp_path) == {"data", "s", "secret.json"}  # nothing is left of it
