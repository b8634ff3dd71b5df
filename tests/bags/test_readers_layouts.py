"""Every layout from a tree as its own tools write it: read, told apart, carried on, closed, and read in workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bags.layouts import WRITERS, Expected, Sample, write_acmil, write_cells, write_pathforge, write_trident
from qgmil.bags.bag import Bag, merge_bags
from qgmil.bags.dataset import BagDataset, open_bags, read_record
from qgmil.bags.manifest import BagRecord
from qgmil.bags.readers import (
    MissingFileError,
    bag_file_shape,
    bag_files,
    bag_label,
    check_bag_path,
    parts,
    read_bag_file,
    reader_for,
    readers,
    split_part,
)
from qgmil.bags.readers.h5 import SUFFIXES, open_h5
from qgmil.errors import BagError, ReadError

LAYOUTS = pytest.mark.parametrize("layout", WRITERS)


def options(expected: Expected) -> dict[str, str | None]:
    return {"format": expected.format, "dataset": expected.dataset}


def assert_is(bag: object, expected: Expected) -> None:
    assert np.array_equal(bag.features.numpy(), expected.features)
    assert bag.features.dtype == torch.from_numpy(expected.features).dtype
    assert (bag.coords is None) == (expected.coords is None)
    if expected.coords is not None:
        assert np.array_equal(bag.coords.numpy(), expected.coords)
    for name in ("coord_unit", "tile_size", "magnification", "instance_ids"):
        assert getattr(bag, name) == getattr(expected, name), name
    assert bag.tile_mpp == pytest.approx(expected.tile_mpp)
    truth = bag.instance_labels
    assert (None if truth is None else tuple(truth.tolist())) == expected.instance_labels


@LAYOUTS
def test_a_layout_is_recognised_and_read(tmp_path: Path, layout: str) -> None:
    for cell, expected in WRITERS[layout](tmp_path / "data"):
        assert_is(read_bag_file(cell, **options(expected)), expected)
        assert bag_file_shape(cell, **options(expected)) == expected.features.shape
        assert bag_label(cell, **options(expected)) == expected.label
        file, _ = split_part(cell)
        assert reader_for(file, expected.format).name == expected.reader


@LAYOUTS
def test_naming_the_format_reads_the_same(tmp_path: Path, layout: str) -> None:
    for cell, expected in WRITERS[layout](tmp_path / "data"):
        assert_is(read_bag_file(cell, format=expected.reader, dataset=expected.dataset), expected)


@LAYOUTS
def test_no_two_layouts_claim_a_file(tmp_path: Path, layout: str) -> None:
    for cell, expected in WRITERS[layout](tmp_path / "data"):
        file, _ = split_part(cell)
        if file.is_dir():
            continue
        asked = [r for r in readers().values() if r.recognises is not None and file.suffix in r.suffixes]
        if file.suffix in SUFFIXES:
            with open_h5(file) as opened:
                claims = [r.name for r in asked if r.recognises(file, opened)]
        else:
            claims = [r.name for r in asked if r.recognises(file, None)]
        general = readers()[expected.reader].recognises is None or expected.format is not None
        assert claims == ([] if general else [expected.reader])


def test_one_reader_at_most_takes_what_none_claims() -> None:
    suffixes = {s for r in readers().values() for s in r.suffixes}
    for suffix in suffixes:
        assert len([r.name for r in readers().values() if suffix in r.suffixes and r.recognises is None]) == 1, suffix


def test_another_format_than_that_of_the_content(tmp_path: Path) -> None:
    cell, expected = write_trident(tmp_path / "data")[0]
    bag = read_bag_file(cell, format="h5")
    assert np.array_equal(bag.coords.numpy(), expected.coords)
    assert (bag.coord_unit, bag.tile_size, bag.magnification) == (None, None, None)


@LAYOUTS
def test_a_manifest_of_the_layout_opens(tmp_path: Path, layout: str) -> None:
    samples = WRITERS[layout](tmp_path / "data")
    rows = [f"bag_{i},x,{cell.relative_to(tmp_path)}" for i, (cell, _) in enumerate(samples)]
    (tmp_path / "bags.csv").write_text("\n".join(["bag_id,label,features", *rows]) + "\n")
    dataset = open_bags(tmp_path / "bags.csv", **options(samples[0].expected), skip=["empty"])
    assert dataset.width == samples[0].expected.features.shape[1]
    for bag, (_, expected) in zip(dataset, samples, strict=True):
        assert_is(bag, expected)
    files = {file for cell, _ in samples for file in bag_files(cell)}
    assert dataset.bytes_on_disk() == sum(file.stat().st_size for file in files) > 0


def test_tile_facts_go_with_instances_and_stay_where_parts_agree() -> None:
    facts = {"tile_size": 512.0, "mpp": 0.25, "magnification": 20.0, "tile_mpp": 0.5}
    coords = torch.tensor([[0, 0], [512, 0], [0, 512]])
    bag = Bag(torch.rand(3, 2), coords=coords, coord_unit="px", **facts)
    part = bag.take(torch.tensor([2, 0]))
    assert {name: getattr(part, name) for name in facts} == facts
    assert part.coord_unit == "px" and part.coords.tolist() == [[0, 512], [0, 0]]
    other = Bag(torch.rand(1, 2), **{**facts, "magnification": 40.0, "mpp": None})
    merged = merge_bags([bag, other], "both")
    kept = {name: getattr(merged, name) for name in facts}
    assert kept == {"tile_size": 512.0, "mpp": None, "magnification": None, "tile_mpp": 0.5}
    assert merged.coords is None and merged.coord_unit is None
    microns = Bag(torch.rand(3, 2), coords=coords, coord_unit="um", **facts)
    assert merge_bags([microns, microns], "um").tile_size is None  # 512 microns would pass for pixels


def test_a_unit_that_nobody_knows_is_refused() -> None:
    with pytest.raises(BagError, match=r"'a'.*coord_unit is 'mm'.*'px', 'um', 'grid'"):
        Bag(torch.rand(1, 2), bag_id="a", coord_unit="mm")


def test_a_record_carries_what_its_file_knows(tmp_path: Path) -> None:
    cell, expected = write_trident(tmp_path / "data")[0]
    bag = read_record(BagRecord("a", "x", "p", (cell,)))
    assert (bag.magnification, bag.tile_size, bag.coord_unit) == (20.0, 512.0, "px")
    both = read_record(BagRecord("a", "x", "p", (cell, cell)))
    assert (len(both), both.magnification, both.coords) == (2 * len(expected.features), 20.0, None)


def test_parts_of_a_file_are_named_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    np.savez(path, one=np.ones((2, 3)), two=np.zeros((4, 3)))
    assert read_bag_file(f"{path}::two").features.shape == (4, 3)
    assert read_bag_file(f"{path}::two", dataset="two").features.shape == (4, 3)
    with pytest.raises(ReadError, match=r"all\.npz::two: names the part 'two', but --dataset one"):
        read_bag_file(f"{path}::two", dataset="one")
    with pytest.raises(ReadError, match=r"all\.npz: has no data set 'three'; it has 'one', 'two'"):
        read_bag_file(f"{path}::three")
    with pytest.raises(MissingFileError, match=r"gone\.npz::two: no such file"):
        check_bag_path(f"{tmp_path / 'gone.npz'}::two")
    assert split_part(Path("a::b")) == (Path("a::b"), None)
    assert parts(path) == {}


def test_a_file_whose_name_has_colons_wins(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", b=np.ones((2, 3)))
    (tmp_path / "a.npz::b").write_bytes((tmp_path / "a.npz").read_bytes())
    assert split_part(tmp_path / "a.npz::b") == (tmp_path / "a.npz::b", None)
    assert split_part(tmp_path / "a.npz::b::c") == (tmp_path / "a.npz::b", "c")
    assert split_part(tmp_path / "a.npz::x::c") == (tmp_path / "a.npz", "x::c")
    (tmp_path / "p::q").mkdir()
    np.save(tmp_path / "p::q" / "x.npy", np.ones((2, 3), np.float32))
    assert read_bag_file(tmp_path / "p::q" / "x.npy").features.shape == (2, 3)
    with pytest.raises(MissingFileError, match=r"p::q/gone\.npy: no such file"):
        read_bag_file(tmp_path / "p::q" / "gone.npy")


@pytest.mark.parametrize("write", [write_acmil, write_cells, write_trident])
def test_a_lock_beside_a_file_is_seen_through_parts_and_folders(tmp_path: Path, write: object) -> None:
    cell = write(tmp_path / "data")[0].cell
    file = bag_files(cell)[-1]
    Path(f"{file}.lock").touch()
    with pytest.raises(ReadError, match=rf"{file.name}: is still being written"):
        read_bag_file(cell)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files on this platform")
def test_no_reader_leaves_a_file_open(tmp_path: Path) -> None:
    samples = [s for name, write in WRITERS.items() for s in write(tmp_path / name)]
    samples += write_pathforge(tmp_path / "more", bags=("256px_0.5mpp/uni", "256px_0.5mpp/conch"))

    def read_all() -> None:
        for cell, expected in samples:
            read_bag_file(cell, **options(expected))
            bag_file_shape(cell, **options(expected))
            parts(split_part(cell)[0])
            with pytest.raises(ReadError):
                read_bag_file(cell, dataset="nothing of that name")

    read_all()
    before = open_files()
    read_all()
    assert open_files() == before


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_workers_read_h5_layouts(tmp_path: Path, context: str) -> None:
    samples: list[Sample] = [*write_trident(tmp_path / "t"), *write_acmil(tmp_path / "a")]
    records = [BagRecord(f"b{i}", "x", None, (cell,)) for i, (cell, _) in enumerate(samples)]
    dataset = BagDataset(records)
    assert_is(dataset[0], samples[0].expected)  # the parent has used HDF5 before its workers start
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context)
    for bag, (_, expected) in zip(loader, samples, strict=True):
        assert_is(bag, expected)
    assert_is(dataset[-1], samples[-1].expected)
