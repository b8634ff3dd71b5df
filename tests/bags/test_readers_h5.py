"""HDF5: plain data sets, TRIDENT's layout, and real files of both."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from conftest import shared_data
from qgmil.bags.readers import EmptyBagError, bag_file_shape, read_bag_file
from qgmil.errors import ReadError

VALUES = np.array([[1.5, -2.0, 3.25], [0.0, 7.0, -0.125]], dtype=np.float16)
COORDS = np.array([[0, 0], [512, 70000]])


def write_h5(path: Path, **datasets: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file.create_dataset(name, data=value)
    return path


def write_trident(path: Path, features: np.ndarray = VALUES, **attrs: object) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=True, maxshape=(None, *features.shape[1:]))
        coords = file.create_dataset("coords", data=COORDS[: len(features)])
        for name, value in {"patch_size": 256, "patch_size_level0": 512, "savetodir": "None", **attrs}.items():
            coords.attrs[name] = value
    return path


def test_trident_gives_level_0_pixels_and_the_tile_size(tmp_path: Path) -> None:
    file = read_bag_file(write_trident(tmp_path / "slide.h5"))
    assert torch.equal(file.features, torch.from_numpy(VALUES))
    assert file.coords is not None and file.coords.tolist() == COORDS.tolist()
    assert (file.coord_unit, file.tile_size, file.mpp) == ("px", 512.0, None)
    assert bag_file_shape(tmp_path / "slide.h5") == (2, 3)


def test_trident_none_as_text_is_none(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "slide.h5", patch_size_level0="None", level0_magnification="None")
    assert read_bag_file(path).tile_size is None
    fixed = write_trident(tmp_path / "fixed.h5", patch_size_level0=np.bytes_("None"), mpp=0.25)
    assert (read_bag_file(fixed).tile_size, read_bag_file(fixed).mpp) == (None, 0.25)


def test_trident_tile_size_follows_from_magnifications(tmp_path: Path) -> None:
    path = write_trident(
        tmp_path / "slide.h5", patch_size_level0="None", level0_magnification=40, target_magnification=20
    )
    assert read_bag_file(path).tile_size == 512.0


@pytest.mark.parametrize("size", [0, -5, np.nan])
def test_trident_refuses_a_tile_size_that_is_no_length(tmp_path: Path, size: float) -> None:
    with pytest.raises(ReadError, match=r"slide\.h5: patch_size_level0 is"):
        read_bag_file(write_trident(tmp_path / "slide.h5", patch_size_level0=size))


@pytest.mark.parametrize("shape", [(0, 3), (0,)])
def test_an_empty_slide_names_its_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write_trident(tmp_path / "empty.h5", np.zeros(shape, np.float16))
    with pytest.raises(EmptyBagError, match=r"empty\.h5"):
        read_bag_file(path)
    assert bag_file_shape(path)[0] == 0


def test_coordinates_without_attributes_have_no_unit(tmp_path: Path) -> None:
    file = read_bag_file(write_h5(tmp_path / "clam.h5", features=VALUES[None], coords=COORDS))
    assert file.coord_unit is None and file.tile_size is None
    assert file.coords is not None and file.coords.tolist() == COORDS.tolist()
    assert file.features.shape == (2, 3)


def test_which_data_set_holds_the_features(tmp_path: Path) -> None:
    assert read_bag_file(write_h5(tmp_path / "a.h5", feats=VALUES, other=VALUES[:1])).features.shape == (2, 3)
    only = write_h5(tmp_path / "b.h5", **{"deep/inside": VALUES, "counts": np.arange(6).reshape(2, 3)})
    assert read_bag_file(only).features.shape == (2, 3)
    assert read_bag_file(only, dataset="counts").features.tolist() == [[0, 1, 2], [3, 4, 5]]
    several = write_h5(tmp_path / "c.h5", one=VALUES, two=VALUES)
    with pytest.raises(ReadError, match=r"c\.h5.*'one', 'two'.*dataset="):
        read_bag_file(several)
    with pytest.raises(ReadError, match=r"c\.h5.*no data set 'three'.*'one', 'two'"):
        read_bag_file(several, dataset="three")
    with pytest.raises(ReadError, match=r"b\.h5.*'deep' is a group.*'deep/inside'"):
        read_bag_file(only, dataset="deep")


@pytest.mark.parametrize("options", [{}, {"dtype": "S9"}, {"dtype": h5py.string_dtype()}])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_instance_ids_of_any_text_type(tmp_path: Path, options: dict, version: str) -> None:
    names = ["cell_1", "", "zelle_ü"] if options.get("dtype") != "S9" else ["cell_1", "", "zelle_u"]
    with h5py.File(tmp_path / "a.h5", "w", libver=version, userblock_size=512) as file:
        file["features"] = np.ones((3, 2), np.float32)
        file.create_dataset("instance_ids", data=names, **options)
        file["instance_labels"] = [1, 0, 2]
    file = read_bag_file(tmp_path / "a.h5")
    assert file.instance_ids == tuple(names)
    assert file.instance_labels is not None and file.instance_labels.tolist() == [1, 0, 2]


def test_many_long_texts_over_several_heaps(tmp_path: Path) -> None:
    names = [f"{i}" * (i % 97 + 1) for i in range(3000)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.ones((3000, 2), np.float32)
        file.create_dataset("instance_ids", data=names, dtype=h5py.string_dtype())
    assert read_bag_file(tmp_path / "a.h5").instance_ids == tuple(names)


@pytest.mark.parametrize("ids", [["a"], [1, 2], [["a", "b"]]])
def test_instance_ids_that_do_not_fit_are_refused(tmp_path: Path, ids: list) -> None:
    path = write_h5(tmp_path / "bad.h5", features=VALUES, instance_ids=ids)
    with pytest.raises(ReadError, match=r"bad\.h5.*instance_ids.*expected 2 texts"):
        read_bag_file(path)


def test_a_compressed_file_of_equal_numbers_is_no_bomb(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "zeros.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((2000, 1024), np.float32), compression="gzip")
    assert (tmp_path / "zeros.h5").stat().st_size < 2000 * 1024 * 4 / 100
    assert read_bag_file(tmp_path / "zeros.h5").features.shape == (2000, 1024)


def test_soft_links_inside_the_file_are_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["runs/first/x"] = VALUES
        file["latest"] = h5py.SoftLink("/runs/first")
        file["features"] = h5py.SoftLink("latest/x")
        file["circle"] = h5py.SoftLink("circle")
        file["dangling"] = h5py.SoftLink("nowhere")
    assert torch.equal(read_bag_file(tmp_path / "a.h5").features, torch.from_numpy(VALUES))
    with pytest.raises(ReadError, match="circle"):
        read_bag_file(tmp_path / "a.h5", dataset="circle")
    with pytest.raises(ReadError, match="no data set 'dangling'"):
        read_bag_file(tmp_path / "a.h5", dataset="dangling")


def test_a_file_is_closed_again(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5", features=VALUES)
    read_bag_file(path)
    with pytest.raises(ReadError):
        read_bag_file(path, dataset="x")
    with h5py.File(path, "a") as file:  # HDF5 refuses to write to a file that is still open for reading
        file["more"] = 1


@pytest.mark.shared
def test_real_tiles_have_coordinates() -> None:
    manifest = shared_data("glas")
    file = read_bag_file(manifest.parent / "features_efficientnet_lite0" / "testA_1.h5")
    assert file.features.shape == (150, 1280) and file.features.dtype == torch.float16
    assert (file.coord_unit, file.tile_size) == ("px", 64.0)
    assert file.coords is not None and file.coords[:2].tolist() == [[0, 0], [48, 0]]


@pytest.mark.shared
def test_real_cells_have_names() -> None:
    manifest = shared_data("deepapl")
    with (manifest.parent / "cells.csv").open() as handle:
        names = [row["instance_id"] for row in csv.DictReader(handle) if row["bag_id"] == "Patient_00"]
    file = read_bag_file(manifest.parent / "features_efficientnet_lite0" / "Patient_00.h5")
    assert file.coords is None and file.features.shape == (74, 1280)
    assert file.instance_ids is not None and sorted(file.instance_ids) == sorted(names)
