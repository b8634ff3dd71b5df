"""Round trips of every layout that is no HDF5, and the rules that all of them share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from qgmil.bags.readers import EmptyBagError, MissingFileError, bag_file_shape, read_bag_file, readers
from qgmil.bags.readers.base import as_features, matrix_shape
from qgmil.errors import BagError, ReadError

VALUES = np.array([[1.5, -2.0, 3.25], [0.0, 7.0, -0.125]], dtype=np.float32)


def write(path: Path, array: np.ndarray) -> Path:
    tensor = torch.from_numpy(array.copy())
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, features=array)
    elif path.suffix == ".safetensors":
        save_file({"features": tensor}, path)
    else:
        torch.save(tensor, path)
    return path


LAYOUTS = (".npy", ".npz", ".safetensors", ".pt", ".pth")


def test_the_registry_finds_every_reader() -> None:
    assert set(readers()) >= {"npy", "npz", "safetensors", "pt", "h5", "trident"}


@pytest.mark.parametrize("suffix", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_half_and_single_precision_come_back_as_they_are(tmp_path: Path, suffix: str, dtype: str) -> None:
    path = write(tmp_path / f"a{suffix}", VALUES.astype(dtype))
    file = read_bag_file(path)
    assert file.features.dtype == getattr(torch, dtype)
    assert torch.equal(file.features, torch.from_numpy(VALUES.astype(dtype)))
    assert (file.coords, file.coord_unit, file.tile_size, file.instance_ids) == (None, None, None, None)
    assert bag_file_shape(path) == (2, 3)


@pytest.mark.parametrize("suffix", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "int64", "int16", "uint8", "bool"])
def test_other_numbers_become_single_precision(tmp_path: Path, suffix: str, dtype: str) -> None:
    features = read_bag_file(write(tmp_path / f"a{suffix}", np.abs(VALUES).astype(dtype))).features
    assert features.dtype == torch.float32
    assert torch.equal(features, torch.from_numpy(np.abs(VALUES).astype(dtype).astype(np.float32)))


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", ">f4", ">f8", ">i2", "longdouble"])
def test_types_that_torch_does_not_know_are_converted(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.abs(VALUES).astype(dtype))
    expected = torch.from_numpy(np.abs(VALUES).astype(dtype).astype(np.float32))
    assert torch.equal(read_bag_file(tmp_path / "a.npy").features, expected)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_bfloat16_is_kept_and_float8_is_widened(tmp_path: Path, suffix: str) -> None:
    for dtype, expected in ((torch.bfloat16, torch.bfloat16), (torch.float8_e4m3fn, torch.float32)):
        tensor = torch.tensor([[1.0, 2.0]]).to(dtype)
        path = tmp_path / f"{dtype}{suffix}"
        torch.save(tensor, path) if suffix == ".pt" else save_file({"features": tensor}, path)
        assert read_bag_file(path).features.dtype == expected
        assert read_bag_file(path).features.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("suffix", LAYOUTS)
def test_a_leading_axis_of_one_is_dropped_and_a_vector_is_one_instance(tmp_path: Path, suffix: str) -> None:
    assert torch.equal(read_bag_file(write(tmp_path / f"a{suffix}", VALUES[None])).features, torch.tensor(VALUES))
    assert read_bag_file(write(tmp_path / f"b{suffix}", VALUES[0])).features.tolist() == [VALUES[0].tolist()]
    assert bag_file_shape(tmp_path / f"a{suffix}") == (2, 3)
    assert bag_file_shape(tmp_path / f"b{suffix}") == (1, 3)
    with pytest.raises(ReadError, match=r"c.*shape \(2, 2, 3\)"):
        read_bag_file(write(tmp_path / f"c{suffix}", np.stack([VALUES, VALUES])))


@pytest.mark.parametrize("suffix", LAYOUTS)
@pytest.mark.parametrize("shape", [(0, 3), (0,), (1, 0, 3), (2, 0)])
def test_an_empty_file_is_a_bag_error_with_its_path(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / f"nothing{suffix}", np.zeros(shape, dtype=np.float32))
    with pytest.raises(EmptyBagError, match="nothing") as caught:
        read_bag_file(path)
    assert isinstance(caught.value, BagError)
    assert 0 in bag_file_shape(path)


def test_npz_and_dicts_carry_coordinates_and_labels(tmp_path: Path) -> None:
    coords = np.array([[0, 512], [1024, 2048]], dtype=np.uint16)
    labels = np.array([0, 1])
    np.savez(tmp_path / "a.npz", features=VALUES, coords=coords, instance_labels=labels, instance_ids=["x", "ß"])
    tensors = {
        "features": torch.tensor(VALUES),
        "coords": torch.tensor(coords.astype(int)),
        "instance_labels": torch.tensor(labels),
    }
    torch.save(tensors, tmp_path / "a.pt")
    save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.pt", "a.safetensors"):
        file = read_bag_file(tmp_path / name)
        assert file.coords is not None and file.coords.dtype == torch.int64 and file.coords.tolist() == coords.tolist()
        assert file.coord_unit is None
        assert file.instance_labels is not None and file.instance_labels.tolist() == [0, 1]
        assert file.instance_ids == (("x", "ß") if name == "a.npz" else None)


def test_the_only_array_is_taken_and_several_need_a_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", anything=VALUES, coords=np.zeros((2, 2)))
    assert torch.equal(read_bag_file(tmp_path / "one.npz").features, torch.tensor(VALUES))
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(4, 5)}, tmp_path / "two.safetensors")
    np.savez(tmp_path / "two.npz", a=np.ones((2, 3)), b=np.zeros((4, 5)))
    torch.save({"a": torch.ones(2, 3), "b": torch.zeros(4, 5), "note": "text"}, tmp_path / "two.pt")
    for name in ("two.safetensors", "two.npz", "two.pt"):
        with pytest.raises(ReadError, match=rf"{name}.*'a', 'b'.*--dataset NAME"):
            read_bag_file(tmp_path / name)
        assert read_bag_file(tmp_path / name, dataset="b").features.shape == (4, 5)
        with pytest.raises(ReadError, match=rf"{name}.*no data set 'c'.*'a', 'b'"):
            read_bag_file(tmp_path / name, dataset="c")
    with pytest.raises(ReadError, match="leave out --dataset x "):
        read_bag_file(write(tmp_path / "a.npy", VALUES), dataset="x")


@pytest.mark.parametrize(
    ("coords", "said"),
    [
        (np.zeros((3, 2)), r"\(3, 2\) for 2 instances"),
        (np.zeros((2, 5)), r"\(2, 5\)"),
        ([[0, 1], [np.nan, 2]], "row 1"),
    ],
)
def test_coordinates_that_do_not_fit_are_refused(tmp_path: Path, coords: object, said: str) -> None:
    np.savez(tmp_path / "bad.npz", features=VALUES, coords=np.asarray(coords))
    with pytest.raises(ReadError, match=rf"bad\.npz.*{said}"):
        read_bag_file(tmp_path / "bad.npz")


def test_paths_that_are_no_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"gone\.npy.*no such file"):
        read_bag_file(tmp_path / "gone.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ReadError, match=r"folder\.npy.*is a folder"):
        read_bag_file(tmp_path / "folder.npy")
    (tmp_path / "zero.h5").touch()
    with pytest.raises(ReadError, match=r"zero\.h5.*zero bytes"):
        read_bag_file(tmp_path / "zero.h5")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(ReadError, match=r"a\.docx.*'\.docx'.*npy \(\.npy\)"):
        read_bag_file(tmp_path / "a.docx")
    write(tmp_path / "a.npy", VALUES)
    with pytest.raises(ReadError, match=r"no format 'h6'.*'trident'"):
        read_bag_file(tmp_path / "a.npy", format="h6")
    with pytest.raises(ReadError, match=r"a\.npy.*safetensors"):
        read_bag_file(tmp_path / "a.npy", format="safetensors")


def test_a_file_that_is_being_written_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.pt", VALUES)
    (tmp_path / "slide.pt.lock").touch()
    with pytest.raises(ReadError, match=r"slide\.pt.*still being written"):
        read_bag_file(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(ReadError, match="not a regular file"):
        read_bag_file(tmp_path / "pipe.npy")


def test_a_slice_of_a_large_tensor_does_not_keep_it_alive(tmp_path: Path) -> None:
    torch.save(torch.arange(3000.0).reshape(1000, 3)[10:12], tmp_path / "slice.pt")
    features = read_bag_file(tmp_path / "slice.pt").features
    assert features.tolist() == [[30.0, 31.0, 32.0], [33.0, 34.0, 35.0]]
    assert features.untyped_storage().nbytes() == 2 * 3 * 4


@given(st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_fortran_order_and_leading_axes_do_not_change_values(rows: int, width: int, leading: bool) -> None:
    array = np.arange(rows * width, dtype=np.float64).reshape(rows, width)
    given_array = np.asfortranarray(array)[None] if leading else np.asfortranarray(array)
    features = as_features(Path("x"), given_array)
    assert features.is_contiguous()
    assert np.array_equal(features.numpy(), array.astype(np.float32))
    assert matrix_shape(Path("x"), given_array.shape) == (rows, width)
