"""Pickles, bombs and lies in .pt, .npy, .npz and .safetensors."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qgmil.bags.readers import bag_file_shape, read_bag_file
from qgmil.errors import QGMILError, ReadError


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def refused(path: Path, said: str) -> None:
    with pytest.raises(ReadError, match=said) as caught:
        read_bag_file(path)
    assert path.name in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_a_pt_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    content = {"features": torch.ones(2, 3), "extra": Evil(tmp_path / "owned")}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "evil.pt", "holds Python objects")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(tmp_path / "owned")))
    refused(tmp_path / "plain.pt", r"plain\.pt")
    assert not (tmp_path / "owned").exists()


def test_numpy_arrays_in_a_pt_file_are_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"features": np.ones((2, 3))}, tmp_path / "numpy.pt")
    refused(tmp_path / "numpy.pt", r"save the features alone, with torch\.save\(tensor, path\)")


def test_a_pt_file_without_features(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "holds a list; expected a tensor")
    torch.save({"epoch": 3}, tmp_path / "dict.pt")
    refused(tmp_path / "dict.pt", "it has none")


def test_a_tensor_that_declares_more_than_it_stores(tmp_path: Path) -> None:
    torch.save(torch.ones(1).expand(10**12, 1), tmp_path / "stride.pt")
    refused(tmp_path / "stride.pt", "declares 4,000,000,000,000 bytes but 4 are stored")


def test_tensors_that_are_not_dense(tmp_path: Path) -> None:
    torch.save(torch.eye(3).to_sparse(), tmp_path / "sparse.pt")
    refused(tmp_path / "sparse.pt", "expected a dense one")
    torch.save(torch.ones(2, 2, device="meta"), tmp_path / "meta.pt")
    refused(tmp_path / "meta.pt", r"meta\.pt")
    torch.save(torch.ones(2, 2, dtype=torch.complex64), tmp_path / "complex.pt")
    refused(tmp_path / "complex.pt", "expected real numbers")


def test_a_bomb_in_a_pt_file(tmp_path: Path) -> None:
    torch.save(torch.zeros(32, 2**20), tmp_path / "big.pt")
    with zipfile.ZipFile(tmp_path / "big.pt") as big, zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil:
        for member in big.infolist():
            evil.writestr(member.filename, big.read(member), zipfile.ZIP_DEFLATED, 9)
    refused(tmp_path / "evil.pt", "declares 134,217,728 bytes but only")


def test_an_object_array_is_not_unpickled(tmp_path: Path) -> None:
    array = np.array([Evil(tmp_path / "owned"), None], dtype=object)
    np.save(tmp_path / "evil.npy", array, allow_pickle=True)
    np.savez(tmp_path / "evil.npz", features=array)
    for name in ("evil.npy", "evil.npz"):
        refused(tmp_path / name, "holds Python objects")
        with pytest.raises(ReadError, match="holds Python objects"):
            bag_file_shape(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize("shape", ["(1000000000000, 1024)", "(-1, 4)", "(3, 2)", "(2, 1.5)", "(2**62, 4)"])
def test_an_npy_header_that_declares_more_than_the_file(tmp_path: Path, shape: str) -> None:
    (tmp_path / "evil.npy").write_bytes(npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}", bytes(16)))
    refused(tmp_path / "evil.npy", r"evil\.npy")
    with pytest.raises(ReadError, match=r"evil\.npy"):
        bag_file_shape(tmp_path / "evil.npy")


@pytest.mark.parametrize("descr", ["'|V8'", "'<U4'", "'<M8[s]'", "[('a', '<f4')]", "'<c8'", "__import__('os')"])
def test_an_npy_of_something_else(tmp_path: Path, descr: str) -> None:
    (tmp_path / "evil.npy").write_bytes(
        npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1, 1)}}", bytes(16))
    )
    refused(tmp_path / "evil.npy", r"evil\.npy")


def bomb(compression: int) -> bytes:
    """A zip with 256 MiB of zeros behind a good header, in a few hundred kilobytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive, archive.open("features.npy", "w") as member:
        member.write(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (65536, 1024)}"))
        for _ in range(256):
            member.write(bytes(2**20))
    return out.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_zip_bomb(tmp_path: Path, compression: int) -> None:
    (tmp_path / "evil.npz").write_bytes(bomb(compression))
    refused(tmp_path / "evil.npz", r"'features\.npy' declares 268,435,[0-9]+ bytes but only")


def test_a_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "good.npz", features=np.zeros((1000, 100), np.float32))
    raw = (tmp_path / "good.npz").read_bytes()
    size = struct.pack("<I", 1000 * 100 * 4 + 128)
    assert size in raw
    (tmp_path / "evil.npz").write_bytes(raw.replace(size, struct.pack("<I", 1000)))
    refused(tmp_path / "evil.npz", r"evil\.npz")


def test_an_npz_without_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("../../etc/passwd", "x")
    refused(tmp_path / "evil.npz", "it has none")


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
