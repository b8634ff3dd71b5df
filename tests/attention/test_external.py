"""Attention from elsewhere: every layout, and files that are wrong."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from qgmil.attention.external import as_weights, read_scores, score_files
from qgmil.attention.given import GivenScores
from qgmil.errors import ManifestError, ReadError

A, B = np.array([0.2, 0.3, 0.5]), np.array([0.9, 0.1])


def check(found: dict[str, GivenScores], a: str = "a", b: str = "b") -> None:
    assert sorted(found) == [a, b]
    np.testing.assert_allclose(found[a].values, A)
    np.testing.assert_allclose(found[b].values, B)
    assert all(v.values.dtype == np.float64 for v in found.values())


def test_an_archive_with_an_array_a_bag(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", a=A, b=B.astype(np.float32).reshape(1, -1))
    check(read_scores(tmp_path / "all.npz"))


def test_one_file_a_bag(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", A)
    np.savez(tmp_path / "b.npz", attention=B, coords=np.zeros((2, 2)))
    (tmp_path / "notes.md").write_text("not a score")
    check(read_scores(tmp_path))


def test_hdf5_of_one_bag_as_slide_tools_write_it(tmp_path: Path) -> None:
    for name, values in (("a", A), ("b", B)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["attention_scores"] = values.reshape(-1, 1)
            file["coords"] = np.zeros((len(values), 2))
    check(read_scores(tmp_path))


def test_hdf5_of_all_bags_as_arrays_or_groups(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["a"] = A
        file["b/scores"] = B
    check(read_scores(tmp_path / "all.h5"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_with_a_line_an_instance(tmp_path: Path, kind: str) -> None:
    frame = pl.DataFrame({"slide_id": ["a", "a", "b", "a", "b"], "attention": [0.2, 0.3, 0.9, 0.5, 0.1], "x": [0] * 5})
    path = tmp_path / f"all.{kind}"
    frame.write_csv(path) if kind == "csv" else frame.write_parquet(path)
    check(read_scores(path))


def test_a_table_without_bags_is_one_bag(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("score\n0.2\n0.3\n0.5\n")
    np.testing.assert_allclose(read_scores(tmp_path / "a.csv")["a"].values, A)


def blockmap(folder: Path, bag_id: str, values: np.ndarray, coords: np.ndarray) -> None:
    """A slide's folder as CLAM leaves it: its features, and the scores beside them."""
    folder.mkdir(parents=True)
    with h5py.File(folder / f"{bag_id}.h5", "w") as file:
        file["features"], file["coords"] = np.zeros((len(values), 4)), coords
    with h5py.File(folder / f"{bag_id}_blockmap.h5", "w") as file:
        file["attention_scores"], file["coords"] = values.reshape(-1, 1), coords


def test_the_folders_of_clam(tmp_path: Path) -> None:
    places = np.array([[0, 256], [0, 512], [256, 0]])
    blockmap(tmp_path / "raw" / "tumour" / "a", "a", A, places)
    blockmap(tmp_path / "raw" / "normal" / "b", "b", B, places[:2])
    found = read_scores(tmp_path / "raw")
    check(found)
    assert found["a"].coords is not None
    np.testing.assert_array_equal(found["a"].coords, places)
    assert found["b"].path == tmp_path / "raw" / "normal" / "b" / "b_blockmap.h5"


def test_files_of_a_folder_hide_those_in_its_folders(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", A)
    (tmp_path / "old").mkdir()
    np.save(tmp_path / "old" / "a.npy", A[::-1])
    assert score_files(tmp_path) == [tmp_path / "a.npy"]
    assert score_files(tmp_path / "old" / "a.npy") == [tmp_path / "old" / "a.npy"]


def test_a_table_says_which_instance_and_where(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("bag_id,instance,score,x,y\na,c2,0.5,512,0\nb,0,0.9,0,0\na,c1,0.3,256,1\n")
    found = read_scores(tmp_path / "t.csv")
    assert (found["a"].instances, found["b"].instances) == (("c2", "c1"), ("0",))
    assert found["a"].coords is not None
    assert found["a"].coords.tolist() == [[512, 0], [256, 1]]


def test_coordinates_with_a_leading_axis_and_in_groups(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", attention=A, coords=np.arange(6).reshape(1, 3, 2))
    with h5py.File(tmp_path / "rest.h5", "w") as file:
        file["b/scores"], file["b/coords"] = B, np.array([[1, 2], [3, 4]])
    found = read_scores(tmp_path)
    assert [found[b].coords.tolist() for b in "ab"] == [[[0, 1], [2, 3], [4, 5]], [[1, 2], [3, 4]]]  # type: ignore[union-attr]


def broken(folder: Path, kind: str) -> Path:
    path = folder / "a.npy"
    match kind:
        case "text":
            (folder / "a.csv").write_text("bag_id,score\na,0.5\nb,high\n")
            return folder / "a.csv"
        case "column":
            (folder / "a.csv").write_text("bag_id,value\na,0.5\n")
            return folder / "a.csv"
        case "blank":
            (folder / "a.csv").write_text("bag_id,score\na,0.5\n,0.5\n")
            return folder / "a.csv"
        case "place":
            (folder / "a.csv").write_text("bag_id,score,x,y\na,0.5,0,here\n")
            return folder / "a.csv"
        case "places":
            np.savez(folder / "a.npz", score=A, coords=np.zeros((2, 2)))
            return folder / "a.npz"
        case "boxes":
            np.savez(folder / "a.npz", score=A, coords=np.zeros((3, 4)))
            return folder / "a.npz"
        case "nowhere":
            np.savez(folder / "a.npz", score=A, coords=np.full((3, 2), np.nan))
            return folder / "a.npz"
        case "nan":
            np.save(path, np.array([0.1, np.nan]))
        case "matrix":
            np.save(path, np.zeros((3, 2)))
        case "object":
            np.save(path, np.array([{}, {}], dtype=object))
        case "garbage":
            path.write_bytes(b"\x93NUMPY garbage")
        case "twice":
            np.save(path, A)
            np.savez(folder / "other.npz", a=A)
            return folder
        case "link":
            with h5py.File(folder / "b.h5", "w") as file:
                file["secret"] = A
            with h5py.File(folder / "a.h5", "w") as file:
                file["a"] = h5py.ExternalLink("b.h5", "secret")
            return folder / "a.h5"
        case "group":
            with h5py.File(folder / "a.h5", "w") as file:
                file["a/other"] = A
            return folder / "a.h5"
        case "ending":
            (folder / "a.xyz").write_text("1")
            return folder / "a.xyz"
        case "empty":
            (folder / "in").mkdir()
            return folder / "in"
        case "gone":
            return folder / "gone"
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", r"a\.csv: line 3, column 'score': 'high' is no number"),
        ("column", r"a\.csv: has no column of scores \(.*score.*it has .*bag_id.*value"),
        ("blank", r"a\.csv: line 3 has a blank 'bag_id'"),
        ("place", r"a\.csv: line 2, column 'y': 'here' is no number"),
        ("places", r"a\.npz: the coords of bag 'a' are float64 of shape \(2, 2\); expected two .* each of its 3"),
        ("boxes", r"a\.npz: the coords of bag 'a' are float64 of shape \(3, 4\)"),
        ("nowhere", r"a\.npz: the coords of bag 'a' .*two finite numbers"),
        ("nan", r"a\.npy: bag 'a': the score of instance 1 is nan"),
        ("matrix", r"a\.npy: the scores of bag 'a' have shape \(3, 2\)"),
        ("object", r"a\.npy: "),
        ("garbage", r"a\.npy: "),
        ("twice", r"other\.npz: bag 'a' is in .*a\.npy as well"),
        ("link", r"a\.h5: "),
        ("group", r"a\.h5: 'a' holds no scores"),
        ("ending", r"a\.xyz: scores are read from .*npz"),
        ("empty", r"in: has no files of scores"),
        ("gone", r"gone: no such file or folder"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises((ReadError, ManifestError), match=message):
        read_scores(broken(tmp_path, kind))


def test_scores_become_weights() -> None:
    np.testing.assert_allclose(as_weights(A).values, A)
    np.testing.assert_allclose(as_weights(A * 7, "sum").values, A)
    np.testing.assert_allclose(as_weights(np.log(A) + 1000, "softmax").values, A)
    assert as_weights(A).is_mass


@pytest.mark.parametrize(
    ("values", "how", "message"),
    [
        (A * 7, "none", r"bag 'x': its scores sum to 7, not 1.*--normalise sum"),
        (A - 0.3, "none", r"bag 'x': the score of instance 0 is -0\.1.*softmax"),
        (A - 0.3, "sum", r"instance 0 is -0\.1"),
        (A * 0, "sum", r"all its scores are 0"),
    ],
)
def test_scores_that_are_no_weights_are_refused(values: np.ndarray, how: str, message: str) -> None:
    with pytest.raises(ReadError, match=message):
        as_weights(values, how, bag_id="x")  # type: ignore[arg-type]
