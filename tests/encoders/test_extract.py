"""Bags of features from made slides and cells: the right pixels, the layout of TRIDENT, nothing lost, nothing twice."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from encoders.test_encoders import Tiny, write_onnx
from encoders.test_work import write_tar
from qgmil.bags.dataset import open_bags
from qgmil.bags.readers import read_bag_file, reader_for
from qgmil.encoders.base import Encoder, EncoderError
from qgmil.encoders.extract import encode_all, extract_bags, open_pictures
from qgmil.encoders.load import load_encoder
from qgmil.encoders.pictures import Shaping
from qgmil.encoders.settings import TissueSearch, read_settings, settings
from qgmil.encoders.work import Work, find_cells, find_slides
from qgmil.errors import BagError, ConfigError, ManifestError, QGMILError, ReadError, RunError
from qgmil.files import read_csv
from qgmil.images.tiling import Grid
from slides import painted, real_slide, write_ome


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    torch.manual_seed(0)
    return load_encoder(str(write_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx", Tiny())))


def slide_settings(encoder: Encoder, size: int = 32, mpp: float = 0.5, overlap: int = 0, **search: object):  # type: ignore[no-untyped-def]
    grid = Grid(size, mpp, overlap)
    return settings(encoder, "tiny.onnx", grid=grid, tissue=TissueSearch(min_area=0.0, **search))  # type: ignore[arg-type]


def cell_settings(encoder: Encoder, fit: str = "pad", centre: int | None = None):  # type: ignore[no-untyped-def]
    return settings(encoder, "tiny.onnx", shaping=Shaping(fit, centre))


def one_by_one(encoder: Encoder, pictures: list[Image.Image]) -> torch.Tensor:
    """Features as a plain loop makes them."""
    return torch.cat([encoder.encode(np.asarray(p.convert("RGB"))[None]) for p in pictures])


def make_slides(folder: Path) -> Path:
    folder.mkdir()
    write_ome(folder / "a.ome.tif", painted((512, 384), ((200, 200), 140)), 0.5, 3)
    write_ome(folder / "b.ome.tif", painted((512, 384), ((300, 180), 160), seed=1), 0.25, 3)
    return folder


def test_slides_become_files_of_trident(tmp_path: Path, encoder: Encoder) -> None:
    made = slide_settings(encoder, overlap=8)
    report = extract_bags(find_slides([make_slides(tmp_path / "s")]), encoder, made, tmp_path / "o", batch_size=7)
    assert (report.made, report.kept, report.failed) == (2, 0, [])
    path = tmp_path / "o" / "features_tiny" / "b.h5"
    with h5py.File(path) as file:
        attrs = dict(file["coords"].attrs)
        assert file["features"].dtype == np.float16 and file["coords"].dtype == np.int64
        assert file["features"].attrs["encoder_sha256"] == encoder.weights
    facts = {
        k: attrs[k] for k in ("patch_size", "patch_size_level0", "target_magnification", "overlap", "level0_width")
    }
    assert facts == {
        "patch_size": 32,
        "patch_size_level0": 64,
        "target_magnification": 20,
        "overlap": 8,
        "level0_width": 512,
    }
    assert reader_for(path).name == "trident"
    bag = read_bag_file(path)
    assert (bag.coord_unit, bag.tile_size, bag.mpp, bag.magnification) == ("px", 64.0, 0.25, 20.0)
    assert bag.coords is not None and len(bag.coords) == len(bag.features) > 20
    picture = Image.fromarray(painted((512, 384), ((300, 180), 160), seed=1))
    tiles = [
        picture.crop((x, y, x + 64, y + 64)).resize((32, 32), Image.Resampling.BOX) for x, y in bag.coords.tolist()
    ]
    want = one_by_one(encoder, tiles)
    got = bag.features.float()
    # level 1 is the mean of 2 x 2, rounded down to whole grey levels
    assert torch.nn.functional.cosine_similarity(got, want).min() > 0.999
    own = read_bag_file(tmp_path / "o" / "features_tiny" / "a.h5")
    level0 = Image.fromarray(painted((512, 384), ((200, 200), 140)))
    crops = [level0.crop((x, y, x + 32, y + 32)) for x, y in own.coords.tolist()]  # type: ignore[union-attr]
    torch.testing.assert_close(own.features, one_by_one(encoder, crops).half(), rtol=2e-3, atol=1e-3)
    bags = open_bags(tmp_path / "o" / "bags.csv", labels=False)
    assert bags.bag_ids == ("a", "b")
    assert Image.open(tmp_path / "o" / "previews" / "a.jpg").size == (1200, 900)


def test_what_is_there_is_kept_and_other_settings_are_refused(tmp_path: Path, encoder: Encoder) -> None:
    works = find_slides([make_slides(tmp_path / "s")])
    made, out = slide_settings(encoder), tmp_path / "o"
    extract_bags(works[:1], encoder, made, out)
    first = out / "features_tiny" / "a.h5"
    before = first.stat().st_mtime_ns
    told: list[str] = []
    report = extract_bags(
        works, encoder, made, out, on_bag=lambda n, work, said: told.append(f"{n} {work.bag_id} {said[:8]}")
    )
    assert (report.made, report.kept) == (1, 1) and first.stat().st_mtime_ns == before
    assert told[0] == "1 a is there" and told[1].startswith("2 b ")
    assert read_settings(out / "features_tiny" / "extract.json") == made
    with pytest.raises(
        RunError, match=r"holds features with grid .*'size': 32.*, not .*'size': 16.*name another folder"
    ):
        extract_bags(works, encoder, slide_settings(encoder, size=16), out)


def test_another_slide_of_the_same_name_is_not_taken_for_it(tmp_path: Path, encoder: Encoder) -> None:
    (one, _) = find_slides([make_slides(tmp_path / "s")])
    made, out = slide_settings(encoder), tmp_path / "o"
    extract_bags([one], encoder, made, out)
    before = (out / "features_tiny" / "a.h5").read_bytes()
    other = Work("a", (write_ome(tmp_path / "a.ome.tif", painted((512, 384), ((300, 200), 100)), 0.5, 3),))
    report = extract_bags([other], encoder, made, out)
    assert report.made == report.kept == 0
    assert "was made of other images of that name" in report.failed[0][1] and "a.ome.tif" in report.failed[0][1]
    assert (out / "features_tiny" / "a.h5").read_bytes() == before
    assert [r["slide"] for r in read_csv(out / "bags.csv")] == [str(one.files[0])]  # of which the features are
    (tmp_path / "moved").mkdir()
    moved = Work("a", (one.files[0].rename(tmp_path / "moved" / "a.ome.tif"),))
    assert extract_bags([moved], encoder, made, out).kept == 1  # the same file at another place
    assert extract_bags([other], encoder, made, out, remake=True).made == 1
    assert (out / "features_tiny" / "a.h5").read_bytes() != before


def test_tables_that_are_somebody_elses(tmp_path: Path, encoder: Encoder) -> None:
    """Nothing is encoded before they are looked at."""
    works, made = find_slides([make_slides(tmp_path / "s")]), slide_settings(encoder)
    for name, text, match in (
        ("bags.csv", "case,diag\nx,y\n", "no column of feature files|bags.csv that is not from qgmil extract"),
        ("bags.csv", "bag_id,features\nx,y.h5\n", "has a bags.csv that is not from qgmil extract; name another folder"),
        ("failed.csv", "id,why\n1,2\n", "failed.csv: is not from qgmil extract"),
        ("unreadable.csv", "bag_id,reason\n1,2\n", "unreadable.csv: is not from qgmil extract"),
    ):
        out = tmp_path / f"o{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        (out / name).write_text(text)
        with pytest.raises(QGMILError, match=match):
            extract_bags(works, encoder, made, out)
        assert [p.name for p in out.iterdir()] == [name] and (out / name).read_text() == text


def test_rows_of_the_table_are_never_lost(tmp_path: Path, encoder: Encoder) -> None:
    folder = make_slides(tmp_path / "s")
    works, made, out = find_slides([folder]), slide_settings(encoder), tmp_path / "o"
    works = [replace(w, label="source", patient_id=w.bag_id) for w in works]
    extract_bags(works, encoder, made, out)
    table = out / "bags.csv"
    table.write_text(table.read_text().replace("a,a,source,", "a,P7,mine,"))
    (out / "features_tiny" / "a.h5").unlink()
    (folder / "a.ome.tif").write_bytes(b"broken")
    extract_bags(works, encoder, made, out)
    rows = {r["bag_id"]: r for r in read_csv(table)}
    assert (rows["a"]["patient_id"], rows["a"]["label"]) == ("P7", "mine") and rows["b"]["label"] == "source"
    table.write_text(table.read_text() + "b,,again,features_tiny/b.h5,\n")
    before = table.read_text()
    with pytest.raises(ManifestError, match="bag id 'b' is there 2 times"):
        extract_bags(works, encoder, made, out)
    assert table.read_text() == before


def test_another_encoder_or_foreign_tiles_do_not_mix(tmp_path: Path, encoder: Encoder) -> None:
    (work, _) = find_slides([make_slides(tmp_path / "s")])
    made, out = slide_settings(encoder), tmp_path / "o"
    extract_bags([work], encoder, made, out)
    torch.manual_seed(3)
    other = load_encoder(str(write_onnx(tmp_path / "other.onnx", Tiny())))
    with pytest.raises(RunError, match="holds features with weights"):
        extract_bags([work], other, slide_settings(other), out)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.csv").write_text("x,y\n100,100\n")
    theirs = replace(made, tissue=None)
    with pytest.raises(RunError, match="holds features with tissue"):
        extract_bags([work], encoder, theirs, out, coords=tmp_path / "c")
    for path in (out / "features_tiny").glob("*.h5"):
        path.unlink()
    assert (
        extract_bags([work], encoder, theirs, out, coords=tmp_path / "c").instances == 1
    )  # nothing there, nothing mixed
    coarse = find_slides([write_ome(tmp_path / "k.ome.tif", painted((512, 384), ((200, 200), 140)), 2.0)])
    (tmp_path / "c" / "k.csv").write_text("x,y\n100,100\n")
    report = extract_bags(coarse, encoder, theirs, tmp_path / "p", coords=tmp_path / "c")
    assert "would be blown up" in report.failed[0][1]


def test_an_error_waits_for_the_readers(tmp_path: Path, encoder: Encoder) -> None:
    """A slide that is closed while a thread reads it takes the process down."""
    (work, _) = find_slides([make_slides(tmp_path / "s")])
    pictures = open_pictures(work, slide_settings(encoder))
    reading, most, closed = [0], [0], []

    class Slow:
        names, facts = None, pictures.facts

        def __len__(self) -> int:
            return len(pictures)

        def picture(self, row: int) -> Image.Image:
            assert not closed
            reading[0] += 1
            most[0] = max(most[0], reading[0])
            time.sleep(0.02)
            reading[0] -= 1
            return pictures.picture(row)

    def stop(_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_all(Slow(), replace(encoder, run=stop), workers=4, batch_size=2)  # type: ignore[arg-type]
    assert most[0] > 1 and reading[0] == 0
    closed.append(True)
    time.sleep(0.1)
    pictures.close()


def test_numbers_beyond_half_precision_are_kept(tmp_path: Path, encoder: Encoder) -> None:
    large = replace(encoder, run=lambda x: encoder.run(x) * 1e6)
    extract_bags(find_cells([cells(tmp_path / "cells")]), large, cell_settings(encoder), tmp_path / "o")
    found = read_bag_file(tmp_path / "o" / "features_tiny" / "p1.h5").features
    assert found.dtype == torch.float32 and float(found.abs().max()) > 65504 and bool(torch.isfinite(found).all())


def test_names_that_are_no_text(tmp_path: Path, encoder: Encoder) -> None:
    folder = cells(tmp_path / "cells") / "apl" / "p1"
    (folder / "c0.png").rename(folder / os.fsdecode(b"c\xff.png"))
    report = extract_bags(find_cells([tmp_path / "cells"]), encoder, cell_settings(encoder), tmp_path / "o")
    assert report.failed == []
    assert set(read_bag_file(tmp_path / "o" / "features_tiny" / "p1.h5").instance_ids or ()) == {"c\\udcff", "c1", "c2"}


def test_images_of_a_flat_folder_belong_to_no_bag_alone(tmp_path: Path, encoder: Encoder) -> None:
    """What the table says of images is what `qgmil check --images` looks at."""
    (tmp_path / "flat").mkdir()
    rows = ["image,bag_id"]
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 9, 9)).save(tmp_path / "flat" / f"{i}.png")
        rows.append(f"flat/{i}.png,b{i // 2}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    extract_bags(find_cells([tmp_path / "t.csv"]), encoder, cell_settings(encoder), tmp_path / "o")
    assert {r["images"] for r in read_csv(tmp_path / "o" / "bags.csv")} == {""}
    deep = tmp_path / "deep" / "apl" / "p1"
    for part in ("s1", "s2"):
        (deep / part).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(deep / part / "1.png")
    extract_bags(find_cells([tmp_path / "deep"]), encoder, cell_settings(encoder), tmp_path / "p")
    assert [r["images"] for r in read_csv(tmp_path / "p" / "bags.csv")] == [str(deep)]


def test_sixteen_bits_of_colour_are_left_out(tmp_path: Path, encoder: Encoder) -> None:
    import tifffile

    folder = cells(tmp_path / "cells") / "apl" / "p1"
    tifffile.imwrite(folder / "deep.tif", np.full((32, 32, 3), 4000, np.uint16), photometric="rgb")
    extract_bags(find_cells([tmp_path / "cells"]), encoder, cell_settings(encoder), tmp_path / "o")
    assert [r["image"] for r in read_csv(tmp_path / "o" / "unreadable.csv")] == ["deep"]


def test_labels_of_the_user_stay_in_the_table(tmp_path: Path, encoder: Encoder) -> None:
    works = find_slides([make_slides(tmp_path / "s")])
    made, out = slide_settings(encoder), tmp_path / "o"
    extract_bags(works[:1], encoder, made, out)
    table = out / "bags.csv"
    table.write_text(
        table.read_text().replace("a,,,", "a,p7,tumour,").replace("slide\n", "slide,site\n").rstrip() + ",north\n"
    )
    extract_bags(works[1:], encoder, made, out)
    rows = {r["bag_id"]: r for r in read_csv(table)}
    assert (rows["a"]["label"], rows["a"]["patient_id"], rows["a"]["site"]) == ("tumour", "p7", "north")
    assert rows["b"]["features"] == "features_tiny/b.h5"


def test_a_failure_is_recorded_and_the_others_are_made(tmp_path: Path, encoder: Encoder) -> None:
    folder = make_slides(tmp_path / "s")
    whole = real_slide().read_bytes()
    (folder / "half.svs").write_bytes(whole[: len(whole) // 3])
    Image.new("RGB", (400, 300), (240, 240, 240)).save(folder / "glass.png")
    Image.new("RGB", (400, 300), (200, 100, 160)).save(folder / "unknown.png")
    Image.fromarray(np.full((300, 400), 9000, np.uint16)).save(folder / "deep.png")
    out = tmp_path / "o"
    works = [w if w.bag_id != "glass" else Work("glass", w.files, mpp=0.5) for w in find_slides([folder])]
    report = extract_bags(works, encoder, slide_settings(encoder), out)
    assert report.made == 2
    failed = {r["bag_id"]: r["reason"] for r in read_csv(out / "failed.csv")}
    assert set(failed) == {"half", "glass", "unknown", "deep"} == {name for name, _ in report.failed}
    assert "half.svs" in failed["half"] and "deep.png: has more than 8 bits a pixel" in failed["deep"]
    assert "no tissue was found" in failed["glass"] and (out / "previews" / "glass.jpg").is_file()
    assert "does not say how many microns a pixel is" in failed["unknown"]
    assert [r["bag_id"] for r in read_csv(out / "bags.csv")] == ["a", "b"]
    report = extract_bags(works, encoder, slide_settings(encoder), out, slide_mpp=0.5)  # tried again
    assert (report.made, report.kept) == (1, 2) and {n for n, _ in report.failed} == {"half", "glass", "deep"}
    assert {r["bag_id"] for r in read_csv(out / "failed.csv")} == {"half", "glass", "deep"}


def test_a_package_that_is_missing_fails_its_slides_and_a_bad_encoder_all(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_slides(tmp_path / "s")
    Image.fromarray(painted((512, 384), ((200, 200), 140))).save(folder / "c.png")
    works, made = find_slides([folder]), slide_settings(encoder)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tiffslide", None)
        report = extract_bags(works, encoder, made, tmp_path / "o", slide_mpp=0.5)
    assert report.made == 1 and [name for name, _ in report.failed] == ["a", "b"]
    assert "pip install 'qgmil[ome]'" in report.failed[0][1]
    wide = replace(encoder, info=replace(encoder.info, width=7))
    with pytest.raises(EncoderError, match=r"gave features of shape \(16, 16\), not \(16, 7\)"):
        extract_bags(works, wide, made, tmp_path / "p", slide_mpp=0.5)


def test_failures_of_other_bags_stay_on_record(tmp_path: Path, encoder: Encoder) -> None:
    folder = make_slides(tmp_path / "s")
    (folder / "bad.svs").write_bytes(b"no slide")
    made, out = slide_settings(encoder), tmp_path / "o"
    works = {w.bag_id: w for w in find_slides([folder])}
    extract_bags([works["bad"]], encoder, made, out)
    extract_bags([works["a"]], encoder, made, out)
    assert [r["bag_id"] for r in read_csv(out / "failed.csv")] == ["bad"]
    (folder / "bad.svs").unlink()
    extract_bags([Work("bad", works["b"].files)], encoder, made, out)
    assert not (out / "failed.csv").exists()


def test_a_kill_leaves_no_half_file(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    works = find_slides([make_slides(tmp_path / "s")])

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qgmil.encoders.extract.write_bag", stop)
        with pytest.raises(KeyboardInterrupt):
            extract_bags(works, encoder, slide_settings(encoder), tmp_path / "o")
    assert not list((tmp_path / "o" / "features_tiny").glob("*.h5*"))
    assert extract_bags(works, encoder, slide_settings(encoder), tmp_path / "o").made == 2


def cells(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for place, count in (("apl/p1", 3), ("aml/p2", 2)):
        (folder / place).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / place / f"c{i}.png")
    return folder


def test_cells_become_bags_of_patients(tmp_path: Path, encoder: Encoder) -> None:
    folder = cells(tmp_path / "cells")
    report = extract_bags(find_cells([folder]), encoder, cell_settings(encoder), tmp_path / "o", batch_size=2)
    assert (report.made, report.instances) == (2, 5)
    bags = open_bags(tmp_path / "o" / "bags.csv")
    assert (bags.bag_ids, bags.labels, bags.groups) == (("p2", "p1"), ("aml", "apl"), ("p2", "p1"))
    bag = bags[1]
    assert bag.instance_ids == ("c0", "c1", "c2") and bag.coords is None
    want = one_by_one(encoder, [Image.open(folder / "apl" / "p1" / f"c{i}.png") for i in range(3)])
    torch.testing.assert_close(bag.features, want.half(), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_cells_of_a_tar_are_those_of_the_folder(tmp_path: Path, encoder: Encoder, mode: str) -> None:
    names = [f"c{i}.png" for i in range(9)]
    tar = write_tar(tmp_path / "p1.tar", *names, mode=mode)
    extract_bags(find_cells([tar]), encoder, cell_settings(encoder), tmp_path / "o", workers=3, batch_size=2)
    bag = read_bag_file(tmp_path / "o" / "features_tiny" / "p1.h5")
    assert bag.instance_ids == tuple(n.removesuffix(".png") for n in names)
    want = one_by_one(encoder, [Image.new("RGB", (32, 32), (len(n) * 9 % 256, 9, 9)) for n in names])
    torch.testing.assert_close(bag.features, want.half(), rtol=2e-3, atol=1e-3)


def test_cells_that_cannot_be_read_are_left_out_by_name(tmp_path: Path, encoder: Encoder) -> None:
    folder = cells(tmp_path / "cells") / "apl" / "p1"
    (folder / "c1.png").write_bytes((folder / "c1.png").read_bytes()[:60])
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(folder / "c3.png")
    Image.new("L", (9000, 9000)).save(folder / "c4.png")
    (folder / "c5.png").write_bytes(b"")
    (tmp_path / "cells" / "aml" / "p2" / "c0.png").write_bytes(b"x")
    (tmp_path / "cells" / "aml" / "p2" / "c1.png").write_bytes(b"x")
    report = extract_bags(find_cells([tmp_path / "cells"]), encoder, cell_settings(encoder), tmp_path / "o")
    assert read_bag_file(tmp_path / "o" / "features_tiny" / "p1.h5").instance_ids == ("c0", "c2")
    rows = {r["image"]: r["reason"] for r in read_csv(tmp_path / "o" / "unreadable.csv")}
    assert set(rows) == {"c1", "c3", "c4", "c5"}
    assert "c1.png: cannot be read as an image" in rows["c1"]
    assert "more than 8 bits a pixel" in rows["c3"] and "convert it to 8 bits first" in rows["c3"]
    assert "declares 9,000 x 9,000 pixels" in rows["c4"] and "zero bytes" in rows["c5"]
    assert [name for name, _ in report.failed] == ["p2"]  # none of its images can be read
    assert not (tmp_path / "o" / "features_tiny" / "p2.h5").exists()


def test_how_cells_become_squares() -> None:
    image = Image.new("RGB", (40, 20), (10, 20, 30))
    image.paste((200, 0, 0), (10, 0, 30, 20))
    padded = Shaping("pad").apply(image)
    assert padded.size == (40, 40) and padded.getpixel((0, 0)) == (255, 255, 255)
    assert padded.getpixel((0, 20)) == (10, 20, 30) and padded.getpixel((20, 10)) == (200, 0, 0)
    cropped = Shaping("crop").apply(image)
    assert cropped.size == (20, 20) and cropped.getcolors() == [(400, (200, 0, 0))]
    assert Shaping("stretch").apply(image) is image
    assert Shaping(centre=20).apply(image).getcolors() == [(400, (200, 0, 0))]
    wide = Shaping(centre=30).apply(image)
    assert wide.size == (30, 30) and wide.getpixel((0, 0)) == (255, 255, 255) and wide.getpixel((0, 15)) == (10, 20, 30)
    with pytest.raises(ConfigError, match="fit='squash'"):
        Shaping("squash")


def write_coords(path: Path, coords: np.ndarray, **attrs: object) -> None:
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("coords", data=coords)
        for name, value in attrs.items():
            stored.attrs[name] = value


def test_coordinates_of_other_tools(tmp_path: Path, encoder: Encoder) -> None:
    (work,) = find_slides([make_slides(tmp_path / "s") / "b.ome.tif"])
    corners = np.array([[64, 64], [128, 64], [200, 100]])
    folder, made = tmp_path / "coords", slide_settings(encoder)
    folder.mkdir()

    def edges(**_: object) -> tuple[list[list[int]], float]:
        pictures = open_pictures(work, made, coords=folder)
        try:
            return pictures.corners.tolist(), pictures.edge  # type: ignore[attr-defined]
        finally:
            pictures.close()

    (folder / "b.csv").write_text("x,y\n64,64\n128,64\n200,100\n")
    assert edges() == (corners.tolist(), 64.0)  # 32 px at 0.5 on a slide of 0.25
    write_coords(folder / "b.h5", corners, patch_size=32, patch_level=1, downsample=np.array([2.0, 2.0]))  # CLAM
    (folder / "b.csv").unlink()
    assert edges() == (corners.tolist(), 64.0)
    write_coords(folder / "b_patches.h5", corners, patch_size=256, patch_size_level0=96, target_magnification=20)
    with pytest.raises(ReadError, match=r"b_patches\.h5: has tiles of 96 .* of 64; .* 1\.5 times the --mpp"):
        edges()
    write_coords(folder / "b_patches.h5", corners, patch_size=32, patch_size_level0=64, target_magnification=20)
    assert edges() == (corners.tolist(), 64.0)
    (folder / "b.csv").write_text("x,y\n1e30,0\n")
    (folder / "b_patches.h5").rename(folder / "kept")
    (folder / "b.h5").unlink()
    with pytest.raises(ReadError, match=r"b\.csv: line 2: x '1e30' and y '0' must be numbers"):
        edges()
    write_coords(folder / "b_patches.h5", corners * 9, patch_size=32, patch_size_level0=64, target_magnification=20)
    with pytest.raises(BagError, match="is it the slide that they were cut from"):
        edges()
    with pytest.raises(ReadError, match=r"has no coordinates of 'b'; looked for 'b_patches\.h5', 'b\.h5', 'b\.csv'"):
        open_pictures(work, made, coords=tmp_path)


def test_threads_change_nothing(tmp_path: Path, encoder: Encoder) -> None:
    (work,) = find_slides([make_slides(tmp_path / "s") / "a.ome.tif"])
    said = []
    for workers, batch in ((1, 64), (4, 3)):
        pictures = open_pictures(work, slide_settings(encoder))
        said.append(encode_all(pictures, encoder, workers=workers, batch_size=batch))
        pictures.close()
    torch.testing.assert_close(said[0][0], said[1][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(said[0][1], said[1][1])
