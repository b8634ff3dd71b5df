"""AML-Hehr, CAMELYON16, PANDA, RSNA, BRACS and TCGA as trees of features of the published shape."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from published_trees import npy, trident

from qgmil.datasets import find_dataset, load_dataset
from qgmil.errors import ManifestError, ReadError, SplitError

PREFIX = "fnl34_bn_features_layer_7.npy"


def aml(root: Path, per_class: int = 6) -> Path:
    """Six patients of each of two classes, in the folder of the archive."""
    folder = root / "PKG - AML-Cytomorphology_MLL_Helmholtz_v1"
    rows = ["patient_id,sex_1f_2m,age,bag_label,instance_count,leucocytes_per_ul"]
    for label in ("NPM1", "control"):
        for i in range(per_class):
            name = f"{label[0]}{i:03d}"
            npy(folder / "data" / label / name / PREFIX, np.full((i + 2, 4), i, dtype=np.float32))
            (folder / "data" / label / name / "image_0.tif").write_bytes(b"II*\0")
            rows.append(f"{name},1,{50 + i},{label},{i + 2},7")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_aml_hehr_has_one_bag_a_patient(tmp_path: Path) -> None:
    folder = aml(tmp_path)
    (folder / "data" / "control" / "extra").mkdir()
    loaded = load_dataset("aml_hehr", tmp_path)
    assert loaded.bags.labels == ("NPM1",) * 6 + ("control",) * 6
    assert [len(loaded.bags[i]) for i in range(6)] == [2, 3, 4, 5, 6, 7]
    assert loaded.bags[3].features[0].tolist() == [3.0] * 4
    assert loaded.bags[0].patient_id == "N000"
    assert loaded.notes == ("1 folders have no row in metadata.csv: 'extra'",)
    assert len(loaded.splits) == 5
    assert sorted(i for s in loaded.splits for i in s.test) == sorted(loaded.bags.bag_ids)


def test_aml_hehr_names_what_is_wrong(tmp_path: Path) -> None:
    folder = aml(tmp_path)
    npy(folder / "data" / "NPM1" / "N001" / "other.npy", np.zeros((2, 4)))
    with pytest.raises(ReadError, match=rf"N001: '{PREFIX}', 'other.npy' all fit '\*.npy'; name the one to read"):
        load_dataset("aml_hehr", tmp_path)
    assert len(load_dataset("aml_hehr", tmp_path, features="fnl34*").bags) == 12
    (folder / "data" / "NPM1" / "N002" / PREFIX).unlink()
    with pytest.raises(ReadError, match=r"1 of 12 bags have no features:\n  N002 \(it has no feature file\)"):
        load_dataset("aml_hehr", tmp_path, features="fnl34*")
    rest = load_dataset("aml_hehr", tmp_path, features="fnl34*", skip=["missing"])
    assert "left out N002: missing: it has no feature file" in rest.notes
    table = folder / "metadata.csv"
    good = table.read_text()
    table.write_text(good.replace("N003,1,53,NPM1", "N003,1,53,control"))
    with pytest.raises(ManifestError, match=r"patient 'N003' has the label 'control' but its folder is .*NPM1/N003"):
        load_dataset("aml_hehr", tmp_path, features="fnl34*")
    table.write_text(good.replace("N003,", "../../N003,"))
    with pytest.raises(ManifestError, match=r"line 5: patient '../../N003' cannot be used"):
        load_dataset("aml_hehr", tmp_path, features="fnl34*")


def test_aml_hehr_patients_with_two_folders_are_refused(tmp_path: Path) -> None:
    folder = aml(tmp_path)
    npy(folder / "data" / "control" / "N001" / PREFIX, np.ones((2, 4), dtype=np.float32))
    with pytest.raises(ManifestError, match=r"line 3: patient 'N001' has several folders, '.*NPM1/N001', '.*control/N"):
        load_dataset("aml_hehr", tmp_path)


def torchmil(root: Path, name: str, truth: str, patches: str = "patches_512") -> Path:
    """Eight training and four test bags; odd ones are positive in their first instance."""
    folder = root / name
    base = folder / patches
    rows = ["bag_name,split"]
    for i in range(12):
        bag = f"bag_{i:02d}"
        npy(base / "features" / "features_UNI" / f"{bag}.npy", np.full((i + 2, 3), i, dtype=np.float32))
        npy(base / "labels" / f"{bag}.npy", np.array([i % 2]))
        npy(base / truth / f"{bag}.npy", np.array([i % 2] + [0] * (i + 1)))
        if truth != "slice_labels":
            npy(base / "coords" / f"{bag}.npy", np.stack([np.arange(i + 2), np.arange(i + 2)], axis=1))
        rows.append(f"{bag},{'test' if i >= 8 else 'train'}")
    (folder / "splits.csv").write_text("\n".join(rows) + "\n")
    return base


@pytest.mark.parametrize(
    ("name", "folder", "truth", "patches"),
    [
        ("camelyon16", "Camelyon16_MIL", "patch_labels", "patches_512"),
        ("panda", "panda", "inst_labels", "patches_512"),
        ("rsna", "RSNA_ICH_MIL", "slice_labels", "."),
    ],
)
def test_torchmil_layouts_with_their_official_parts(
    name: str, folder: str, truth: str, patches: str, tmp_path: Path
) -> None:
    torchmil(tmp_path, folder, truth, patches)
    loaded = load_dataset(name, tmp_path)
    assert loaded.bags.labels == ("0", "1") * 6
    bag = loaded.bags[3]
    assert bag.features.tolist() == [[3.0] * 3] * 5
    assert bag.instance_labels is not None
    assert bag.instance_labels.tolist() == [1, 0, 0, 0, 0]
    assert (bag.coords is None) == (name == "rsna")
    assert bag.coord_unit != "px"  # positions in a grid are no pixels
    (split,) = loaded.splits
    assert loaded.split_columns == ("split",)
    assert split.test == ("bag_08", "bag_09", "bag_10", "bag_11")
    assert sorted((*split.train, *split.val)) == [f"bag_{i:02d}" for i in range(8)]
    assert 1 <= len(split.val) <= 3


def test_torchmil_encoders_patch_sizes_and_files_that_do_not_agree(tmp_path: Path) -> None:
    base = torchmil(tmp_path, "camelyon16", "patch_labels")
    npy(base / "features" / "features_UNI" / "stray.npy", np.zeros((2, 3)))
    assert load_dataset("camelyon16", tmp_path).notes == ("1 bags with features are in no official part: 'stray'",)
    (base / "features" / "features_UNI" / "bag_05.npy").unlink()
    with pytest.raises(ReadError, match=r"1 of 12 bags have no features:\n  bag_05 \(there is no "):
        load_dataset("camelyon16", tmp_path)
    assert len(load_dataset("camelyon16", tmp_path, skip=["missing"]).bags) == 11
    (base / "labels" / "bag_04.npy").unlink()
    with pytest.raises(ManifestError, match="1 bags have no label: 'bag_04'"):
        load_dataset("camelyon16", tmp_path, skip=["missing"])
    npy(base / "labels" / "bag_04.npy", 7)
    with pytest.raises(ReadError, match=r"bag_04.npy: its label is 7; expected 0 or 1"):
        load_dataset("camelyon16", tmp_path)
    npy(base / "labels" / "bag_04.npy", 0)
    npy(base / "features" / "features_resnet50" / "bag_00.npy", np.zeros((2, 8)))
    with pytest.raises(ReadError, match=r"has 'UNI', 'resnet50'; choose with --options.encoder UNI"):
        load_dataset("camelyon16", tmp_path)
    with pytest.raises(ReadError, match="has no folder features_CONCH"):
        load_dataset("camelyon16", tmp_path, encoder="CONCH")
    assert len(load_dataset("camelyon16", tmp_path, encoder="UNI", skip=["missing"]).bags) == 11
    (tmp_path / "camelyon16" / "patches_256").mkdir()
    with pytest.raises(ReadError, match=r"has '256', '512'; choose with --options.patch_size 256"):
        load_dataset("camelyon16", tmp_path, encoder="UNI")
    chosen = load_dataset("camelyon16", tmp_path, encoder="UNI", patch_size=512, skip=["missing"])
    assert chosen.bags.width == 3


def test_torchmil_names_that_climb_are_refused(tmp_path: Path) -> None:
    torchmil(tmp_path, "panda", "inst_labels")
    (tmp_path / "panda" / "splits.csv").write_text("bag_name,split\n../../secret,train\n")
    with pytest.raises(ManifestError, match=r"line 2: bag '../../secret' cannot be used"):
        load_dataset("panda", tmp_path)


def patho_bench(root: Path, name: str, *, folds: int = 2, val: bool = False) -> Path:
    """Sixteen slides of eight patients; each fold tests on two patients."""
    folder = root / name
    task = folder / "splits" / "subtype"
    task.mkdir(parents=True)
    rows = ["\t".join(["case_id", "slide_id", "subtype", *(f"fold_{f}" for f in range(folds))])]
    for i in range(16):
        case = i // 2
        trident(folder / "20x_512px_0px_overlap" / "features_uni" / f"S{i:02d}.A.h5", i + 1)
        sides = ["test" if case // 2 == f else "val" if val and case == 7 else "train" for f in range(folds)]
        rows.append("\t".join([f"C{case}", f"S{i:02d}.A.svs", str(case % 2), *sides]))
    (task / "k=all.tsv").write_text("\n".join(rows) + "\n")
    (task / "config.yaml").write_text("task_col: subtype\nlabel_dict:\n  0: LUAD\n  1: LUSC\n")
    return folder


@pytest.mark.parametrize("name", ["bracs", "tcga_nsclc", "tcga_brca", "tcga_rcc"])
def test_patho_bench_tables_with_trident_features(name: str, tmp_path: Path) -> None:
    patho_bench(tmp_path, name)
    loaded = load_dataset(name, tmp_path)
    assert loaded.bags.bag_ids[:2] == ("S00.A", "S01.A")
    assert loaded.bags.labels == ("LUAD", "LUAD", "LUSC", "LUSC") * 4
    assert loaded.bags.groups == tuple(f"C{i // 2}" for i in range(16))
    bag = loaded.bags[4]
    assert (len(bag), bag.coord_unit, bag.tile_size) == (5, "px", 512)
    assert loaded.split_columns == ("fold_0", "fold_1")
    first, second = loaded.splits
    assert (first.name, first.test) == ("fold_0", ("S00.A", "S01.A", "S02.A", "S03.A"))
    assert second.test == ("S04.A", "S05.A", "S06.A", "S07.A")
    sides = [{loaded.bags.groups[loaded.bags.bag_ids.index(i)] for i in ids} for ids in first.sides().values()]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]


def test_patho_bench_is_found_without_a_walk_through_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = patho_bench(tmp_path, "bracs")
    seen: list[str] = []
    real = os.scandir

    def scandir(path: str | os.PathLike[str]) -> object:
        seen.append(str(Path(path).relative_to(tmp_path)))
        return real(path)

    monkeypatch.setattr("qgmil.datasets.patho_bench.os.scandir", scandir)
    deep = folder / "a" / "b" / "c" / "d" / "e" / "f"
    deep.mkdir(parents=True)
    assert find_dataset("bracs", tmp_path) == folder
    assert not [place for place in seen if "features_" in place]
    table = folder / "splits" / "subtype" / "k=all.tsv"
    for hidden in (deep, folder / "20x_512px_0px_overlap" / "features_uni" / "inside"):
        hidden.mkdir(exist_ok=True)
        table = table.rename(hidden / "k=all.tsv")
        assert find_dataset("bracs", tmp_path) is None
    assert not [place for place in seen if place.endswith(("/e", "features_uni"))]
    table.rename(deep.parent / "k=all.tsv")
    assert find_dataset("bracs", tmp_path) == folder


def test_patho_bench_validation_parts_are_taken_where_there_are_some(tmp_path: Path) -> None:
    patho_bench(tmp_path, "bracs", val=True)
    assert [s.val for s in load_dataset("bracs", tmp_path).splits] == [("S14.A", "S15.A")] * 2


def test_patho_bench_without_folds_recommends_five_by_patient(tmp_path: Path) -> None:
    folder = patho_bench(tmp_path, "tcga_rcc", folds=0)
    loaded = load_dataset("tcga_rcc", tmp_path)
    assert loaded.split_columns == ()
    table = folder / "splits" / "subtype" / "k=all.tsv"
    more = [f"D{i}\tT{i}\t{i % 2}\n" for i in range(4)]
    table.write_text(table.read_text() + "".join(more))
    for i in range(4):
        trident(folder / "20x_512px_0px_overlap" / "features_uni" / f"T{i}.h5", 2)
    assert len(load_dataset("tcga_rcc", tmp_path).splits) == 5


def test_patho_bench_choices_and_files_that_do_not_agree(tmp_path: Path) -> None:
    folder = patho_bench(tmp_path, "bracs")
    features = folder / "20x_512px_0px_overlap" / "features_uni"
    config = folder / "splits" / "subtype" / "config.yaml"
    (features / "S03.A.h5").unlink()
    (features / "S04.A.h5.lock").touch()
    with pytest.raises(ReadError) as caught:
        load_dataset("bracs", tmp_path)
    assert "2 of 16 bags have no features" in str(caught.value)
    assert "S03.A (there is no" in str(caught.value)
    assert "S04.A.h5 is still being written" in str(caught.value)
    trident(features / "S05.A.h5", 0)
    loaded = load_dataset("bracs", tmp_path, skip=("missing", "empty"))
    assert [i for i, _ in loaded.bags.skipped] == ["S03.A", "S04.A", "S05.A"]
    trident(folder / "10x_512px_0px_overlap" / "features_conch" / "S00.A.h5", 1)
    with pytest.raises(ReadError, match="has several: '10x_512px_0px_overlap/features_conch', '20x_512px_0px_overlap"):
        load_dataset("bracs", tmp_path)
    skip = {"missing", "empty"}
    assert len(load_dataset("bracs", tmp_path, encoder="uni", skip=skip).bags) == 13
    assert len(load_dataset("bracs", tmp_path, encoder="10x_512px_0px_overlap/features_conch", skip=skip).bags) == 1
    with pytest.raises(ReadError, match="no encoder 'gigapath'; there are '10x"):
        load_dataset("bracs", tmp_path, encoder="gigapath")
    config.write_text("task_col: type\n")
    with pytest.raises(ManifestError, match="there is no column 'type'; the columns are 'case_id'"):
        load_dataset("bracs", tmp_path, encoder="uni")
    config.write_text("a: &a [x, x]\nb: [*a, *a]\n")
    with pytest.raises(ReadError, match="has YAML anchors or aliases"):
        load_dataset("bracs", tmp_path, encoder="uni")
    config.write_text("!!python/object/apply:os.system [true]\n")
    with pytest.raises(ReadError, match="cannot be read as YAML"):
        load_dataset("bracs", tmp_path, encoder="uni")
    config.unlink()
    assert set(load_dataset("bracs", tmp_path, encoder="uni", skip=skip).bags.labels) == {"0", "1"}
    fine = folder / "splits" / "fine"
    fine.mkdir()
    table = folder / "splits" / "subtype" / "k=all.tsv"
    (fine / "k=all.tsv").write_text(table.read_text().replace("S01.A.svs", "../S01"))
    with pytest.raises(ReadError, match="has several: 'splits/fine', 'splits/subtype'; choose"):
        load_dataset("bracs", tmp_path, encoder="uni")
    with pytest.raises(ManifestError, match=r"line 3: slide '../S01' cannot be used"):
        load_dataset("bracs", tmp_path, encoder="uni", task="fine")
    assert len(load_dataset("bracs", tmp_path, encoder="uni", task="subtype", skip=skip).bags) == 13


def test_patho_bench_folds_that_leak_a_patient_are_refused(tmp_path: Path) -> None:
    folder = patho_bench(tmp_path, "bracs")
    table = folder / "splits" / "subtype" / "k=all.tsv"
    table.write_text(table.read_text().replace("S01.A.svs\t0\ttest", "S01.A.svs\t0\ttrain"))
    with pytest.raises(SplitError, match="split 'fold_0': patient 'C0' is on 2 sides"):
        _ = load_dataset("bracs", tmp_path).splits
