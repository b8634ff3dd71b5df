"""Chunks of HDF5 files that are unpacked here give what HDF5 itself gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from qgmil.bags.readers import read_bag_file
from qgmil.bags.readers.h5 import open_h5, read_array
from qgmil.errors import ReadError

FILTERS: dict[str, dict[str, Any]] = {
    "bare": {},
    "gzip": {"compression": "gzip"},
    "gzip9_shuffle_sum": {"compression": "gzip", "compression_opts": 9, "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "lzf_shuffle_sum": {"compression": "lzf", "shuffle": True, "fletcher32": True},
    "shuffle": {"shuffle": True},
    "sum": {"fletcher32": True},
}
SHAPES = (
    ((37, 5), (16, 5)),
    ((37, 5), (1, 5)),
    ((37, 5), (10, 2)),
    ((3, 7, 4), (2, 3, 4)),
    ((11,), (4,)),
    ((0, 5), (4, 5)),
)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("kind", ["<f2", "<f4", ">f4", "<f8", "<i8", "u1", "?"])
@pytest.mark.parametrize("name", FILTERS)
def test_every_value_is_as_hdf5_has_it(tmp_path: Path, name: str, kind: str, libver: str) -> None:
    path = tmp_path / "a.h5"
    draw = np.random.default_rng(0)
    with h5py.File(path, "w", libver=libver) as file:
        for i, (shape, chunks) in enumerate(SHAPES):
            data = (draw.normal(size=shape) * 100).astype(kind)
            file.create_dataset(f"d{i}", data=data, chunks=chunks, maxshape=(None, *shape[1:]), **FILTERS[name])
    with open_h5(path) as file:
        for i in range(len(SHAPES)):
            found, expected = read_array(path, file[f"d{i}"]), file[f"d{i}"][()]
            assert found.dtype == expected.dtype and found.shape == expected.shape
            assert np.array_equal(found, expected)


def test_chunks_that_gained_nothing_are_stored_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    values = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("features", (8, 3), "f4", chunks=(4, 3), compression="gzip", fletcher32=True)
        made[:4] = values[:4]
        made.id.write_direct_chunk((4, 0), values[4:].tobytes(), filter_mask=0b11)
    assert torch.equal(read_bag_file(path).features, torch.from_numpy(values))


def test_a_data_set_that_was_made_smaller(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("features", data=np.ones((40, 3), "f4"), chunks=(8, 3), maxshape=(None, 3))
        made.resize((9, 3))
    assert read_bag_file(tmp_path / "a.h5").features.tolist() == [[1.0] * 3] * 9


def test_texts_in_packed_chunks(tmp_path: Path) -> None:
    names = [f"tile {i}" for i in range(20)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.ones((20, 3), "f4")
        file.create_dataset("instance_ids", data=np.array(names, "S9"), chunks=(8,), compression="gzip")
    assert read_bag_file(tmp_path / "a.h5").instance_ids == tuple(names)


def test_numbers_of_a_type_that_numpy_does_not_have(tmp_path: Path) -> None:
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_ebias(100)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((2, 2))
        creation.set_deflate(4)
        made = h5py.h5d.create(file.id, b"features", odd, h5py.h5s.create_simple((2, 2)), creation)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones((2, 2), "f4"))
    with pytest.raises(ReadError, match="numbers of an unusual type"):
        read_bag_file(tmp_path / "a.h5")


def test_a_flipped_bit_in_a_packed_chunk_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        values = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
        made = file.create_dataset("features", data=values, chunks=(50, 4), compression="gzip")
        at = made.id.get_chunk_info(0).byte_offset + 200
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ReadError, match=r"a\.h5"):
        read_bag_file(path)
