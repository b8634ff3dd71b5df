"""Every folder that other tools leave becomes a manifest of the right files, labels and patients."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from bags import layouts as trees
from bags.plain_folders import build, kinds, plain
from conftest import shared_data
from qgmil.bags.check import check_bags
from qgmil.bags.dataset import open_bags, read_record
from qgmil.bags.layouts import layouts
from qgmil.bags.layouts.build import BuiltManifest, build_manifest
from qgmil.bags.manifest import Manifest
from qgmil.bags.readers import read_bag_file
from qgmil.errors import ManifestError

TEXT = {"slide_a": "tumour", "slide_b": "tumour", "slide_c": "normal"}
NUMBER = {"slide_a": "1", "slide_b": "1", "slide_c": "0"}
PATIENT = {"slide_a": "0012", "slide_b": "0012", "slide_c": "0013"}
NOBODY = dict.fromkeys(PATIENT)
SELF = {i: i for i in PATIENT}

#: Tree: table of labels, options, layout, labels, patients.
CASES: dict[str, tuple[str | None, dict[str, str], str, dict[str, str], dict[str, str | None]]] = {
    "trident": ("k=all.tsv", {}, "trident", NUMBER, PATIENT),
    "clam": ("labels.csv", {}, "clam", TEXT, PATIENT),
    "clam_h5": ("labels.csv", {}, "clam", TEXT, PATIENT),
    "torchmil": (None, {}, "torchmil", NUMBER, NOBODY),
    "torchmil_h5": (None, {}, "torchmil", NUMBER, NOBODY),
    "slideflow": (None, {}, "slideflow", TEXT, PATIENT),
    "pathforge": ("labels.csv", {}, "pathforge", TEXT, NOBODY),
    "dsmil": (None, {"format": "dsmil"}, "dsmil", NUMBER, NOBODY),
    "acmil": (None, {}, "acmil", NUMBER, NOBODY),
    "cells": (None, {}, "cells", TEXT, SELF),
    "cells_h5": (None, {}, "cells", TEXT, SELF),
    "scemila": (None, {}, "cells", TEXT, SELF),
}


@pytest.mark.parametrize("name", CASES)
def test_every_tree_is_recognised_and_read_back(name: str, tmp_path: Path) -> None:
    table, options, layout, labels, patients = CASES[name]
    root = tmp_path / name
    samples = trees.WRITERS[name](root)
    built = build_manifest(root, root / table if table else None, **options)  # type: ignore[arg-type]
    assert built.layout.name == layout and not built.left_out
    records = {r.bag_id: r for r in built.manifest.records}
    assert {i: r.label for i, r in records.items()} == labels
    assert {i: r.patient_id for i, r in records.items()} == patients
    built.manifest.to_csv(root / "bags.csv")
    written = Manifest.read(root / "bags.csv")
    for sample in samples:
        (file,) = next(r.files for r in written.records if r.bag_id == sample.expected.bag.bag_id)
        (record,) = (r for r in written.records if r.files == (file,))
        read = read_record(record)  # without a word about the format
        assert np.array_equal(read.features.numpy(), sample.expected.features)


def test_all_layouts_are_covered_here() -> None:
    assert {case[2] for case in CASES.values()} | {"plain", "stamp", "pathobench"} == set(layouts())


def test_stamp_bags_are_patients(tmp_path: Path) -> None:
    root = tmp_path / "stamp"
    trees.write_stamp(root)
    built = build_manifest(root, root / "clini.csv", slides=root / "slides.csv")
    assert built.layout.name == "stamp" and built.bag_per == "patient"
    assert [(r.bag_id, r.label, [f.stem for f in r.files], r.extra) for r in built.manifest.records] == [
        ("0012", "tumour", ["slide_a", "slide_b"], {"AGE": "60"}),
        ("0013", "normal", ["slide_c"], {"AGE": "60"}),
    ]
    slides = build_manifest(root, root / "clini.csv", slides=root / "slides.csv", bag_per="slide").manifest
    assert slides.bag_ids == ("slide_a", "slide_b", "slide_c") and slides.groups == ("0012", "0012", "0013")


def test_stamp_targets_are_named_and_gaps_reported(tmp_path: Path) -> None:
    root = tmp_path / "stamp"
    trees.write_stamp(root)
    trees.write_table(
        root / "clini.csv",
        ["PATIENT", "KRAS", "MSI"],
        [("0012", "MUT", ""), ("0013", "WT", "high"), ("0014", "WT", "low")],
    )
    rows = [("0012", "sub/slide_a.h5"), ("0013", "slide_c.h5"), ("0013", "slide_d.h5"), ("0099", "slide_b.h5")]
    trees.write_table(root / "slides.csv", ["PATIENT", "FILENAME"], rows)
    with pytest.raises(ManifestError, match=r"cannot tell which column is the label.*--label KRAS"):
        build_manifest(root, root / "clini.csv", slides=root / "slides.csv")
    built = build_manifest(root, root / "clini.csv", slides=root / "slides.csv", label="KRAS")
    assert {r.bag_id: r.label for r in built.manifest.records} == {"0012": "MUT", "0013": "WT"}
    assert kinds(built) == [("no-features", "slide_d.h5"), ("no-features", "0014"), ("no-label", "slide_b")]
    assert [kind for kind, _ in kinds(_msi(root))] == ["no-features", "no-features", "no-label", "no-label"]
    trees.write_table(root / "clini.csv", ["PATIENT", "KRAS"], [("0012", "MUT"), ("0012", "WT")])
    with pytest.raises(ManifestError, match="line 3: patient '0012' is there twice"):
        build_manifest(root, root / "clini.csv", slides=root / "slides.csv")


def _msi(root: Path) -> BuiltManifest:
    return build_manifest(root, root / "clini.csv", slides=root / "slides.csv", label="MSI")


def test_stamp_with_features_of_patients_needs_no_slide_table(tmp_path: Path) -> None:
    root = tmp_path / "stamp"
    trees.write_stamp(root)
    for slide, patient in (("slide_a", "0012"), ("slide_c", "0013")):
        (root / "features" / f"{slide}.h5").rename(root / "features" / f"{patient}.h5")
    (root / "features" / "slide_b.h5").unlink()
    built = build_manifest(root, root / "clini.csv")
    assert built.manifest.bag_ids == built.manifest.groups == ("0012", "0013")


def test_clam_takes_what_has_coordinates(tmp_path: Path) -> None:
    trees.write_clam(tmp_path / "c")
    (tmp_path / "c" / "features" / "h5_files" / "slide_b.h5").unlink()
    built = build_manifest(tmp_path / "c", tmp_path / "c" / "labels.csv")
    assert [r.files[0].name for r in built.manifest.records] == ["slide_a.h5", "slide_b.pt", "slide_c.h5"]
    for folder in ("features", "features/pt_files"):  # wherever in the tree the user points
        inner = build_manifest(tmp_path / "c" / folder, tmp_path / "c" / "labels.csv")
        assert inner.layout.name == "clam" and inner.manifest.bag_ids == ("slide_a", "slide_b", "slide_c")


def test_several_encoders_must_be_chosen_from(tmp_path: Path) -> None:
    trees.write_trident(tmp_path / "t", "uni_v1")
    (tmp_path / "more").mkdir()
    trees.write_trident(tmp_path / "more" / "t", "conch_v1")
    (tmp_path / "more" / "t" / "20x_256px_0px_overlap" / "features_conch_v1").rename(
        tmp_path / "t" / "20x_256px_0px_overlap" / "features_conch_v1"
    )
    with pytest.raises(ManifestError, match=r"has 2 encoders or magnifications: .*features_conch_v1.*features_uni_v1"):
        build_manifest(tmp_path / "t", tmp_path / "t" / "k=all.tsv")
    folder = tmp_path / "t" / "20x_256px_0px_overlap" / "features_conch_v1"
    built = build_manifest(folder, tmp_path / "t" / "k=all.tsv", format="pathobench")
    assert {r.files[0].parent.name for r in built.manifest.records} == {"features_conch_v1"}


def test_several_bags_in_a_file_must_be_chosen_from(tmp_path: Path) -> None:
    names = ("256px_0.5mpp/uni", "512px_0.25mpp/uni")
    (first, *_) = trees.write_pathforge(tmp_path / "p", names)
    with pytest.raises(ManifestError, match=r"hold 2 bags of one slide: .*--dataset 256px_0\.5mpp/uni"):
        build_manifest(tmp_path / "p", tmp_path / "p" / "labels.csv")
    built = build_manifest(tmp_path / "p", tmp_path / "p" / "labels.csv", dataset=names[0])
    assert built.manifest.records[0].files == (first.cell,)
    features = read_bag_file(built.manifest.records[0].files[0]).features.numpy()
    assert np.array_equal(features, first.expected.features)


def test_one_file_for_all_may_be_named_itself(tmp_path: Path) -> None:
    trees.write_acmil(tmp_path / "a")
    built = build_manifest(tmp_path / "a" / "patch_feats.h5")
    assert built.layout.name == "acmil" and built.manifest.labels == ("1", "1", "0")


def test_a_table_says_more_than_the_folder(tmp_path: Path) -> None:
    """Its labels, in words of its own, take the place of the folder's numbers; patients come with them."""
    trees.write_acmil(tmp_path / "a")
    trees.write_table(
        tmp_path / "t.csv",
        ["slide_id", "case_id", "label"],
        [("slide_a", "p", "tumour"), ("slide_b", "p", "tumour"), ("slide_c", "q", "normal")],
    )
    built = build_manifest(tmp_path / "a", tmp_path / "t.csv")
    assert built.manifest.labels == ("tumour", "tumour", "normal") and built.manifest.groups == ("p", "p", "q")
    assert not built.left_out
    (tmp_path / "t.csv").write_text("slide_id,case_id\nslide_a,p\nslide_b,p\nslide_c,q\n")
    assert build_manifest(tmp_path / "a", tmp_path / "t.csv").manifest.labels == ("1", "1", "0")


def test_a_table_that_contradicts_the_folder_is_pointed_out(tmp_path: Path) -> None:
    trees.write_scemila(tmp_path / "s")
    table = tmp_path / "s" / "metadata.csv"
    table.write_text(table.read_text().replace("slide_a,tumour", "slide_a,normal") + "slide_d,normal\n")
    built = build_manifest(tmp_path / "s")
    assert built.labels == table
    assert kinds(built) == [("no-features", "slide_d"), ("label", "slide_a")]
    assert "'slide_a' is 'normal' in the table but 'tumour' by its folder" in built.left_out[1].message
    assert {r.bag_id: r.label for r in built.manifest.records}["slide_a"] == "normal"


def test_torchmil_reports_both_sides_without_a_table(tmp_path: Path) -> None:
    trees.write_torchmil(tmp_path / "t", nested=True)
    (tmp_path / "t" / "labels" / "slide_a.npy").unlink()
    np.save(tmp_path / "t" / "labels" / "slide_z.npy", np.array([1]))
    built = build_manifest(tmp_path / "t")
    assert built.manifest.bag_ids == ("slide_b", "slide_c")
    assert kinds(built) == [("no-label", "slide_a"), ("no-features", "slide_z")]


def test_trees_of_slides_are_no_trees_of_cells(tmp_path: Path) -> None:
    """cohort/patient/slide looks like class/patient/cell, but there is a table, and slides have many instances."""
    names = ("TCGA/p1/s1", "TCGA/p2/s2", "CPTAC/p3/s3")
    built = build(tmp_path, *names, table="slide_id,label\ns1,a\ns2,b\ns3,a\n")
    assert built.layout.name == "plain" and built.manifest.bag_ids == ("s3", "s1", "s2")
    table = plain(tmp_path / "c", "AML/p1/1", "AML/p1/2", "MDS/p2/1", table="patient,age\np1,30\np2,40\n", rows=1)
    cells = build_manifest(tmp_path / "c" / "f", table)
    assert cells.layout.name == "cells"
    assert [(r.bag_id, r.label, r.extra) for r in cells.manifest.records] == [
        ("p1", "AML", {"age": "30"}),
        ("p2", "MDS", {"age": "40"}),
    ]
    assert cells.manifest.records[0].files == (tmp_path / "c" / "f" / "AML" / "p1",)
    assert cells.manifest.records[1].files == (tmp_path / "c" / "f" / "MDS" / "p2",)  # of one cell, with its name
    assert read_bag_file(cells.manifest.records[1].files[0]).instance_ids == ("1",)


def test_trees_of_cells_that_cannot_be_understood(tmp_path: Path) -> None:
    plain(tmp_path, "AML/p1/layer7", "AML/p1/layer8", "MDS/p2/layer7", "MDS/p2/layer8")
    with pytest.raises(ManifestError, match=r"2 files of many cells each \('layer7.npy', 'layer8.npy'\).*--pattern"):
        build_manifest(tmp_path / "f")
    built = build_manifest(tmp_path / "f", pattern="layer8*")
    assert [r.files[0].name for r in built.manifest.records] == ["layer8.npy", "layer8.npy"]
    plain(tmp_path, "AML/stray")
    with pytest.raises(ManifestError, match=r"1 of 5 .* does not lie in <class>/<patient> .*'AML/stray\.npy'"):
        build_manifest(tmp_path / "f", format="cells")
    plain(tmp_path / "t", "AML/p1/1", "MDS/p1/1")
    with pytest.raises(ManifestError, match="would all be bag 'p1'; rename them"):
        build_manifest(tmp_path / "t" / "f")


def test_patients_with_dots_in_their_names_are_told_apart(tmp_path: Path) -> None:
    table = "patient,label\nAML/p.1,x\np.2,y\n"
    built = build(tmp_path, "AML/p.1/1", "MDS/p.2/1", table=table, format="cells")
    assert [(r.bag_id, r.label) for r in built.manifest.records] == [("p.1", "x"), ("p.2", "y")]


def test_images_are_no_features(tmp_path: Path) -> None:
    (tmp_path / "AML" / "p1").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "AML" / "p1" / f"{i}.tif").write_bytes(b"II*\0")
    with pytest.raises(ManifestError, match="it has 3 images, but no features: make features of them first"):
        build_manifest(tmp_path)


def test_a_stray_file_in_a_tree_of_cells_is_named(tmp_path: Path) -> None:
    plain(tmp_path, "stray", *(f"{c}/{c}{p}/{i}" for c in ("AML", "MDS") for p in range(3) for i in range(2)), rows=1)
    said = r"all but 1 of its 13 files lie as <class>/<patient>/<cell>, not 'stray\.npy': move it away .*--format cells"
    with pytest.raises(ManifestError, match=said):
        build_manifest(tmp_path / "f")
    built = build_manifest(tmp_path / "f", format="cells", pattern="[0-9].npy")
    assert built.manifest.labels == ("AML",) * 3 + ("MDS",) * 3
    (tmp_path / "f" / "stray.npy").rename(tmp_path / "f" / "AML" / "AML0" / "2.npy")
    assert build_manifest(tmp_path / "f").layout.name == "cells"
    plain(tmp_path / "few", "a", "AML/p/1")  # one of two is no tree with an exception
    with pytest.raises(ManifestError) as error:
        build_manifest(tmp_path / "few" / "f")
    assert "cells" not in str(error.value)


def test_clam_says_where_patches_are_missing(tmp_path: Path) -> None:
    trees.write_clam(tmp_path / "c", patches=False)
    (note,) = build_manifest(tmp_path / "c", tmp_path / "c" / "labels.csv").notes
    assert note.startswith("no patches/ beside ") and "size of the tiles is unknown" in note
    trees.write_clam(tmp_path / "d")
    (tmp_path / "d" / "RESULTS").mkdir()
    (tmp_path / "d" / "patches").rename(tmp_path / "d" / "RESULTS" / "patches")
    assert build_manifest(tmp_path / "d", tmp_path / "d" / "labels.csv").notes == ()


@pytest.mark.parametrize("kind", ["pt", "h5"])
def test_clam_patches_in_a_folder_beside_the_features(tmp_path: Path, kind: str) -> None:
    """They are taken if exactly one folder has them, and only if they are of this run."""
    samples = trees.write_clam(tmp_path / "c", kind=kind, h5=kind == "h5")
    known = read_bag_file(samples[0].cell)
    assert known.tile_size is not None
    (tmp_path / "c" / "RESULTS").mkdir()
    (tmp_path / "c" / "patches").rename(tmp_path / "c" / "RESULTS" / "patches")
    bag = read_bag_file(samples[0].cell)
    assert bag.tile_size == known.tile_size and bag.coords is not None and known.coords is not None
    assert bag.coords.tolist() == known.coords.tolist()
    patches = tmp_path / "c" / "RESULTS" / "patches" / "slide_a.h5"
    shutil.copytree(tmp_path / "c" / "RESULTS", tmp_path / "c" / "OTHER")
    assert read_bag_file(samples[0].cell).tile_size is None  # either could be meant
    shutil.rmtree(tmp_path / "c" / "OTHER")
    (tmp_path / "c" / "OTHER").symlink_to("RESULTS")
    assert read_bag_file(samples[0].cell).tile_size == known.tile_size  # no link is followed
    with h5py.File(patches, "a") as file:
        other = np.vstack([file["coords"][1:], [[7, 7]]]) if kind == "h5" else file["coords"][1:]
        kept = dict(file["coords"].attrs)
        del file["coords"]
        file["coords"] = other
        file["coords"].attrs.update(kept)
    bag = read_bag_file(samples[0].cell)
    assert bag.tile_size is None and (bag.coords is None) == (kind == "pt")
    patches.write_bytes(b"garbage")
    assert np.array_equal(read_bag_file(samples[0].cell).features.numpy(), samples[0].expected.features)


# --- what a manifest has to remember -------------------------------------------------------------------------------


def test_a_format_that_no_file_tells_is_in_the_manifest(tmp_path: Path) -> None:
    samples = trees.write_dsmil(tmp_path / "d")
    built = build_manifest(tmp_path / "d", format="dsmil", dataset="2")
    built.manifest.to_csv(tmp_path / "bags.csv")
    assert (tmp_path / "bags.csv").read_text().startswith("bag_id,patient_id,label,features,feature_format,feature_dat")
    bags = open_bags(tmp_path / "bags.csv")
    assert bags.width == trees.WIDTH and bags[0].width == trees.WIDTH and bags.instances(0) == 4
    assert np.array_equal(bags[0].features.numpy(), samples[0].expected.features)
    assert check_bags(tmp_path / "bags.csv", isolate=False).widths == {trees.WIDTH: 3}
    wide = open_bags(tmp_path / "bags.csv", format="pt")  # what is said wins, and the 2 is not of this format
    assert wide.width == wide[0].width == trees.WIDTH + 2
    assert open_bags(tmp_path / "bags.csv", dataset="1")[2].width == trees.WIDTH + 1
    assert not any(c.startswith("feature_") for r in bags.items for c in r.extra)  # type: ignore[union-attr]


def test_a_data_set_that_no_cell_names_is_in_the_manifest(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        np.savez(tmp_path / f"{name}.npz", uni=np.ones((2, 3), np.float32), conch=np.zeros((2, 5), np.float32))
    (tmp_path / "labels.csv").write_text("slide,label,feature_dataset\ns1,a,uni\ns2,b,uni\n")
    build_manifest(tmp_path, tmp_path / "labels.csv", dataset="conch").manifest.to_csv(tmp_path / "bags.csv")
    assert (tmp_path / "bags.csv").read_text().splitlines()[:2] == [
        "bag_id,patient_id,label,features,feature_dataset",
        "s1,,a,s1.npz,conch",
    ]
    assert open_bags(tmp_path / "bags.csv")[1].width == 5
    assert open_bags(tmp_path / "bags.csv", dataset="uni")[1].width == 3


def test_a_format_that_the_files_tell_is_not_written(tmp_path: Path) -> None:
    trees.write_clam(tmp_path / "c")
    built = build_manifest(tmp_path / "c", tmp_path / "c" / "labels.csv", format="clam")
    assert {(r.format, r.dataset) for r in built.manifest.records} == {(None, None)}
    samples = trees.write_clam(tmp_path / "plain", kind="h5", patches=False)
    (tmp_path / "f").mkdir()
    samples[0].cell.rename(tmp_path / "f" / "slide_a.h5")
    (tmp_path / "l.csv").write_text("slide_id,label\nslide_a,x\n")
    (record,) = build_manifest(tmp_path / "f", tmp_path / "l.csv", format="clam").manifest.records
    assert record.format == "clam" and read_record(record).coord_unit == "px"
    (record,) = build_manifest(tmp_path / "f", tmp_path / "l.csv", format="plain").manifest.records
    assert record.format is None and read_record(record).coord_unit is None


def test_files_of_a_patient_are_read_in_one_way(tmp_path: Path) -> None:
    text = "bag_id,patient_id,label,features,feature_format,feature_dataset\n"
    (tmp_path / "m.csv").write_text(text + "a,p,x,a.pt,dsmil,2\nb,p,x,b.pt,dsmil,2\nc,q,y,c.pt,,\n")
    merged = Manifest.read(tmp_path / "m.csv").per_patient()
    assert [(r.bag_id, r.format, r.dataset) for r in merged.records] == [("p", "dsmil", "2"), ("q", None, None)]
    merged.to_csv(tmp_path / "again.csv")
    assert Manifest.read(tmp_path / "again.csv").records[0].reading() == {"format": "dsmil", "dataset": "2"}
    (tmp_path / "m.csv").write_text(text + "a,p,x,a.pt,dsmil,2\nb,p,x,b.pt,,\n")
    with pytest.raises(ManifestError, match=r"patient 'p' .*: bag 'b' as what it is but bag 'a' as dsmil, 2"):
        Manifest.read(tmp_path / "m.csv").per_patient()


@pytest.mark.shared
def test_real_slides_with_their_table(tmp_path: Path) -> None:
    """GlaS in TRIDENT's layout: the table that came with it, found by its columns, gives the same bags again."""
    table = shared_data("glas")
    built = build_manifest(table.parent, table)
    known = Manifest.read(table)
    assert built.layout.name == "trident" and not built.left_out and len(built.manifest) == 165
    assert {(r.bag_id, r.label, r.group) for r in built.manifest.records} == {
        (r.bag_id, r.label, r.group) for r in known.records
    }
    patients = build_manifest(table.parent, table, label="official_part", patient_id="none")
    assert len(set(patients.manifest.groups)) == 165
