"""HDF5 files that point elsewhere, lie about their size, or are damaged: refused by name, quickly, without harm."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from qgmil.bags.check import check_bags
from qgmil.bags.readers import bag_file_shape, read_bag_file
from qgmil.errors import ReadError

SECRET = np.full((3, 2), 42.0, np.float32)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A good file beside the hostile one, which must not be reachable through it."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["features"] = SECRET
    return tmp_path / "secret.h5"


def refused(path: Path, said: str, **options: str) -> None:
    tracemalloc.start()
    try:
        for read in (read_bag_file, bag_file_shape):
            with pytest.raises(ReadError, match=said) as caught:
                read(path, **options)
            assert path.name in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


def test_external_link_in_coords_and_ids(tmp_path: Path, secret: Path) -> None:
    for name in ("coords", "instance_ids", "instance_labels"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["features"] = SECRET
            file[name] = h5py.ExternalLink(str(secret), "/features")
        with pytest.raises(ReadError, match=rf"{name}\.h5.*link to another file"):
            read_bag_file(tmp_path / f"{name}.h5")


@pytest.mark.parametrize("options", [{}, {"chunks": (1024, 8)}, {"chunks": (1024, 8), "compression": "gzip"}])
def test_a_data_set_that_was_never_written_declares_the_moon(tmp_path: Path, options: dict) -> None:
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file.create_dataset("features", (10**12, 8), "f4", **options)
    assert (tmp_path / "evil.h5").stat().st_size < 10_000
    refused(tmp_path / "evil.h5", r"features.*declares 32,000,000,000,000 bytes")


def test_one_chunk_of_many_is_not_filled_up_with_zeros(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        features = file.create_dataset("features", (4000, 8), "f4", chunks=(100, 8), compression="gzip")
        features[:100] = 1
    refused(tmp_path / "evil.h5", "1 of 40 chunks; it was never fully written")


def test_one_chunk_larger_than_memory(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file.create_dataset("features", (8, 8), "f4", chunks=(2**26, 8), maxshape=(None, 8), compression="gzip")
    refused(tmp_path / "evil.h5", "one chunk of '/features' declares 2,147,483,648 bytes")


def test_a_data_type_that_is_no_number(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["features"] = [["a", "b"]]
    with h5py.File(tmp_path / "record.h5", "w") as file:
        file["features"] = np.zeros((2, 2), dtype=[("x", "f4"), ("y", "f4")])
    for name in ("text.h5", "record.h5"):
        with pytest.raises(ReadError, match=rf"{name}.*features.*expected numbers"):
            read_bag_file(tmp_path / name)


def good_file(path: Path) -> bytes:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=np.ones((40, 8), np.float32), chunks=(16, 8), compression="gzip")
        file.create_dataset("coords", data=np.zeros((40, 2), int)).attrs["patch_size_level0"] = 256
        file["coords"].attrs["target_magnification"] = "None"
        file.create_dataset("instance_ids", data=[f"x{i}" for i in range(40)])
    return path.read_bytes()


def test_truncated_at_any_length(tmp_path: Path) -> None:
    raw = good_file(tmp_path / "good.h5")
    for length in range(1, len(raw), 97):
        (tmp_path / "cut.h5").write_bytes(raw[:length])
        with pytest.raises(ReadError, match=r"cut\.h5"):
            read_bag_file(tmp_path / "cut.h5")


def test_one_hostile_file_does_not_stop_the_check_of_the_others(tmp_path: Path, secret: Path) -> None:
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(secret), "/features")
    (tmp_path / "bags.csv").write_text("bag_id,label,features\na,1,evil.h5\nb,0,secret.h5\nc,0,secret.h5\n")
    report = check_bags(tmp_path / "bags.csv")
    assert [p.bag_id for p in report.problems if p.kind == "broken"] == ["a"]
    assert report.readable == 2
