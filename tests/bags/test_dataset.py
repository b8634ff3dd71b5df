"""Bags by index: laziness, checks, skipping, sampling, collation."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import shared_data
from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset, collate, open_bags, sample_instances
from qgmil.errors import BagError, ConfigError, ManifestError, ReadError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four bags of three patients; bag i is filled with i."""
    for i, rows in enumerate((2, 3, 4, 5)):
        np.save(tmp_path / f"s{i}.npy", np.full((rows, 6), i, np.float16))
    (tmp_path / "bags.csv").write_text(
        "bag_id,patient_id,label,features\na,p,1,s0.npy\nb,q,0,s1.npy\nc,p,1,s2.npy\nd,r,0,s3.npy;s0.npy\n"
    )
    return tmp_path


def test_bags_come_by_index_with_all_that_is_known(folder: Path) -> None:
    data = open_bags(folder / "bags.csv")
    assert (len(data), data.width, data.classes, data.groups) == (4, 6, ("0", "1"), ("p", "q", "p", "r"))
    bag = data[1]
    assert (bag.bag_id, bag.label, bag.patient_id, len(bag)) == ("b", "0", "q", 3)
    assert torch.equal(bag.features, torch.full((3, 6), 1.0, dtype=torch.float16))
    assert data[3].features[:, 0].tolist() == [3.0] * 5 + [0.0] * 2
    assert data[-1].bag_id == "d"
    with pytest.raises(IndexError):
        data[4]


def test_nothing_is_read_before_it_is_asked_for(folder: Path) -> None:
    data = open_bags(folder / "bags.csv")
    (folder / "s1.npy").write_bytes(b"not numpy at all")
    assert data[0].bag_id == "a"
    with pytest.raises(ReadError, match=r"bag 'b': .*s1\.npy"):
        data[1]


def test_pickling_carries_the_recipe_and_not_the_cache(folder: Path) -> None:
    data = open_bags(folder / "bags.csv", in_memory=True)
    assert data[0] is data[0]
    (folder / "s0.npy").unlink()
    assert data.subset([0])[0] is data[0]
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert copy.bag_ids == data.bag_ids
    assert len(copy[1]) == 3
    with pytest.raises(ReadError, match=r"bag 'a': .*s0\.npy"):
        copy[0]


def test_workers_give_the_same_bags(folder: Path) -> None:
    data = open_bags(folder / "bags.csv")
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=1, collate_fn=collate)
    batches = list(loader)
    assert [b.bag_ids for b in batches] == [("a", "b", "c"), ("d",)]
    assert batches[0].sizes == (2, 3, 4)


def kept(bags: list[Bag]) -> int:
    info = torch.utils.data.get_worker_info()
    assert info is not None and len(bags) == 1
    return len(info.dataset._cache or ())


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_keep_nothing_of_what_they_read(folder: Path, context: str) -> None:
    data = open_bags(folder / "bags.csv", in_memory=True)
    loader = torch.utils.data.DataLoader(
        data, num_workers=1, collate_fn=kept, persistent_workers=True, multiprocessing_context=context
    )
    assert [list(loader), list(loader)] == [[0] * 4] * 2


def test_a_copy_keeps_only_what_is_in_memory_anyway(folder: Path) -> None:
    copy = pickle.loads(pickle.dumps(open_bags(folder / "bags.csv", in_memory=True)))  # noqa: S301
    assert copy[1] is not copy[1]
    bags = BagDataset.from_bags([Bag(torch.ones(2, 3), bag_id="x")]).in_memory()
    copy = pickle.loads(pickle.dumps(bags))  # noqa: S301
    assert copy[0] is copy[0] and copy._cache == {"x": copy[0]}


@pytest.mark.parametrize(("bad", "said"), [(np.nan, "nan"), (np.inf, "inf")])
def test_numbers_that_are_none_name_bag_and_file(folder: Path, bad: float, said: str) -> None:
    values = np.zeros((3, 6), np.float32)
    values[2, 4] = bad
    np.save(folder / "s1.npy", values)
    with pytest.raises(BagError, match=rf"bag 'b': feature 4 of instance 2 is {said}.*s1\.npy"):
        open_bags(folder / "bags.csv")[1]
    bags = [Bag(torch.from_numpy(values), bag_id="x")]
    with pytest.raises(BagError, match="bag 'x': feature 4 of instance 2"):
        BagDataset.from_bags(bags)[0]


def test_another_width_names_bag_and_file(folder: Path) -> None:
    np.save(folder / "s3.npy", np.zeros((3, 7), np.float32))
    data = open_bags(folder / "bags.csv")
    with pytest.raises(BagError, match=r"bag 'd' has 7 features an instance where 6 are expected.*s3\.npy"):
        data[3]
    with pytest.raises(BagError, match=r"bag 'a' has 6 .* where 5 are expected.*s0\.npy"):
        open_bags(folder / "bags.csv", width=5)[0]
    bags = [Bag(torch.ones(1, 2), bag_id="x"), Bag(torch.ones(1, 3), bag_id="y")]
    with pytest.raises(BagError, match="bag 'y' has 3"):
        BagDataset.from_bags(bags)[1]


def test_subsets_by_position_and_by_id(folder: Path) -> None:
    data = open_bags(folder / "bags.csv")
    assert data.subset([2, 0]).bag_ids == ("c", "a")
    assert data.subset(["d", "b"]).bag_ids == ("d", "b")
    for wrong in (["zz"], [4], []):
        with pytest.raises(ManifestError):
            data.subset(wrong)


def test_bags_per_patient(folder: Path) -> None:
    data = open_bags(folder / "bags.csv", bag_per="patient")
    assert data.bag_ids == ("p", "q", "r")
    assert data[0].features[:, 0].tolist() == [0.0, 0.0, 2.0, 2.0, 2.0, 2.0]
    (folder / "t.csv").write_text("label,bag,patient_id,f\n1,a,p,5\n0,b,q,6\n1,c,p,7\n")
    table = open_bags(folder / "t.csv", bag_per="patient")
    assert table.bag_ids == ("p", "q") and table[0].features.tolist() == [[5.0], [7.0]]


def test_what_is_not_skipped_is_an_error(folder: Path) -> None:
    (folder / "s1.npy").unlink()
    with pytest.raises(ReadError, match=r"bag 'b': .*s1\.npy: no such file"):
        open_bags(folder / "bags.csv")
    (folder / "u.csv").write_text("bag_id,label,features\na,,s0.npy\nb,1,s2.npy\n")
    with pytest.raises(ManifestError, match="1 of 2 bags have no label: 'a'"):
        open_bags(folder / "u.csv")
    assert open_bags(folder / "u.csv", labels=False).labels == (None, "1")
    for wrong in ({"skip": {"nan"}}, {"skip": "empty"}, {"bag_per": "slide"}):
        with pytest.raises(ConfigError):
            open_bags(folder / "u.csv", **wrong)  # type: ignore[arg-type]


def test_what_is_skipped_is_recorded(folder: Path) -> None:
    np.save(folder / "none.npy", np.zeros((0, 6), np.float32))
    (folder / "s3.npy.lock").touch()
    (folder / "m.csv").write_text(
        "bag_id,label,features\na,1,s0.npy\ne,0,none.npy\nu,,s1.npy\ng,0,gone.npy\nw,0,s3.npy\nh,0,s2.npy;none.npy\n"
    )
    data = open_bags(folder / "m.csv", skip={"empty", "unlabelled", "missing"})
    assert data.bag_ids == ("a", "h")
    assert len(data[1]) == 4
    reasons = dict(data.skipped)
    assert list(reasons) == ["e", "u", "g", "w", "h"]
    assert reasons["e"] == "empty: 'none.npy'; it has no instances"
    assert reasons["u"].startswith("unlabelled") and "gone.npy" in reasons["g"] and "being written" in reasons["w"]
    assert reasons["h"] == "empty: 'none.npy'; its other 1 files are used"
    with pytest.raises(BagError, match=r"bag 'e': .*none\.npy: is empty"):
        open_bags(folder / "m.csv", skip=["unlabelled", "missing"])[1]
    (folder / "e.csv").write_text("bag_id,label,features\ne,0,none.npy\n")
    with pytest.raises(ManifestError, match="no bags are left, all 1 were skipped"):
        open_bags(folder / "e.csv", skip=["empty"])


def test_a_blank_file_cell_is_a_missing_file(folder: Path) -> None:
    text = "bag_id,label,features,resnet\na,1,s0.npy,s0.npy\nb,0,s1.npy,\nc,0,s2.npy,s2.npy\n"
    (folder / "m.csv").write_text(text)
    with pytest.raises(
        ManifestError, match=r"line 3: bag 'b' names no feature file; name it, or --skip missing \(skip="
    ):
        open_bags(folder / "m.csv", features="resnet", skip={"empty"})
    data = open_bags(folder / "m.csv", features="resnet", skip={"missing"})
    assert data.bag_ids == ("a", "c") and data.skipped == (("b", "missing: it names no feature file"),)
    (folder / "m.csv").write_text(text + "c,0,s2.npy,s2.npy\n")
    with pytest.raises(ManifestError, match="'c' is there 2 times"):
        open_bags(folder / "m.csv", features="resnet", skip={"missing"})
    (folder / "m.csv").write_text("bag_id,label,features\na,1,\n")
    with pytest.raises(ManifestError, match="no bags are left, all 1 were skipped"):
        open_bags(folder / "m.csv", skip={"missing"})


def test_a_named_column_of_files_makes_a_manifest_of_any_table(folder: Path) -> None:
    (folder / "m.csv").write_text("bag,label,age,size,grade,slide_file\na,1,50,3,2,s0.npy\nb,0,60,4,1,s1.npy\n")
    data = open_bags(folder / "m.csv", bag_id="bag", features="slide_file")
    assert [len(b) for b in data] == [2, 3]
    with pytest.raises(ManifestError, match="no column 'files'"):
        open_bags(folder / "m.csv", bag_id="bag", features="files")


def test_a_long_table_may_call_its_bags_anything(folder: Path) -> None:
    (folder / "t.csv").write_text("label,smear,f1,f2\n1,a,5,6\n0,b,6,7\n")
    assert open_bags(folder / "t.csv", bag_id="smear")[1].features.tolist() == [[6.0, 7.0]]


def test_prediction_needs_neither_labels_nor_patients(folder: Path) -> None:
    (folder / "m.csv").write_text("bag_id,case_id,features\na,p,s0.npy\n")
    (folder / "t.csv").write_text("bag,f1,f2\na,5,6\n")
    for name in ("m.csv", "t.csv"):
        for patient in ("patient_id", "patient", None):
            data = open_bags(folder / name, label="grade", patient_id=patient, labels=False)
            assert (data.labels, data.groups, len(data)) == ((None,), ("a",), 1)
        with pytest.raises(ManifestError, match="no column 'grade'"):
            open_bags(folder / name, label="grade")


def test_empty_bags_are_found_without_reading_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (("a", 2), ("b", 0)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["features"] = np.ones((rows, 3), np.float32)
    (tmp_path / "m.csv").write_text("bag_id,label,features\na,0,a.h5\nb,0,b.h5\n")
    monkeypatch.setattr("qgmil.bags.readers.h5.read_array", None)
    assert open_bags(tmp_path / "m.csv", skip=["empty"]).bag_ids == ("a",)


def test_bare_files_for_prediction(folder: Path) -> None:
    assert open_bags(folder, labels=False).bag_ids == ("s0", "s1", "s2", "s3")
    assert open_bags([folder / "s2.npy", folder / "s0.npy"], labels=False).bag_ids == ("s2", "s0")
    assert len(open_bags(folder / "s2.npy", labels=False)[0]) == 4
    for wrong in (folder, folder / "s2.npy", [folder / "s2.npy"]):
        with pytest.raises(ManifestError, match="feature files alone have no labels"):
            open_bags(wrong)


def test_long_tables_open_too(folder: Path) -> None:
    (folder / "t.csv").write_text("1,a,5,6\n0,b,6,7\n")
    data = open_bags(folder / "t.csv")
    assert data.classes == ("0", "1") and data.width == 2 and data[1].features.tolist() == [[6.0, 7.0]]


def numbered(n: int, bag_id: str = "bag") -> Bag:
    return Bag(torch.arange(float(n))[:, None], bag_id=bag_id, instance_ids=tuple(str(i) for i in range(n)))


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**40), st.integers(0, 50))
def test_sampling_draws_without_replacement_in_row_order(n: int, k: int, seed: int, epoch: int) -> None:
    rows = [int(r) for r in sample_instances(numbered(n), k, seed=seed, epoch=epoch).features[:, 0]]
    assert rows == sorted(set(rows)) and len(rows) == min(n, k)
    again = sample_instances(numbered(n), k, seed=seed, epoch=epoch)
    assert [int(i) for i in again.instance_ids or ()] == rows


def test_sampling_depends_on_seed_epoch_and_bag_and_is_uniform() -> None:
    def draw(bag_id: str = "bag", seed: int = 0, epoch: int = 0) -> list[float]:
        return sample_instances(numbered(100, bag_id), 10, seed=seed, epoch=epoch).features[:, 0].tolist()

    assert len({tuple(d) for d in (draw(), draw("other"), draw(seed=1), draw(epoch=1))}) == 4
    counts = np.bincount([int(r) for e in range(2000) for r in draw(epoch=e)], minlength=100)
    assert abs(counts - 200).max() < 5 * np.sqrt(200 * 0.9)
    with pytest.raises(ConfigError, match="0 instances of bag 'bag'"):
        sample_instances(numbered(3), 0, seed=0, epoch=0)


def test_sampling_is_the_same_everywhere() -> None:
    expected = sample_instances(numbered(1000, "x"), 5, seed=3, epoch=4).features[:, 0].tolist()
    assert expected == PINNED
    code = (
        "import torch; from qgmil.bags.bag import Bag; from qgmil.bags.dataset import sample_instances as s;"
        "print(s(Bag(torch.arange(1000.)[:, None], bag_id='x'), 5, seed=3, epoch=4).features[:, 0].tolist())"
    )
    env = {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert out.strip() == str(PINNED)


PINNED = [225.0, 332.0, 537.0, 747.0, 895.0]


def test_collate_labels_by_class_index() -> None:
    bags = [Bag(torch.ones(2, 3), "b", "x"), Bag(torch.zeros(1, 3), "a", "y")]
    packed = collate(bags, {"a": 0, "b": 1})
    assert packed.labels is not None and packed.labels.tolist() == [1, 0] and packed.labels.dtype == torch.long
    assert (packed.sizes, packed.bag_ids, collate(bags).labels) == ((2, 1), ("x", "y"), None)
    with pytest.raises(BagError, match="bag 'x' has label 'b'; the classes are 'a'"):
        collate(bags, {"a": 0})
    with pytest.raises(BagError, match="bag 'z' has label None"):
        collate([Bag(torch.ones(1, 1), bag_id="z")], {"a": 0})


def test_a_data_set_needs_bags_of_different_names() -> None:
    with pytest.raises(ManifestError, match="no bags"):
        BagDataset([])
    with pytest.raises(ManifestError, match="twice: 'x'"):
        BagDataset.from_bags([numbered(1, "x"), numbered(2, "x")])


@pytest.mark.shared
def test_real_bags_of_cells() -> None:
    data = open_bags(shared_data("deepapl"))
    assert (len(data), data.width, data.classes) == (82, 1280, ("AML", "APL"))
    assert (len(data[0]), len(data[1]), data[1].patient_id, data[1].label) == (74, 133, "Patient_01", "AML")
