"""An open store: what comes out is what went in, without copies."""

from __future__ import annotations

import json
import mmap
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bags.stores import ROWS, WIDTH, change_json, make_manifest, rewrite, values
from qgmil.bags.bag import Bag, all_finite
from qgmil.bags.dataset import BagDataset, collate, open_bags, sample_instances
from qgmil.bags.splits import from_column
from qgmil.bags.store import is_store, open_store, verify_store
from qgmil.bags.store.layout import (
    CHECKSUMS,
    FEATURES,
    HEADER,
    INDEX,
    INSTANCE_IDS,
    MEMBERS,
    OFFSETS,
    read_header,
)
from qgmil.bags.store.pack import pack_store
from qgmil.bags.store.reading import Store, StoredRecord
from qgmil.errors import ConfigError, ManifestError, ReadError, SplitError
from qgmil.training.sampler import eval_loader

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return make_manifest(tmp_path / "data")


@pytest.fixture
def store(manifest: Path, tmp_path: Path) -> Path:
    return pack_store(manifest, tmp_path / "store").path


def records(data: BagDataset) -> list[StoredRecord]:
    return [item for item in data.items if isinstance(item, StoredRecord)]


def mapped(path: Path) -> int:
    """Bytes of a mapped file that this process has touched."""
    inside, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def widened(store: Path, rows: int, width: int) -> None:
    """Let every bag of a store have that many rows of zeros; the file has a hole and takes no room."""
    with (store / FEATURES).open("r+b") as file:
        file.truncate(4 * rows * width * 2)

    def change(said: dict) -> None:
        said.update(instances=4 * rows, width=width)
        said["files"][FEATURES]["bytes"] = 4 * rows * width * 2

    change_json(store / HEADER, change)
    rewrite(store, OFFSETS, (np.arange(5) * rows).astype("<i8").tobytes())
    for name in ("coords.bin", "instance_labels.bin", INSTANCE_IDS):
        rewrite(store, name, b"")
    change_json(store / INDEX, lambda said: said.update(coords=None, instance_labels=None, instance_ids=None))
    rewrite(store, INDEX, (store / INDEX).read_bytes())


def test_every_bag_comes_back_with_all_that_was_known(manifest: Path, store: Path) -> None:
    before, after = open_bags(manifest), open_bags(store)
    assert is_store(store) and not is_store(manifest) and not is_store(manifest.parent)
    assert (len(after), after.width, after.classes) == (4, WIDTH, ("0", "1"))
    for name in ("bag_ids", "labels", "groups"):
        assert getattr(after, name) == getattr(before, name)
    for i in range(4):
        a, b = before[i], after[i]
        assert b.features.dtype == torch.float16 and b.features.tolist() == values(i).tolist()
        assert (b.bag_id, b.label, b.patient_id, b.coord_unit) == (a.bag_id, a.label, a.patient_id, a.coord_unit)
        for name in ("coords", "instance_labels"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None)
            assert x is None or (torch.equal(x, y) and x.dtype == y.dtype), (i, name)
        assert a.instance_ids == b.instance_ids
    assert after[2].coords is not None and after[2].coords[3].tolist() == [1.5, 1.75]
    assert tuple(after[0].instance_ids or ()) == ("tile one", 'ü"\n')
    assert [r.extra for r in records(after)] == [r.extra for r in before.items]  # type: ignore[union-attr]


def test_units_and_sizes_of_tiles_come_back(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"tile_size": 512.0, "mpp": 0.25, "magnification": 20.0, "tile_mpp": 0.5}
    bag = Bag(torch.ones(1, 2), "x", "t", coords=torch.tensor([[3, 4]]), coord_unit="um", **facts)  # type: ignore[arg-type]
    monkeypatch.setattr("qgmil.bags.store.pack.open_bags", lambda *_, **__: BagDataset.from_bags([bag]))
    pack_store("anything", tmp_path / "other")
    back = open_bags(tmp_path / "other")[0]
    assert {name: getattr(back, name) for name in facts} == facts
    assert back.coord_unit == "um" and back.coords is not None and back.coords.tolist() == [[3, 4]]


def test_features_are_views_of_the_file_and_cannot_change_it(store: Path) -> None:
    data = open_bags(store)
    first, again = data[1].features, data[1].features
    assert first.data_ptr() == again.data_ptr()
    # A tensor that goes to another process takes its whole storage along: it must not be the whole file.
    assert first.untyped_storage().nbytes() == ROWS[1] * WIDTH * 2
    content = (store / FEATURES).read_bytes()
    first += 1
    assert again[0, 0] == values(1)[0, 0] + 1
    assert (store / FEATURES).read_bytes() == content and open_bags(store)[1].features[0, 0] == values(1)[0, 0]


@linux
def test_opening_reads_no_feature_and_sampling_only_its_rows(store: Path) -> None:
    widened(store, rows=2**20, width=8192)  # 64 GiB, more than the memory of most machines
    before = _read_calls()
    data = open_bags(store)
    assert _read_calls() - before < 100_000 and mapped(store / FEATURES) == 0
    bag = sample_instances(data[2], 20, seed=0, epoch=0)
    assert bag.features.shape == (20, 8192) and not bag.features.any()
    assert 20 * 2**14 <= mapped(store / FEATURES) <= 20 * 2**17  # the system reads ahead by 64 KiB
    assert len(data[3].take(torch.tensor([2**20 - 1, 5]))) == 2


def _read_calls() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_names_of_instances_are_fetched_when_somebody_looks(store: Path) -> None:
    bag = open_bags(store)[0]
    taken = bag.take(torch.tensor([1])).take(torch.tensor([0, 0]))
    with (store / INSTANCE_IDS).open("r+b") as file:
        file.write(b'["late')  # nothing was read so far
    assert len(taken) == 2
    ids = open_bags(store)[0].instance_ids
    assert ids is not None and next(iter(ids)).startswith("late") and taken.instance_ids == ('ü"\n', 'ü"\n')
    assert pickle.loads(pickle.dumps(taken.instance_ids)) == ('ü"\n',) * 2  # noqa: S301


def test_one_bag_is_packed_without_a_copy(store: Path) -> None:
    data = open_bags(store)
    bag = data[2]
    assert collate([bag], {"0": 0, "1": 1}).features.data_ptr() == bag.features.data_ptr()
    two = collate([data[2], data[0]])
    assert two.features.tolist() == np.concatenate([values(2), values(0)]).tolist()
    assert data.in_memory()[2].features.data_ptr() == bag.features.data_ptr()


def test_a_copy_for_a_worker_carries_the_path_and_not_the_bags(store: Path, manifest: Path) -> None:
    widened(store, rows=2**12, width=2048)
    data = open_bags(store)
    sent = pickle.dumps(data)
    assert len(sent) < 5000
    copy = pickle.loads(sent)  # noqa: S301
    assert copy.bag_ids == data.bag_ids and torch.equal(copy[3].features, data[3].features)
    assert copy.items[0].store is copy.items[3].store
    pack_store(manifest, store, force=True)
    with pytest.raises(ReadError, match="is another store than when it was opened first"):
        pickle.loads(sent)  # noqa: S301
    assert not data[3].features.any()  # what is open stays as it was


def test_workers_give_the_same_bags(store: Path) -> None:
    data = open_bags(store)
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=2, collate_fn=collate)
    batches = list(loader)
    assert [b.bag_ids for b in batches] == [("a", "b", "c"), ("d",)]
    assert batches[1].features.tolist() == values(3).tolist()


def test_what_comes_next_may_be_said_and_changes_nothing(store: Path) -> None:
    data = open_bags(store)
    data.will_need([3, 0])
    assert data[3].features.tolist() == values(3).tolist()
    open_bags(store, bag_per="patient").will_need([0])
    open_store(store).will_need([1, 2])


def test_other_columns_can_be_the_label_and_the_patient(store: Path) -> None:
    assert open_bags(store, label="grade", skip=["unlabelled"]).labels == ("high", "low", "high")
    with pytest.raises(ManifestError, match="1 of 4 bags have no label: 'd'"):
        open_bags(store, label="grade")
    assert open_bags(store, patient_id=None).groups == ("a", "b", "c", "d")
    assert open_bags(store, patient_id="fold").groups == ("0", "1", "0", "1")
    with pytest.raises(ManifestError, match="there is no column 'grad'; did you mean --label grade"):
        open_bags(store, label="grad")
    assert open_bags(store, label="grad", labels=False).labels == (None,) * 4


def test_a_store_opens_with_the_options_that_its_manifest_was_read_with(manifest: Path, tmp_path: Path) -> None:
    text = manifest.read_text().replace("bag_id,patient_id,label,features", "slide,case,diagnosis,uni")
    manifest.write_text(text)
    options = {"bag_id": "slide", "patient_id": "case", "label": "diagnosis", "features": "uni"}
    pack_store(manifest, tmp_path / "s", **options)
    for used in (options, {}):
        data = open_bags(tmp_path / "s", **used)
        assert (data.labels, data.groups) == (("1", "0", "1", "0"), ("p", "q", "p", "d"))
    with pytest.raises(ConfigError, match=r"packed with --features uni .* so --features conch .* cannot be opened"):
        open_bags(tmp_path / "s", features="conch")
    with pytest.raises(ConfigError, match=r"packed with its own dataset, so --dataset feats"):
        open_bags(tmp_path / "s", dataset="feats")
    with pytest.raises(ConfigError, match="its bags were named when they were packed; leave out --id grade"):
        open_bags(tmp_path / "s", bag_id="grade")


@pytest.mark.parametrize("when", ["packing", "opening", "both"])
def test_bags_per_patient(manifest: Path, tmp_path: Path, when: str) -> None:
    per = {"packing": ("patient", "bag"), "opening": ("bag", "patient"), "both": ("patient", "patient")}[when]
    pack_store(manifest, tmp_path / "s", bag_per=per[0])
    data = open_bags(tmp_path / "s", bag_per=per[1])
    assert data.bag_ids == ("p", "q", "d") and data.labels == ("1", "0", "0")
    assert data[0].features.tolist() == np.concatenate([values(0), values(2)]).tolist()
    merged = records(data)[0]
    assert merged.merged == ("a", "c") and merged.extra == {"fold": "0", "grade": "high"}
    assert merged.conflicts == {"note": ("", "y")}
    with pytest.raises(SplitError, match="the rows of patient 'p' have '', 'y'"):
        from_column(records(data), "note")
    assert {s.test for s in from_column(records(data), "fold", val=0)} == {("p",), ("q", "d")}


def test_patients_that_disagree_are_said_as_for_a_manifest(manifest: Path, tmp_path: Path) -> None:
    manifest.write_text(manifest.read_text().replace("c,p,1", "c,p,0"))
    with pytest.raises(ManifestError) as before:
        open_bags(manifest, bag_per="patient")
    pack_store(manifest, tmp_path / "s")
    with pytest.raises(ManifestError) as after:
        open_bags(tmp_path / "s", bag_per="patient")
    assert str(after.value).split(": ", 1)[1] == str(before.value).split(": ", 1)[1]


def test_what_was_skipped_on_packing_is_still_known(manifest: Path, tmp_path: Path) -> None:
    (manifest.parent / "s1.npy").unlink()
    pack_store(manifest, tmp_path / "s", skip=["missing"])
    data = open_bags(tmp_path / "s")
    assert data.bag_ids == ("a", "c", "d")
    assert [bag for bag, _ in data.skipped] == ["b"] and data.skipped[0][1].startswith("missing: ")


def test_a_sound_store_verifies(store: Path) -> None:
    told: list[tuple[int, int]] = []
    assert verify_store(store, lambda done, total: told.append((done, total))) == []
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("bag", range(4))
def test_a_flipped_bit_names_its_bag(store: Path, bag: int) -> None:
    at = sum(ROWS[: bag + 1]) * WIDTH * 2 - 1  # the last byte of the bag
    with (store / FEATURES).open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    (problem,) = verify_store(store)
    assert (problem.kind, problem.bag_id) == ("broken", "abcd"[bag])
    assert f"bag {'abcd'[bag]!r}: has changed since" in problem.message


@pytest.mark.parametrize("name", [m for m in MEMBERS if m != FEATURES])
def test_a_flipped_bit_in_any_other_file_is_found(store: Path, name: str) -> None:
    content = bytearray((store / name).read_bytes())
    content[-2] ^= 1
    (store / name).write_bytes(content)
    problems = verify_store(store)
    assert any(name in p.message for p in problems) and all(p.kind == "broken" for p in problems)
    bags = [p.bag_id for p in problems if p.bag_id is not None]
    assert bags == (["d"] if name == CHECKSUMS else [])


def test_numbers_that_are_none_are_found_by_verifying_only(store: Path) -> None:
    import hashlib

    content = bytearray((store / FEATURES).read_bytes())
    at = (sum(ROWS[:3]) + 4) * WIDTH * 2 + 2 * 2
    content[at : at + 2] = np.array([np.nan], "<f2").tobytes()
    (store / FEATURES).write_bytes(content)
    start = sum(ROWS[:3]) * WIDTH * 2
    digest = hashlib.blake2b(bytes(content[start:]), digest_size=16).digest()
    sums = (store / CHECKSUMS).read_bytes()[:48] + digest
    (store / CHECKSUMS).write_bytes(sums)
    whole = hashlib.blake2b(sums, digest_size=16).hexdigest()
    change_json(store / HEADER, lambda said: said["files"][CHECKSUMS].update(blake2b=whole))
    assert open_bags(store)[3].features[4, 2].isnan()
    (problem,) = verify_store(store)
    assert (problem.kind, problem.bag_id) == ("nan", "d")
    assert "bag 'd': feature 2 of instance 4 is nan" in problem.message


def test_what_is_no_store_verifies_to_one_problem(store: Path, tmp_path: Path) -> None:
    (store / HEADER).unlink()
    (problem,) = verify_store(store)
    assert problem.bag_id is None and "store.json: is missing" in problem.message
    with pytest.raises(ManifestError, match="is a store that was not finished"):
        open_bags(store)


def test_identity_follows_from_the_content_alone(manifest: Path, tmp_path: Path) -> None:
    one = pack_store(manifest, tmp_path / "one").header.identity
    moved = shutil.copytree(manifest.parent, tmp_path / "moved")
    assert pack_store(moved / "bags.csv", tmp_path / "two").header.identity == one
    assert read_header(tmp_path / "two").identity == one
    assert pack_store(manifest, tmp_path / "three", dtype="float32").header.identity != one
    manifest.write_text(manifest.read_text().replace("d,,0", "d,,1"))
    assert pack_store(manifest, tmp_path / "four").header.identity != one


def test_nothing_in_a_store_is_an_executable_format(store: Path) -> None:
    for path in store.iterdir():
        assert path.name in (HEADER, *MEMBERS)
        if path.suffix == ".json":
            json.loads(path.read_text())
    assert (store / FEATURES).stat().st_size == sum(ROWS) * WIDTH * 2


def test_each_bag_is_announced_a_batch_before_it_is_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_bags(store)
    told: list[tuple[str, int]] = []
    read = StoredRecord.read
    monkeypatch.setattr(Store, "will_need", lambda _, parts, rows: told.append(("announced", parts[0])))
    monkeypatch.setattr(StoredRecord, "read", lambda self: (told.append(("read", self.parts[0])), read(self))[1])
    loader = eval_loader(data, ["0", "1"], batch_size=2)
    assert [batch.bag_ids for batch in loader] == [("a", "b"), ("c", "d")]
    assert told.index(("announced", 3)) < told.index(("read", 0)) < told.index(("read", 2))
    assert sorted(i for what, i in told if what == "announced") == [0, 1, 2, 3]


def test_a_bag_of_which_little_is_wanted_is_not_fetched_whole(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widened(store, rows=1000, width=2048)
    opened = open_store(store)
    asked: list[int] = []

    class Watched:
        def madvise(self, option: int, start: int, length: int) -> None:
            assert start % 4096 == 0 and option == mmap.MADV_WILLNEED
            asked.append(length)

    watched = Watched()
    monkeypatch.setitem(opened._maps, FEATURES, watched)
    monkeypatch.setattr("qgmil.bags.store.reading.mmap.mmap", Watched)
    opened.will_need([2], rows=62)
    assert asked == []
    opened.will_need([2, 0], rows=63)
    opened.will_need([1])
    assert [round(length / 4096 / 100) for length in asked] == [10, 10, 10]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_number_that_is_none_is_seen_among_many(dtype: torch.dtype) -> None:
    for n in (1, 7, 64, 1000):
        assert all_finite(torch.full((n, 1), torch.finfo(dtype).max, dtype=dtype))
        for bad in (float("nan"), float("inf"), float("-inf")):
            for at in {0, n // 2, n - 1}:
                features = torch.randn(n, 1).to(dtype)
                features[at] = bad
                assert not all_finite(features), (n, bad, at)
