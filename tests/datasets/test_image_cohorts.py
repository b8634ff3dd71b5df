"""DeepAPL and GlaS as they are published: trees of images with a table."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_trees import image, trident

from qgmil.datasets import load_dataset
from qgmil.datasets.deepapl import read_cells
from qgmil.errors import ConfigError, ManifestError, ReadError, SplitError

MASTER = "Patient_ID,Diagnosis,Cohort,Age at Diagnosis,Gender\n"


def deepapl(root: Path, patients: int = 10) -> Path:
    """Patients with three cells each (the last four: Validation), in ``Data/All``; returns that folder."""
    everyone = root / "DeepAPL" / "Data" / "All"
    rows = [MASTER]
    for p in range(patients):
        name, seed = f"Patient_{p:02d}", 10 * p
        dated = "2019-04-30_1548/" if p % 2 else ""
        image(everyone / name / f"{dated}Signed slides/Lymphocyte/LY_{p}.png", seed)
        image(everyone / name / f"{dated}Signed slides/Blast, no lineage spec/BL_{p}.png", seed + 1)
        image(everyone / name / f"{dated}Unsigned slides/SNE_{p}.png", seed + 2)
        (everyone / name / "Thumbs.db").write_bytes(b"no image")
        cohort = "Validation" if p >= patients - 4 else "Discovery"
        rows.append(f"{name},{'APL' if p % 2 else 'AML'},{cohort},{40 + p},{'Male' if p % 3 else 'Female'}\n")
    (everyone.parent / "master.csv").write_text("".join(rows))
    return everyone


def test_deepapl_drops_duplicates_fields_and_broken_files_by_name(tmp_path: Path) -> None:
    everyone = deepapl(tmp_path)
    first = everyone / "Patient_00" / "Signed slides" / "Lymphocyte" / "LY_0.png"
    shutil.copy(first, everyone / "Patient_00" / "Unsigned slides" / "copy.png")
    shutil.copy(first, everyone / "Patient_03" / "another.png")  # in another patient: a leak
    image(everyone / "Patient_01" / "field.png", 991, (1001, 8))
    image(everyone / "Patient_01" / "cell_1000.png", 992, (1000, 8))
    (everyone / "Patient_02" / "cut.png").write_bytes(first.read_bytes()[:200])
    (everyone / "Patient_02" / "empty.jpg").write_bytes(b"")
    (everyone / "Patient_02" / "text.tif").write_text("no image")
    cells = read_cells(everyone, [f"Patient_{p:02d}" for p in range(6)])
    assert {p: len(c) for p, c in cells.kept.items()} == {f"Patient_{p:02d}": 4 if p == 1 else 3 for p in range(6)}
    said = {path.name: reason for path, reason in cells.dropped}
    assert set(said) == {"copy.png", "another.png", "field.png", "cut.png", "empty.jpg", "text.tif"}
    same = "the same content as Patient_00/Signed slides/Lymphocyte/LY_0.png"
    assert said["copy.png"] == said["another.png"] == same
    assert said["field.png"] == "is 1001 px wide, more than 1000"
    assert "the file has zero bytes" in said["empty.jpg"]
    assert "cannot be read as an image" in said["cut.png"]
    assert "cannot be read as an image" in said["text.tif"]
    kept = {c.path.name: c for c in cells.kept["Patient_00"]}
    assert kept["LY_0.png"].instance_id == hashlib.md5(first.read_bytes()).hexdigest()[:16]
    assert (kept["LY_0.png"].cell_type, kept["SNE_0.png"].cell_type) == ("Lymphocyte", None)
    notes = load_dataset("deepapl", tmp_path, features="colour").notes
    assert "dropped Data/All/Patient_01/field.png: is 1001 px wide, more than 1000" in notes
    assert len([n for n in notes if n.startswith("dropped")]) == 6


def test_deepapl_links_out_of_the_tree_are_not_followed(tmp_path: Path) -> None:
    everyone = deepapl(tmp_path)
    secret = image(tmp_path / "elsewhere" / "secret.png", 5)
    (everyone / "Patient_00" / "link.png").symlink_to(secret)
    (everyone / "Patient_00" / "folder").symlink_to(secret.parent)
    assert len(read_cells(everyone, ["Patient_00"]).kept["Patient_00"]) == 3


def test_deepapl_colour_is_the_mean_and_spread_of_each_cell(tmp_path: Path) -> None:
    everyone = deepapl(tmp_path)
    loaded = load_dataset("deepapl", tmp_path, features="colour")
    assert loaded.bags.bag_ids == tuple(f"Patient_{p:02d}" for p in range(6))
    assert loaded.bags.labels == ("AML", "APL") * 3
    bag = loaded.bags[0]
    path = everyone / "Patient_00" / "Signed slides" / "Blast, no lineage spec" / "BL_0.png"  # sorted first
    pixels = np.asarray(Image.open(path), dtype=np.float64).reshape(-1, 3) / 255
    assert np.allclose(bag.features[0].numpy(), [*pixels.mean(axis=0), *pixels.std(axis=0)], atol=1e-5)
    assert bag.instance_ids is not None
    assert bag.instance_ids[0] == hashlib.md5(path.read_bytes()).hexdigest()[:16]
    assert "features: colour, a control" in loaded.notes


def test_deepapl_cohorts(tmp_path: Path) -> None:
    deepapl(tmp_path)
    validation = load_dataset("deepapl", tmp_path, features="colour", cohort="Validation")
    assert validation.bags.bag_ids == ("Patient_06", "Patient_07", "Patient_08", "Patient_09")
    both = load_dataset("deepapl", tmp_path, features="colour", cohort="all")
    (split,) = both.splits
    assert both.split_columns == ("split",)
    assert split.test == validation.bags.bag_ids
    assert sorted((*split.train, *split.val)) == [f"Patient_{p:02d}" for p in range(6)]
    assert split.val
    with pytest.raises(ConfigError, match="cohort='discovery' must be one of 'Discovery', 'Validation', 'all'"):
        load_dataset("deepapl", tmp_path, cohort="discovery")


def test_deepapl_with_features_from_elsewhere(tmp_path: Path) -> None:
    everyone = deepapl(tmp_path)
    shutil.copy(everyone / "Patient_02/Unsigned slides/SNE_2.png", everyone / "Patient_02" / "zz.png")
    folder = tmp_path / "features"
    for p in (0, 1, 3, 4, 5):
        trident(folder / f"Patient_{p:02d}.h5", 3 + p)
    for stem in ("BL_2", "LY_2", "SNE_2", "zz"):
        trident(folder / "Patient_02" / f"{stem}.h5", 1)
    loaded = load_dataset("deepapl", tmp_path, features=str(folder))
    assert [len(loaded.bags[i]) for i in range(6)] == [3, 4, 3, 6, 7, 8]  # the duplicate zz is not among Patient_02's
    (folder / "Patient_04.h5").unlink()
    with pytest.raises(ReadError, match=r"1 of 6 bags have no features:\n  Patient_04 \(there is no .*Patient_04.h5\)"):
        load_dataset("deepapl", tmp_path, features=str(folder))
    rest = load_dataset("deepapl", tmp_path, features=str(folder), skip=["missing"])
    assert len(rest.bags) == 5
    assert rest.bags.skipped[0][0] == "Patient_04"
    with pytest.raises(ConfigError, match="it must be a list of some of"):
        load_dataset("deepapl", tmp_path, features=str(folder), skip=["lost"])


def test_deepapl_says_what_is_wrong(tmp_path: Path) -> None:
    everyone = deepapl(tmp_path)
    with pytest.raises(ReadError, match=r"deepapl is published as images; name a folder .* or take 'colour'"):
        load_dataset("deepapl", tmp_path)
    shutil.rmtree(everyone / "Patient_05")
    with pytest.raises(ReadError, match="1 patients have no folder: 'Patient_05'; unpack all of them"):
        load_dataset("deepapl", tmp_path, features="colour")
    for row, said in (
        ("../x,AML,Discovery,1,Male", "patient '../x' cannot be used"),
        ("Patient_00,AML,Test,1,Male", "cohort 'Test'; expected 'Discovery', 'Validation'"),
    ):
        (everyone.parent / "master.csv").write_text(f"{MASTER}{row}\n")
        with pytest.raises(ManifestError, match=f"line 2: {said}"):
            load_dataset("deepapl", tmp_path, features="colour")


def glas(root: Path) -> Path:
    """Twelve images of four patients, each with one in train and in test; with a folder around, as unpacked."""
    folder = root / "glas" / "Warwick QU Dataset (Released 2016_07_08)"
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]  # blanks as published
    for i in range(12):
        part = ("train", "testA", "testB")[i % 3]
        image(folder / f"{part}_{i}.bmp", i, (120, 115))
        image(folder / f"{part}_{i}_anno.bmp", 100 + i)
        rows.append(f"{part}_{i},{i // 3}, {'benign' if i // 3 % 2 else 'malignant'}, healthy")
    (folder / "Grade.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_glas_groups_by_patient_and_says_that_the_published_parts_leak(tmp_path: Path) -> None:
    glas(tmp_path)
    loaded = load_dataset("glas", tmp_path, features="colour")
    assert loaded.bags.labels == ("malignant",) * 3 + ("benign",) * 3 + ("malignant",) * 3 + ("benign",) * 3
    assert set(loaded.bags.groups) == {"0", "1", "2", "3"}
    (published,) = loaded.published
    assert published.train == ("train_0", "train_3", "train_6", "train_9")
    assert len(published.test) == 8
    assert "the published parts share 4 of 4 patients: do not use them to report results" in loaded.notes
    assert loaded.split_columns == ()
    with pytest.raises(SplitError, match="4 patients cannot fill 5 folds"):  # only now, and only here
        _ = loaded.splits


def test_glas_tiles_have_coordinates(tmp_path: Path) -> None:
    folder = glas(tmp_path)
    bag = load_dataset("glas", tmp_path, features="colour").bags[1]
    assert bag.bag_id == "testA_1"
    assert bag.coords is not None
    assert bag.coords.tolist() == [[0, 0], [48, 0], [0, 48], [48, 48]]  # 64 px every 48 px in 120 x 115
    assert (bag.coord_unit, bag.tile_size, bag.mpp) == ("px", 64.0, 0.62)
    pixels = np.asarray(Image.open(folder / "testA_1.bmp"), dtype=np.float64)[48:112, 48:112].reshape(-1, 3) / 255
    assert np.allclose(bag.features[3].numpy(), [*pixels.mean(axis=0), *pixels.std(axis=0)], atol=1e-5)


def test_glas_with_features_from_elsewhere(tmp_path: Path) -> None:
    glas(tmp_path)
    for i in range(12):
        trident(tmp_path / "f" / f"{('train', 'testA', 'testB')[i % 3]}_{i}.h5", 2 + i)
    loaded = load_dataset("glas", tmp_path, features=str(tmp_path / "f"))
    assert [len(loaded.bags[i]) for i in range(12)] == list(range(2, 14))
    assert loaded.bags[0].tile_size == 512
    (tmp_path / "f" / "train_0.npy").write_bytes(b"x")
    with pytest.raises(ReadError, match=r"has 'train_0.h5', 'train_0.npy', all features of 'train_0'"):
        load_dataset("glas", tmp_path, features=str(tmp_path / "f"))


def test_glas_images_of_no_part_are_refused(tmp_path: Path) -> None:
    folder = glas(tmp_path)
    (folder / "Grade.csv").write_text("name,patient ID,grade (GlaS)\nval_1,1,benign\n")
    with pytest.raises(ManifestError, match="line 2: 'val_1' is in none of the parts train, testA, testB"):
        load_dataset("glas", tmp_path, features="colour")
