"""Folders of cells as one bag, and DSMIL's files whose last columns are the label."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bags.layouts import bag_features, write_cells, write_dsmil, write_scemila
from qgmil.bags.readers import (
    EmptyBagError,
    bag_file_shape,
    bag_files,
    bag_label,
    check_bag_path,
    read_bag_file,
    reader_for,
)
from qgmil.errors import ReadError


def folder_of(tmp_path: Path, **cells: np.ndarray) -> Path:
    folder = tmp_path / "patient"
    folder.mkdir()
    for name, array in cells.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_cells_are_in_the_natural_order_of_their_names(tmp_path: Path) -> None:
    values = {name: np.full(3, i, np.float32) for i, name in enumerate(("b10", "b2", "B1", "b2a", "7", "b02"))}
    bag = read_bag_file(folder_of(tmp_path, **values))
    assert bag.instance_ids == ("7", "B1", "b02", "b2", "b2a", "b10")
    assert bag.features[:, 0].tolist() == [4, 2, 5, 1, 3, 0]


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a=np.ones(3, np.float32), b=np.zeros(3, np.float32))
    for name in ("a.tif", "metadata.csv", ".c.npy", "._d.npy"):
        (folder / name).write_text("no features")
    (folder / "more").mkdir()
    (folder / "folder.npy").mkdir()
    np.save(folder / "more" / "e.npy", np.ones(3))
    assert read_bag_file(folder).instance_ids == ("a", "b")
    assert [f.name for f in bag_files(folder)] == ["a.npy", "b.npy"]


def test_vectors_and_matrices_of_several_kinds_are_one_bag(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a=np.full((1, 2), 1.0, np.float32), c=np.array([[3, 3], [4, 4]], np.float32))
    torch.save(torch.full((2,), 2.0), folder / "b.pt")
    bag = read_bag_file(folder)
    assert bag.features.tolist() == [[1, 1], [2, 2], [3, 3], [4, 4]]
    assert bag.instance_ids == ("a", "b", "c#0", "c#1")
    assert bag_file_shape(folder) == (4, 2)


def test_the_data_set_is_that_of_every_cell(tmp_path: Path) -> None:
    folder = tmp_path / "patient"
    folder.mkdir()
    for name, value in {"a": 1.0, "b": 2.0}.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"], file["cls"] = np.zeros(4, np.float32), np.full(4, value, np.float32)
    assert read_bag_file(folder, dataset="cls").features.tolist() == [[1.0] * 4, [2.0] * 4]


def test_scemila_names_and_labels_of_one_file(tmp_path: Path) -> None:
    cell, expected = write_scemila(tmp_path)[0]
    with h5py.File(cell / "features.h5", "w") as file:
        file["features"] = expected.features
        file.create_dataset("instance_ids", data=["w", "x", "y", "z"])
        file["instance_labels"] = [0, 1, 0, 1]
    (cell / "features.npy").unlink()
    bag = read_bag_file(cell)
    assert bag.instance_ids == ("features#w", "features#x", "features#y", "features#z")
    assert bag.instance_labels.tolist() == [0, 1, 0, 1]


def test_a_bad_cell_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a=np.ones(3, np.float32), b=np.ones(3, np.float32), c=np.ones(3, np.float32))
    np.save(folder / "b.npy", np.ones(4, np.float32))
    with pytest.raises(ReadError, match=r"patient/b\.npy: has 4 features where a\.npy has 3"):
        read_bag_file(folder)
    np.save(folder / "b.npy", np.zeros((0, 3), np.float32))
    with pytest.raises(ReadError, match=r"patient/b\.npy: is empty.*one cell of the bag"):
        read_bag_file(folder)
    np.save(folder / "b.npy", np.array([{}], dtype=object))
    for read in (read_bag_file, bag_file_shape):
        with pytest.raises(ReadError, match=r"patient/b\.npy: holds Python objects"):
            read(folder)
    (folder / "b.npy").write_bytes(b"\x93NUMPY garbage")
    with pytest.raises(ReadError, match=r"patient/b\.npy"):
        read_bag_file(folder)


def test_two_files_of_one_cell_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a=np.ones(3, np.float32))
    torch.save(torch.ones(3), folder / "a.pt")
    with pytest.raises(ReadError, match=r"patient: both 'a\.npy' and 'a\.pt' hold 'a'"):
        read_bag_file(folder)


def test_folders_without_cells(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with pytest.raises(ReadError, match=r"patient: is a folder without feature files"):
        read_bag_file(folder)
    np.save(folder / "all.npy", np.zeros((0, 3), np.float32))
    with pytest.raises(EmptyBagError, match=r"all\.npy: is empty"):
        read_bag_file(folder)
    assert bag_file_shape(folder) == (0, 3)


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a=np.ones(3, np.float32))
    check_bag_path(folder)
    with pytest.raises(ReadError, match=r"patient: is a folder, not a npy file; .*--format cells"):
        read_bag_file(folder, format="npy")
    with pytest.raises(ReadError, match=r"a\.npy: is not a folder"):
        read_bag_file(folder / "a.npy", format="cells")


def test_a_thousand_cells_are_read_in_a_moment(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **{f"c{i}": np.full(8, i, np.float32) for i in range(1000)})
    bag = read_bag_file(folder)
    assert bag.features[:, 0].tolist() == list(range(1000))


# DSMIL


def write_pt(path: Path, rows: list[list[float]]) -> Path:
    torch.save(torch.tensor(rows), path)
    return path


def test_dsmil_keeps_the_label_out_of_the_features(tmp_path: Path) -> None:
    for cell, expected in write_dsmil(tmp_path):
        for dataset in (None, "2"):
            bag = read_bag_file(cell, format="dsmil", dataset=dataset)
            assert bag.features.tolist() == expected.features.tolist()
            assert bag_label(cell, format="dsmil", dataset=dataset) == expected.label
        assert reader_for(cell).name == "pt"  # nothing in the file says that the last columns are a label


def test_dsmil_one_column_of_labels_must_be_named_where_it_is_0(tmp_path: Path) -> None:
    cells = write_dsmil(tmp_path, classes=1)
    assert [bag_label(s.cell, format="dsmil", dataset="1") for s in cells] == ["1", "1", "0"]
    with pytest.raises(
        ReadError, match=r"slide_c\.pt: cannot tell how many of its 7 columns are the label .*--dataset"
    ):
        read_bag_file(cells[2].cell, format="dsmil")


def test_dsmil_never_guesses_too_few_columns(tmp_path: Path) -> None:
    dead = write_pt(tmp_path / "dead.pt", [[0.5, 0.0, 0.0, 1.0], [0.7, 0.0, 0.0, 1.0]])
    assert read_bag_file(dead, format="dsmil").features.tolist() == [[0.5], pytest.approx([0.7])]
    assert read_bag_file(dead, format="dsmil", dataset="2").features.shape == (2, 2)
    for rows in ([[0.5, 1.0, 1.0]], [[0.5, 0.0, 0.0]], [[0.0, 1.0]], [[0.5, 0.25]]):
        with pytest.raises(ReadError, match=r"ask\.pt: cannot tell how many"):
            read_bag_file(write_pt(tmp_path / "ask.pt", rows), format="dsmil")


@pytest.mark.parametrize("dataset", ["3", "1", "6"])
def test_dsmil_columns_that_are_no_label(tmp_path: Path, dataset: str) -> None:
    path = write_pt(tmp_path / "a.pt", [[0.5, 2, 3, 4, 5, 1, 0], [0.5, 2, 3, 4, 5, 1, 1]])
    with pytest.raises(
        ReadError, match=rf"a\.pt: the last {dataset} columns are no one-hot label.*--dataset {dataset}"
    ):
        read_bag_file(path, format="dsmil", dataset=dataset)


@pytest.mark.parametrize("dataset", ["0", "8", "-1", "two", "²", "1" * 5000])
def test_dsmil_numbers_of_columns_that_cannot_be(tmp_path: Path, dataset: str) -> None:
    cell = write_dsmil(tmp_path)[0].cell
    with pytest.raises(ReadError, match=r"slide_a\.pt: for DSMIL, --dataset .* number of label columns, from 1 to 7"):
        read_bag_file(cell, format="dsmil", dataset=dataset)


def test_dsmil_class_of_no_column_is_unknown(tmp_path: Path) -> None:
    path = write_pt(tmp_path / "a.pt", [[0.5, 0, 0], [0.7, 0, 0]])
    assert bag_label(path, format="dsmil", dataset="2") is None
    assert read_bag_file(path, format="dsmil", dataset="2").features.shape == (2, 1)


def test_dsmil_empty_slide(tmp_path: Path) -> None:
    torch.save(torch.zeros(0, 8), tmp_path / "a.pt")
    with pytest.raises(EmptyBagError, match=r"a\.pt: is empty"):
        read_bag_file(tmp_path / "a.pt", format="dsmil")
    assert 0 in bag_file_shape(tmp_path / "a.pt", format="dsmil")


def test_cells_of_every_folder_are_its_own(tmp_path: Path) -> None:
    samples = write_cells(tmp_path)
    for cell, expected in samples:
        assert read_bag_file(cell).features.tolist() == bag_features(expected.bag).tolist()
