"""Files beside a feature file: read from where they belong, under the same guards, and never from anywhere else."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from bags.layouts import Sample, write_cells, write_clam, write_slideflow, write_torchmil
from qgmil.bags.readers import LockedFileError, bag_label, read_bag_file
from qgmil.bags.readers.siblings import beside, is_beside
from qgmil.errors import ReadError

CASES = {
    "clam_patches": (write_clam, "patches/slide_a.h5"),
    "clam_coords": (write_clam, "features/h5_files/slide_a.h5"),
    "torchmil_coords": (write_torchmil, "coords/slide_a.npy"),
    "torchmil_truth": (write_torchmil, "inst_labels/slide_a.npy"),
    "slideflow_index": (write_slideflow, "bags/slide_a.index.npz"),
    "slideflow_config": (write_slideflow, "bags/bags_config.json"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Sample, Path]:
    """A bag, and a file that is read with it."""
    write, name = CASES[request.param]
    return write(tmp_path / "data")[0], tmp_path / "data" / name


def test_a_link_out_of_the_data_is_not_followed(case: tuple[Sample, Path], tmp_path: Path) -> None:
    sample, other = case
    other.rename(tmp_path / "secret")
    other.symlink_to(tmp_path / "secret")
    with pytest.raises(ReadError, match=rf"{other.name}: is a link out of .*copy the file"):
        read_bag_file(sample.cell)


def test_a_broken_link_and_a_circle_are_not_followed(case: tuple[Sample, Path]) -> None:
    sample, other = case
    for target in ("../../nowhere", other.name):
        other.unlink()
        other.symlink_to(target)
        with pytest.raises(ReadError, match=rf"{other.name}|{sample.cell.name}"):
            read_bag_file(sample.cell)


def test_a_lock_beside_it_is_seen(case: tuple[Sample, Path]) -> None:
    sample, other = case
    Path(f"{other}.lock").touch()
    with pytest.raises(LockedFileError, match=rf"{other.name}: is still being written"):
        read_bag_file(sample.cell)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
@pytest.mark.timeout(20)
def test_a_pipe_does_not_block(case: tuple[Sample, Path]) -> None:
    sample, other = case
    other.unlink()
    os.mkfifo(other)
    with pytest.raises(ReadError, match=rf"{other.name}: is not a regular file"):
        read_bag_file(sample.cell)


def test_garbage_beside_it_is_named(case: tuple[Sample, Path]) -> None:
    sample, other = case
    other.write_bytes(b"\0garbage" * 9)
    with pytest.raises(ReadError, match=other.name):
        read_bag_file(sample.cell)


def test_a_folder_that_is_a_link_out_of_the_data(tmp_path: Path) -> None:
    cell = write_torchmil(tmp_path / "data")[0].cell
    for name in ("coords", "labels"):
        (tmp_path / "data" / name).rename(tmp_path / name)
        (tmp_path / "data" / name).symlink_to(tmp_path / name)
    with pytest.raises(ReadError, match=r"coords/slide_a\.npy: is a link out of .*data;"):
        read_bag_file(cell)
    with pytest.raises(ReadError, match=r"labels/slide_a\.npy: is a link out of"):
        bag_label(cell)
    assert read_bag_file(cell, format="npy").features.shape == (4, 6)  # the features alone can be had


def test_links_inside_the_data_are_followed(tmp_path: Path) -> None:
    cell, expected = write_torchmil(tmp_path / "data")[0]
    (tmp_path / "data" / "coords").rename(tmp_path / "data" / "coords_v2")
    (tmp_path / "data" / "coords").symlink_to("coords_v2")
    assert read_bag_file(cell).coords.tolist() == expected.coords.tolist()


def test_hostile_patches_are_guarded_like_any_file(tmp_path: Path) -> None:
    cell = write_clam(tmp_path / "data", h5=False)[0].cell
    patches = tmp_path / "data" / "patches" / "slide_a.h5"
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["coords"] = np.full((4, 2), 42)
    with h5py.File(patches, "w") as file:
        file["coords"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/coords")
    with pytest.raises(ReadError, match=r"patches/slide_a\.h5: 'coords' is a link to another file"):
        read_bag_file(cell)
    with h5py.File(patches, "w") as file:
        file.create_dataset("coords", (10**12, 2), "i8", chunks=(1024, 2))
    with pytest.raises(ReadError, match=r"patches/slide_a\.h5: .*declares 16,000,000,000,000 bytes"):
        read_bag_file(cell)


def test_a_cell_that_is_a_link_out_of_its_folder(tmp_path: Path) -> None:
    folder = write_cells(tmp_path / "data")[0].cell
    np.save(tmp_path / "secret.npy", np.ones(6, np.float32))
    (folder / "cell_3.npy").unlink()
    (folder / "cell_3.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(ReadError, match=r"cell_3\.npy: is a link out of the folder"):
        read_bag_file(folder)
    (folder / "cell_3.npy").unlink()
    (folder / "cell_3.npy").symlink_to("cell_4.npy")
    bag = read_bag_file(folder)
    assert bag.features[3].tolist() == bag.features[4].tolist()


def test_only_the_given_places_are_looked_at(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/b/other", "a/other", "other"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "x.txt").write_text(name)
    path = tmp_path / "a" / "b" / "c" / "file"
    assert beside(path, ((0, "."),), "x.txt") == path.with_name("x.txt")
    assert beside(path, ((1, "other"), (2, "other")), "x.txt").read_text() == "a/b/other"
    assert beside(path, ((2, "other"),), "x.txt").read_text() == "a/other"
    assert beside(path, ((2, "none"),), "x.txt") is None
    assert not is_beside(path, ((99, "other"),), "x.txt")  # above the root there is nothing
