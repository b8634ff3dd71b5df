"""What the table of attacks has no room for: every kind of header, and files cut short anywhere, in this process."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attacks.evil_arrays import floats, npy
from qgmil.bags.readers import bag_file_shape, read_bag_file
from qgmil.errors import QGMILError, ReadError


def refused(path: Path, said: str) -> None:
    with pytest.raises(ReadError, match=said) as caught:
        read_bag_file(path)
    assert path.name in str(caught.value)


def test_numpy_arrays_in_a_pt_file_are_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"features": np.ones((2, 3))}, tmp_path / "numpy.pt")
    refused(tmp_path / "numpy.pt", r"save the features alone, with torch\.save\(tensor, path\)")


def test_a_pt_file_without_features(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "holds a list; expected a tensor")
    torch.save({"epoch": 3}, tmp_path / "dict.pt")
    refused(tmp_path / "dict.pt", "it has none")


def test_tensors_that_are_not_dense(tmp_path: Path) -> None:
    torch.save(torch.eye(3).to_sparse(), tmp_path / "sparse.pt")
    refused(tmp_path / "sparse.pt", "expected a dense one")
    torch.save(torch.ones(2, 2, device="meta"), tmp_path / "meta.pt")
    refused(tmp_path / "meta.pt", r"meta\.pt")
    torch.save(torch.ones(2, 2, dtype=torch.complex64), tmp_path / "complex.pt")
    refused(tmp_path / "complex.pt", "expected real numbers")


@pytest.mark.parametrize("shape", ["(1000000000000, 1024)", "(-1, 4)", "(3, 2)", "(2, 1.5)", "(2**62, 4)"])
def test_an_npy_header_that_declares_more_than_the_file(tmp_path: Path, shape: str) -> None:
    (tmp_path / "evil.npy").write_bytes(floats(shape))
    refused(tmp_path / "evil.npy", r"evil\.npy")
    with pytest.raises(ReadError, match=r"evil\.npy"):
        bag_file_shape(tmp_path / "evil.npy")


@pytest.mark.parametrize("descr", ["'|V8'", "'<U4'", "'<M8[s]'", "[('a', '<f4')]", "'<c8'", "__import__('os')"])
def test_an_npy_of_something_else(tmp_path: Path, descr: str) -> None:
    (tmp_path / "evil.npy").write_bytes(
        npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1, 1)}}", bytes(16))
    )
    refused(tmp_path / "evil.npy", r"evil\.npy")


@pytest.mark.parametrize("end", [10**15, 2**63, 23])
def test_safetensors_that_declare_more_than_they_hold(tmp_path: Path, end: int) -> None:
    header = json.dumps({"features": {"dtype": "F32", "shape": [end // 4, 1], "data_offsets": [0, end]}}).encode()
    (tmp_path / "evil.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    refused(tmp_path / "evil.safetensors", r"evil\.safetensors")
    (tmp_path / "evil.safetensors").write_bytes(struct.pack("<Q", 2**62) + header)
    refused(tmp_path / "evil.safetensors", r"evil\.safetensors")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".pth", ".safetensors", ".h5"])
def test_rubbish_zero_bytes_folders_and_truncation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"evil{suffix}"
    path.mkdir()
    refused(path, "is a folder")
    path.rmdir()
    path.touch()
    refused(path, "zero bytes")
    path.write_bytes(os.urandom(4096))
    refused(path, "cannot be read|pickle|version")
    path.write_bytes(b"PK\x03\x04" + bytes(200))
    refused(path, "cannot be read|pickle|version")
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    refused(path, "broken symbolic link")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_files_cut_short(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    values = torch.randn(20, 30)
    if suffix == ".npy":
        np.save(path, values.numpy())
    elif suffix == ".npz":
        np.savez_compressed(path, features=values.numpy())
    elif suffix == ".pt":
        torch.save(values, path)
    else:
        save_file({"features": values}, path)
    raw = path.read_bytes()
    for length in range(1, len(raw) - 1, max(1, len(raw) // 40)):
        path.write_bytes(raw[:length])
        with pytest.raises(QGMILError, match=path.name):
            read_bag_file(path)
