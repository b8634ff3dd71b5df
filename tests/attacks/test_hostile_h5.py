"""HDF5 files that point elsewhere, lie about their size, or are damaged: refused by name, quickly, without harm."""

from __future__ import annotations

import os
import random
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from qgmil.bags.check import check_bags
from qgmil.bags.readers import bag_file_shape, read_bag_file
from qgmil.errors import QGMILError, ReadError

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


def test_external_link(tmp_path: Path, secret: Path) -> None:
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(secret), "/features")
    refused(tmp_path / "evil.h5", "link to another file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
@pytest.mark.timeout(20)
def test_what_an_external_link_names_is_not_even_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/features")
        file["coords"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/coords")
    refused(tmp_path / "evil.h5", "link to another file")


def test_external_link_in_coords_and_ids(tmp_path: Path, secret: Path) -> None:
    for name in ("coords", "instance_ids", "instance_labels"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["features"] = SECRET
            file[name] = h5py.ExternalLink(str(secret), "/features")
        with pytest.raises(ReadError, match=rf"{name}\.h5.*link to another file"):
            read_bag_file(tmp_path / f"{name}.h5")


def test_external_link_in_the_middle_of_a_name(tmp_path: Path, secret: Path) -> None:
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file["elsewhere"] = h5py.ExternalLink(str(secret), "/")
    refused(tmp_path / "evil.h5", "link to another file", dataset="elsewhere/features")
    refused(tmp_path / "evil.h5", "cannot tell which")


def test_soft_link_out(tmp_path: Path, secret: Path) -> None:
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file["door"] = h5py.ExternalLink(str(secret), "/")
        file["features"] = h5py.SoftLink("/door/features")
    refused(tmp_path / "evil.h5", "link to another file")


def test_external_storage(tmp_path: Path) -> None:
    (tmp_path / "raw.bin").write_bytes(SECRET.tobytes())
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file.create_dataset("features", (3, 2), "f4", external=[(str(tmp_path / "raw.bin"), 0, 24)])
    refused(tmp_path / "evil.h5", "keeps its data in other files")


def test_virtual_data_set(tmp_path: Path, secret: Path) -> None:
    layout = h5py.VirtualLayout((3, 2), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "features", (3, 2))
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
        file.create_virtual_dataset("coords", layout)
    refused(tmp_path / "evil.h5", "keeps its data in other files")
    with h5py.File(tmp_path / "only.h5", "w") as file:
        file.create_virtual_dataset("something", layout)
    refused(tmp_path / "only.h5", "cannot tell which")


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


def test_a_compression_bomb(tmp_path: Path) -> None:
    zeros = np.zeros((20_000, 1024), np.float32)
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file.create_dataset("features", data=zeros, chunks=(5000, 1024), compression="gzip", compression_opts=9)
    assert (tmp_path / "evil.h5").stat().st_size < 100_000
    refused(tmp_path / "evil.h5", "declares 81,920,000 bytes but only")


def test_a_circle_of_groups_does_not_hang(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        inner = file.create_group("a")
        inner["b"] = file["/"]
    refused(tmp_path / "evil.h5", "it has none")


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


@pytest.mark.timeout(60)
def test_bit_flips_never_crash_or_hang(tmp_path: Path) -> None:
    raw = good_file(tmp_path / "good.h5")
    draw = random.Random(0)
    refusals = 0
    for _ in range(600):
        damaged = bytearray(raw)
        for _ in range(draw.choice([1, 1, 4])):
            damaged[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        (tmp_path / "flip.h5").write_bytes(damaged)
        try:
            read_bag_file(tmp_path / "flip.h5")
        except QGMILError as error:
            refusals += 1
            assert "flip.h5" in str(error)
    assert refusals > 50


def test_a_text_that_declares_gigabytes(tmp_path: Path) -> None:
    good_file(tmp_path / "good.h5")
    with h5py.File(tmp_path / "good.h5") as file:
        offset = file["instance_ids"].id.get_offset()
    damaged = bytearray((tmp_path / "good.h5").read_bytes())
    damaged[offset : offset + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "evil.h5").write_bytes(damaged)
    with pytest.raises(ReadError, match=r"evil\.h5: a text of 4,294,967,295 bytes is not in its heap"):
        read_bag_file(tmp_path / "evil.h5")


def test_one_hostile_file_does_not_stop_the_check_of_the_others(tmp_path: Path, secret: Path) -> None:
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(secret), "/features")
    (tmp_path / "bags.csv").write_text("bag_id,label,features\na,1,evil.h5\nb,0,secret.h5\nc,0,secret.h5\n")
    report = check_bags(tmp_path / "bags.csv")
    assert [p.bag_id for p in report.problems if p.kind == "broken"] == ["a"]
    assert report.readable == 2
