"""Layouts of slides whose facts lie apart: CLAM, STAMP, torchmil, slideflow, PathForge, ACMIL."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from bags.layouts import (
    write_acmil,
    write_clam,
    write_pathforge,
    write_slideflow,
    write_stamp,
    write_torchmil,
)
from qgmil.bags.readers import EmptyBagError, bag_file_shape, bag_label, parts, read_bag_file, reader_for
from qgmil.errors import ReadError


def edit(path: Path, change: object) -> None:
    with h5py.File(path, "a") as file:
        change(file)


# CLAM


@pytest.mark.parametrize("kind", ["pt", "h5"])
def test_clam_patches_may_lie_in_the_folder_of_features_or_beside_it(tmp_path: Path, kind: str) -> None:
    cell = write_clam(tmp_path, kind)[0].cell
    assert read_bag_file(cell).tile_size == 1024.0
    (tmp_path / "patches").rename(tmp_path / "features" / "patches")
    assert read_bag_file(cell).tile_size == 1024.0
    (tmp_path / "features" / "patches").rename(tmp_path / "elsewhere")
    bag = read_bag_file(cell)
    assert (bag.coord_unit, bag.tile_size) == ("px", None)


def test_clam_pt_takes_coordinates_of_the_patches_where_there_is_no_h5(tmp_path: Path) -> None:
    cell, expected = write_clam(tmp_path, h5=False)[0]
    assert read_bag_file(cell).coords.tolist() == expected.coords.tolist()


def test_clam_pt_alone_has_no_coordinates(tmp_path: Path) -> None:
    cell = write_clam(tmp_path, patches=False, h5=False)[0].cell
    bag = read_bag_file(cell)
    assert reader_for(cell).name == "clam"
    assert (bag.coords, bag.coord_unit, bag.tile_size) == (None, None, None)


@pytest.mark.parametrize("name", ["features/h5_files", "patches"])
def test_clam_rows_of_another_run_are_refused(tmp_path: Path, name: str) -> None:
    cell = write_clam(tmp_path, h5=name != "patches")[0].cell
    other = tmp_path / name / "slide_a.h5"

    def shorten(file: h5py.File) -> None:
        attributes = dict(file["coords"].attrs)
        coords = file["coords"][:-1]
        del file["coords"]
        file["coords"] = coords
        file["coords"].attrs.update(attributes)

    edit(other, shorten)
    with pytest.raises(ReadError, match=rf"slide_a\.pt: has 4 instances but .*{name}/slide_a\.h5 has 3 coordinates"):
        read_bag_file(cell)


def test_clam_tile_size_needs_the_downsampling_of_its_level(tmp_path: Path) -> None:
    cell = write_clam(tmp_path, "h5")[0].cell
    patches = tmp_path / "patches" / "slide_a.h5"
    edit(patches, lambda file: file["coords"].attrs.__delitem__("downsample"))
    assert read_bag_file(cell).tile_size is None  # 256 pixels of level 1, whatever that is
    edit(patches, lambda file: file["coords"].attrs.__setitem__("patch_level", 0))
    assert read_bag_file(cell).tile_size == 256.0
    edit(patches, lambda file: file["coords"].attrs.__setitem__("downsample", (-4.0, -4.0)))
    with pytest.raises(ReadError, match=r"patches/slide_a\.h5: patch_size \* downsample is -1024"):
        read_bag_file(cell)


def test_clam_is_known_by_its_patches_in_any_folder(tmp_path: Path) -> None:
    cell = write_clam(tmp_path, "h5")[0].cell
    (tmp_path / "features" / "h5_files").rename(tmp_path / "features" / "conch")
    bag = read_bag_file(tmp_path / "features" / "conch" / cell.name)
    assert (bag.coord_unit, bag.tile_size) == ("px", 1024.0)


@pytest.mark.parametrize("name", ["clam", "trident"])
@pytest.mark.parametrize("sign", [{"unit": "um"}, {"tile_size_um": 256.0}])
def test_microns_are_not_taken_for_pixels_where_the_format_is_wrong(
    tmp_path: Path, name: str, sign: dict[str, object]
) -> None:
    stamp = write_stamp(tmp_path)[0].cell
    path = tmp_path / "renamed.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = np.ones((4, 6), np.float32), np.zeros((4, 2))
        file.attrs.update(sign)
    for wrong in (stamp, path):
        with pytest.raises(ReadError, match=rf"{wrong.name}: looks like a file of STAMP, .*; say --format stamp"):
            read_bag_file(wrong, format=name)


@pytest.mark.parametrize("name", ["clam", "trident"])
def test_coordinates_of_an_unsigned_file_are_pixels_only_if_they_look_like_it(tmp_path: Path, name: str) -> None:
    found = {}
    for features in ("features", "feats"):
        for kind in (np.int32, np.float64):
            path = tmp_path / f"{features}_{kind.__name__}.h5"
            with h5py.File(path, "w") as file:
                file[features] = np.ones((4, 6), np.float32)
                file["coords"] = np.arange(8).reshape(4, 2).astype(kind)
            found[path.stem] = read_bag_file(path, format=name).coord_unit
    assert found == {"features_int32": "px", "features_float64": None, "feats_int32": None, "feats_float64": None}


def test_a_trident_file_read_as_clam_keeps_its_tile_size(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = np.ones((4, 6), np.float32), np.arange(8.0).reshape(4, 2)
        file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 512})
    bag = read_bag_file(path, format="clam")
    assert (bag.coord_unit, bag.tile_size) == ("px", 512.0)


def test_a_clam_pt_takes_no_microns_from_beside(tmp_path: Path) -> None:
    cell = write_clam(tmp_path, patches=False)[0].cell
    other = tmp_path / "features" / "h5_files" / "slide_a.h5"
    edit(other, lambda file: file.attrs.__setitem__("tile_size_um", 256.0))
    with pytest.raises(ReadError, match=r"h5_files/slide_a\.h5: looks like a file of STAMP"):
        read_bag_file(cell)


# STAMP


def test_stamp_older_files_and_any_text_type(tmp_path: Path) -> None:
    cell, expected = write_stamp(tmp_path, old=True)[0]
    assert read_bag_file(cell).features.tolist() == expected.features.tolist()

    def rewrite(file: h5py.File) -> None:
        for name in ("tile_size_um", "tile_size_px", "unit", "feat_type"):
            del file.attrs[name]
        file.attrs["unit"] = np.bytes_("um")
        file.attrs["tile_size"] = 300.0

    edit(cell, rewrite)
    bag = read_bag_file(cell)
    assert (bag.coord_unit, bag.tile_size, bag.tile_mpp) == ("um", 300.0, None)


def test_stamp_pixels_of_the_oldest_files_are_not_level_0(tmp_path: Path) -> None:
    cell = write_stamp(tmp_path)[0].cell

    def rewrite(file: h5py.File) -> None:
        del file.attrs["tile_size_um"]
        file.attrs["unit"] = "px"
        file.attrs["tile_size"] = 224

    edit(cell, rewrite)
    bag = read_bag_file(cell)
    assert bag.coords is not None and (bag.coord_unit, bag.tile_size) == (None, None)


@pytest.mark.parametrize("kind", ["slide", "patient"])
def test_stamp_embeddings_of_more_than_tiles_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "whole.h5"
    with h5py.File(path, "w") as file:
        file["feats"] = np.ones(6, np.float32)
        file.attrs.update({"encoder": "titan", "precision": "float32", "feat_type": kind})
    for read in (read_bag_file, bag_file_shape):
        with pytest.raises(ReadError, match=rf"whole\.h5: holds one embedding of a whole {kind}.*--format h5"):
            read(path)
    assert read_bag_file(path, format="h5").features.shape == (1, 6)


@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("userblock", [0, 512])
def test_stamp_texts_of_any_version_of_the_file_format(tmp_path: Path, version: str, userblock: int) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=version, userblock_size=userblock) as file:
        file["feats"] = np.ones((2, 3), np.float16)
        file["coords"] = np.zeros((2, 2), np.float32)
        for i in range(3):
            file.attrs[f"note_{i}"] = "x" * 500  # headers in several pieces
        file.attrs.update({"unit": "px", "feat_type": "tile", "tile_size_um": 256.0})
    bag = read_bag_file(path)
    assert bag.coords is not None and bag.coord_unit is None  # "px" has been read, or microns would have been assumed


def test_stamp_empty_slide(tmp_path: Path) -> None:
    cell = write_stamp(tmp_path)[0].cell

    def empty(file: h5py.File) -> None:
        for name, shape in {"feats": (0, 6), "coords": (0, 2)}.items():
            del file[name]
            file[name] = np.zeros(shape, np.float16)

    edit(cell, empty)
    with pytest.raises(EmptyBagError, match=r"slide_a\.h5: is empty"):
        read_bag_file(cell)


# torchmil


def test_torchmil_published_tree(tmp_path: Path) -> None:
    for cell, expected in write_torchmil(tmp_path, nested=True):
        bag = read_bag_file(cell)
        assert (bag.coords.tolist(), bag.coord_unit) == (expected.coords.tolist(), "grid")
        assert tuple(bag.instance_labels.tolist()) == expected.instance_labels
        assert bag_label(cell) == expected.label


def test_torchmil_needs_nothing_but_features_and_one_folder(tmp_path: Path) -> None:
    cell = write_torchmil(tmp_path)[0].cell
    for name in ("coords", "inst_labels"):
        (tmp_path / name).rename(tmp_path / f"not_{name}")
    bag = read_bag_file(cell)
    assert reader_for(cell).name == "torchmil"
    assert (bag.coords, bag.coord_unit, bag.instance_labels) == (None, None, None)
    (tmp_path / "labels").rename(tmp_path / "not_labels")
    assert reader_for(cell).name == "npy" and bag_label(cell) is None


def test_torchmil_rows_that_do_not_agree_are_named(tmp_path: Path) -> None:
    cell = write_torchmil(tmp_path)[0].cell
    np.save(tmp_path / "coords" / cell.name, np.zeros((3, 2), int))
    with pytest.raises(ReadError, match=r"slide_a\.npy: coords have shape \(3, 2\) for 4 instances"):
        read_bag_file(cell)
    np.save(tmp_path / "coords" / cell.name, np.arange(4)[:, None])  # slices of a volume: no positions in a plane
    assert read_bag_file(cell).coords is None
    np.save(tmp_path / "inst_labels" / cell.name, np.zeros(5, int))
    with pytest.raises(ReadError, match=r"slide_a\.npy: 5 instance_labels for 4 instances"):
        read_bag_file(cell)


def test_torchmil_labels_of_one_number(tmp_path: Path) -> None:
    cell = write_torchmil(tmp_path)[0].cell
    np.save(tmp_path / "labels" / cell.name, np.float32(1))
    assert bag_label(cell) == "1"
    np.save(tmp_path / "labels" / cell.name, np.array([0, 1]))
    with pytest.raises(ReadError, match=r"slide_a\.npy: its label is int64 of shape \(2,\); expected one number"):
        bag_label(cell)


def test_torchmil_folders_are_not_features_themselves(tmp_path: Path) -> None:
    write_torchmil(tmp_path)
    assert reader_for(tmp_path / "coords" / "slide_a.npy").name == "npy"


# slideflow


def test_slideflow_tiles_by_magnification(tmp_path: Path) -> None:
    for cell, expected in write_slideflow(tmp_path, tile_um="20x"):
        bag = read_bag_file(cell)
        assert (bag.magnification, bag.tile_mpp) == (20.0, None)
        # Centres stay centres: half a tile of unknown size cannot be subtracted.
        assert bag.coords.tolist() == expected.coords.tolist() and (bag.coord_unit, bag.tile_size) == (None, None)


def test_slideflow_without_index_or_configuration(tmp_path: Path) -> None:
    first, second, _ = (s.cell for s in write_slideflow(tmp_path))
    first.with_name("slide_a.index.npz").unlink()
    assert read_bag_file(first).coords is None and reader_for(first).name == "slideflow"
    (second.parent / "bags_config.json").unlink()
    bag = read_bag_file(second)
    assert bag.coords is not None and bag.tile_mpp is None


def test_slideflow_in_its_usual_folder_is_not_clam(tmp_path: Path) -> None:
    cell = write_slideflow(tmp_path)[0].cell
    folder = tmp_path / "pt_files"
    cell.parent.rename(folder)
    assert reader_for(folder / cell.name).name == "slideflow"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 50_000, "cannot be read as JSON"),
        ("[1]", "holds a list; expected an object"),
        (" " * (2**20 + 1), "is no configuration"),
        (json.dumps({"tile_um": -5, "tile_px": 299}), "tile_um is -5"),
        (json.dumps({"tile_um": "0x", "tile_px": 299}), "tile_um is 0"),
    ],
)
def test_slideflow_configuration_that_cannot_be(tmp_path: Path, content: str, said: str) -> None:
    cell = write_slideflow(tmp_path)[0].cell
    (cell.parent / "bags_config.json").write_text(content)
    with pytest.raises(ReadError, match=rf"bags_config\.json: .*{said}"):
        read_bag_file(cell)


def test_slideflow_index_of_other_rows_or_with_a_pickle(tmp_path: Path) -> None:
    cell = write_slideflow(tmp_path)[0].cell
    np.savez(cell.with_name("slide_a.index.npz"), np.zeros((3, 2)))
    with pytest.raises(ReadError, match=r"slide_a\.index\.npz: coords have shape \(3, 2\) for 4 instances"):
        read_bag_file(cell)
    np.savez(cell.with_name("slide_a.index.npz"), np.array([{}] * 4, dtype=object))
    with pytest.raises(ReadError, match=r"slide_a\.index\.npz: holds Python objects"):
        read_bag_file(cell)


# PathForge

BAGS_OF_ONE_SLIDE = ("256px_0.5mpp/uni", "256px_0.5mpp/conch", "512px_1mpp/uni")


def test_pathforge_bags_are_listed_and_named(tmp_path: Path) -> None:
    cell, expected = write_pathforge(tmp_path, BAGS_OF_ONE_SLIDE)[0]
    path = tmp_path / "slide_a.h5"
    assert parts(path) == dict.fromkeys(sorted(BAGS_OF_ONE_SLIDE))
    for said, number in {
        "256px_0.5mpp/uni": 0,
        "conch": 1,
        "512px_1mpp": 2,
        "bags/256px_0.5mpp/features/uni": 0,
    }.items():
        bag = read_bag_file(path, dataset=said)
        assert bag.features.tolist() == (expected.features + 64 * number).tolist()
        assert bag.tile_mpp == (1.0 if number == 2 else 0.5)
        assert bag_file_shape(path, dataset=said) == (4, 6)
    assert cell.name == "uni" and read_bag_file(cell).features.tolist() == expected.features.tolist()


def test_pathforge_several_bags_need_a_name(tmp_path: Path) -> None:
    write_pathforge(tmp_path, BAGS_OF_ONE_SLIDE)
    path = tmp_path / "slide_a.h5"
    with pytest.raises(ReadError, match=r"slide_a\.h5: it has the bags .*'512px_1mpp/uni': name one with --dataset"):
        read_bag_file(path)
    with pytest.raises(ReadError, match=r"the bags '256px_0.5mpp/uni', '512px_1mpp/uni': name one"):
        read_bag_file(path, dataset="uni")
    with pytest.raises(ReadError, match=r"slide_a\.h5: it has no bag 'virchow'; it has '256px_0.5mpp/conch'"):
        read_bag_file(path, dataset="virchow")


def test_pathforge_units_of_another_level_are_unknown(tmp_path: Path) -> None:
    bag = read_bag_file(write_pathforge(tmp_path, level=1)[0].cell)
    assert bag.coords is not None and (bag.coord_unit, bag.tile_size) == (None, None)


def test_pathforge_tiles_of_several_sizes_have_no_size(tmp_path: Path) -> None:
    cell = write_pathforge(tmp_path)[0].cell
    edit(cell, lambda file: file["bags/256px_0.5mpp/coords"].__setitem__((0, 2), 300))
    bag = read_bag_file(cell)
    assert (bag.coord_unit, bag.tile_size) == ("px", None)


@pytest.mark.parametrize("coords", [np.zeros((4, 2), int), np.zeros((3, 5), int), np.zeros((4, 5))])
def test_pathforge_coordinates_that_do_not_fit(tmp_path: Path, coords: np.ndarray) -> None:
    cell = write_pathforge(tmp_path)[0].cell

    def replace(file: h5py.File) -> None:
        del file["bags/256px_0.5mpp/coords"]
        file["bags/256px_0.5mpp/coords"] = coords

    edit(cell, replace)
    with pytest.raises(ReadError, match=r"slide_a\.h5: coords of 256px_0\.5mpp are .* for 4 instances"):
        read_bag_file(cell)


# ACMIL


def test_acmil_slides_and_their_labels(tmp_path: Path) -> None:
    write_acmil(tmp_path)
    path = tmp_path / "patch_feats.h5"

    def relabel(file: h5py.File) -> None:
        file["slide_a"].attrs["label"] = "tumour"
        file["slide_b"].attrs["label"] = np.bytes_("normal")
        del file["slide_c"].attrs["label"]
        file.create_group("not a slide")

    assert parts(path) == {"slide_a": "1", "slide_b": "1", "slide_c": "0"}
    edit(path, relabel)
    assert parts(path) == {"slide_a": "tumour", "slide_b": "normal", "slide_c": None}
    assert bag_label(f"{path}::slide_a") == "tumour"


def test_acmil_names_what_is_there(tmp_path: Path) -> None:
    write_acmil(tmp_path)
    path = tmp_path / "patch_feats.h5"
    with pytest.raises(
        ReadError, match=r"patch_feats\.h5: holds several slides \('slide_a', .*patch_feats\.h5::slide_a"
    ):
        read_bag_file(path)
    with pytest.raises(ReadError, match=r"patch_feats\.h5: has no slide 'slide_x'; it has 'slide_a', 'slide_b'"):
        read_bag_file(f"{path}::slide_x")
    edit(path, lambda file: [file.__delitem__(name) for name in ("slide_b", "slide_c")])
    assert read_bag_file(path).features.shape == (4, 6)


def test_acmil_empty_slide_is_named_with_its_file(tmp_path: Path) -> None:
    write_acmil(tmp_path)
    path = tmp_path / "patch_feats.h5"

    def empty(file: h5py.File) -> None:
        del file["slide_b/feat"]
        file["slide_b/feat"] = np.zeros((0, 6), np.float16)

    edit(path, empty)
    with pytest.raises(EmptyBagError, match=r"patch_feats\.h5::slide_b: is empty"):
        read_bag_file(f"{path}::slide_b")
    assert bag_file_shape(f"{path}::slide_b") == (0, 6)
