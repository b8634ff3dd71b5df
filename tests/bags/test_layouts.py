"""Every folder that other tools leave becomes a manifest of the right files, labels and patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bags import layouts as trees
from bags.plain_folders import build, kinds, plain
from conftest import shared_data
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
        read = read_bag_file(file, format=built.layout.reader, dataset=sample.expected.dataset)
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
    assert cells.manifest.records[1].files == (tmp_path / "c" / "f" / "MDS" / "p2" / "1.npy",)


def test_trees_of_cells_that_cannot_be_understood(tmp_path: Path) -> None:
    plain(tmp_path, "AML/p1/layer7", "AML/p1/layer8", "MDS/p2/layer7", "MDS/p2/layer8")
    with pytest.raises(ManifestError, match=r"2 files of many cells each \('layer7.npy', 'layer8.npy'\).*--pattern"):
        build_manifest(tmp_path / "f")
    built = build_manifest(tmp_path / "f", pattern="layer8*")
    assert [r.files[0].name for r in built.manifest.records] == ["layer8.npy", "layer8.npy"]
    plain(tmp_path, "AML/stray")
    with pytest.raises(ManifestError, match=r"stray\.npy: does not lie in <class>/<patient>"):
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
