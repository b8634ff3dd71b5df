"""Galleries: order, mass and pictures by name; files that are missing, broken, ambiguous or hostile."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from qgmil.attention.gallery import gallery_figure, gallery_items
from qgmil.attention.scores import InstanceScores
from qgmil.bags.bag import Bag
from qgmil.errors import BagError, ConfigError, ReadError
from qgmil.images.instances import open_images

IDS = ("c0", "c1", "c2", "c3", "c4")
VALUES = (0.1, 0.4, 0.2, 0.05, 0.25)
SHADES = (10, 60, 110, 160, 210)


def bag(**facts: object) -> Bag:
    return Bag(torch.zeros(5, 2), bag_id="p", **{"instance_ids": IDS, **facts})


SCORES = InstanceScores(np.array(VALUES), "attention", "pooling attention, sums to 1 over the bag", True)


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (12, 8), (shade, shade, shade))


def folder(where: Path, suffix: str = ".png") -> Path:
    where.mkdir(parents=True, exist_ok=True)
    for name, shade in zip(IDS, SHADES, strict=True):
        picture(shade).save(where / f"{name}{suffix}")
    return where


def packed(where: Path, files: Path) -> Path:
    with tarfile.open(where, "w:gz" if where.name.endswith("gz") else "w") as tar:
        tar.add(files, arcname="cells")
    return where


def test_order_mass_and_cumulative_mass() -> None:
    items = gallery_items(bag(instance_labels=torch.tensor([0, 1, 0, 0, 2])), SCORES, None, top=2, bottom=2)
    assert [(i.rank, i.row, i.instance_id) for i in items] == [(1, 1, "c1"), (2, 4, "c4"), (4, 0, "c0"), (5, 3, "c3")]
    assert [i.cumulative for i in items] == pytest.approx([0.4, 0.65, 0.95, 1.0])
    assert [i.truth for i in items] == [1, 2, 0, 0]
    assert [i.rank for i in gallery_items(bag(), SCORES, None, top=4, bottom=3)] == [1, 2, 3, 4, 5]  # none twice


@pytest.mark.parametrize("kind", ["folder", "nested", "tar", "tgz"])
def test_pictures_are_found_by_name(tmp_path: Path, kind: str) -> None:
    files = folder(tmp_path / "cells" / ("deep" if kind == "nested" else ""))
    where = {"folder": files, "nested": tmp_path / "cells"}.get(kind) or packed(tmp_path / f"c.{kind}", files)
    items = gallery_items(bag(), SCORES, open_images(where, bag()), size=24)
    for item in items:
        assert item.image is not None and item.image.size == (24, 24)
        assert item.image.getpixel((12, 12)) == (SHADES[item.row],) * 3
        assert item.image.getpixel((12, 0)) == (255, 255, 255)  # padded to a square, not stretched


def test_names_with_folders_and_endings(tmp_path: Path) -> None:
    folder(tmp_path / "a")
    folder(tmp_path / "b")
    named = bag(instance_ids=tuple(f"b/{i}.png" for i in IDS))
    items = gallery_items(named, SCORES, open_images(tmp_path, named))
    assert all(item.problem is None for item in items)
    with pytest.raises(ReadError, match=r"instance 'c0' of bag 'p' could be 'a/c0\.png' or 'b/c0\.png'"):
        open_images(tmp_path, bag())


def test_tiles_are_cut_from_a_slide(tmp_path: Path) -> None:
    pixels = np.repeat(np.arange(50, dtype=np.uint8)[None, :, None] * 5, 20, axis=0).repeat(3, axis=2)
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    coords = torch.tensor([[10 * i, 5] for i in range(5)])
    tiled = bag(instance_ids=None, coords=coords, coord_unit="px", tile_size=10.0)
    items = gallery_items(tiled, SCORES, open_images(tmp_path / "slide.png", tiled), size=10)
    for item in items:
        assert item.image is not None
        np.testing.assert_array_equal(np.asarray(item.image), pixels[5:15, 10 * item.row : 10 * item.row + 10])
    with pytest.raises(BagError, match=r"bag 'p': cutting its tiles out of .*--coord-unit px and --tile-size"):
        open_images(tmp_path / "slide.png", bag())


def test_the_wrong_slide_is_noticed(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "s.png")
    tiled = bag(coords=torch.tensor([[10 * i, 0] for i in range(5)]), coord_unit="px", tile_size=10.0)
    with pytest.raises(BagError, match=r"bag 'p' has tiles from \(0, 0\) to \(50, 10\), but .*s\.png is 12 x 8 pixels"):
        open_images(tmp_path / "s.png", tiled)


def test_broken_and_missing_pictures_are_named_and_the_rest_shown(tmp_path: Path) -> None:
    files = folder(tmp_path / "cells")
    (files / "c1.png").write_bytes(b"not a picture")
    (files / "c4.png").unlink()
    items = {i.row: i for i in gallery_items(bag(), SCORES, open_images(files, bag()))}
    assert "c1.png: cannot be read as an image" in str(items[1].problem)
    assert "has no picture of this instance" in str(items[4].problem)
    assert [r for r, i in items.items() if i.image is None] == [1, 4]
    gallery_figure(list(items.values()), SCORES)


def test_hostile_tars(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"\0" * 100 + b"junk" * 300)
    with pytest.raises(ReadError, match=r"x\.tar: "):
        open_images(tmp_path / "x.tar", bag())
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("c0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        data = io.BytesIO()
        picture(3).save(data, "png")
        info = tarfile.TarInfo("../../c1.png")
        info.size = len(data.getvalue())
        tar.addfile(info, io.BytesIO(data.getvalue()))
    items = {i.row: i for i in gallery_items(bag(), SCORES, open_images(tmp_path / "link.tar", bag()))}
    assert items[0].image is None  # links are not followed
    assert items[1].image is not None
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["link.tar", "x.tar"]  # nothing was unpacked


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_broken_compressed_tars(tmp_path: Path, kind: str, harm: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    folder(tmp_path / "cells")
    Image.fromarray(noise).save(tmp_path / "cells" / "c0.png")  # so that there is something to break
    path = tmp_path / f"c.{kind}"
    with tarfile.open(path, f"w:{kind.rpartition('.')[2]}") as tar:
        tar.add(tmp_path / "cells", arcname="cells")
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    path.write_bytes(raw[:middle] if harm == "cut" else raw[:middle] + b"\xff" * 400 + raw[middle + 400 :])
    try:
        items = gallery_items(bag(), SCORES, open_images(path, bag()))
    except ReadError as error:
        assert str(error).startswith(f"{path}: cannot be read as a tar (") and "\n" not in str(error)
    else:  # where the members can still be listed, what broke is named
        assert any(str(path) in str(item.problem) for item in items)


def test_a_tar_that_unpacks_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = folder(tmp_path / "cells")
    with (files / "zeros.bin").open("wb") as file:
        file.truncate(3_000_000)
    monkeypatch.setattr("qgmil.images.instances.MAX_UNPACKED", 2_000_000)
    with pytest.raises(ReadError, match=r"c\.tgz: unpacks to more than 2,000,000 bytes"):
        open_images(packed(tmp_path / "c.tgz", files), bag())
    open_images(packed(tmp_path / "c.tar", files), bag())  # nothing has to be unpacked to look into this one


@pytest.mark.parametrize(
    ("change", "where", "error", "message"),
    [
        ({"instance_ids": None}, "cells", BagError, r"bag 'p': its file has no names of instances"),
        ({"instance_ids": ("x",) * 5}, "cells", ReadError, r"has no picture of bag 'p' \(its first instance is 'x'"),
        ({}, "gone", ReadError, r"gone: no such file or folder"),
    ],
)
def test_what_cannot_be_shown_is_said(
    tmp_path: Path, change: dict, where: str, error: type[Exception], message: str
) -> None:
    folder(tmp_path / "cells")
    with pytest.raises(error, match=message):
        open_images(tmp_path / where, bag(**change))


def test_the_figure_says_ranks_masses_and_frames_what_is_sought(tmp_path: Path) -> None:
    truth = bag(instance_labels=torch.tensor([0, 1, 0, 0, 2]))
    items = gallery_items(truth, SCORES, open_images(folder(tmp_path / "c"), truth), top=3, bottom=1)
    figure = gallery_figure(items, SCORES, title="p$1$")
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["1: 40%  Σ 40%", "2: 25%  Σ 65%", "3: 20%  Σ 85%", "5: 5%  Σ 100%"]
    assert [len(ax.patches) for ax in figure.axes if ax.get_title()] == [1, 1, 0, 0]
    only = gallery_figure(items, SCORES, positives=(2,))
    assert [len(ax.patches) for ax in only.axes if ax.get_title()] == [0, 1, 0, 0]


def test_nothing_in_the_figure_overlaps() -> None:
    long = gallery_items(bag(), SCORES, None, top=2, bottom=2)
    figure = gallery_figure(long, SCORES, title="a bag with a long name and a long prediction, " * 6)
    figure.draw(FigureCanvasAgg(figure).get_renderer())
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes += [ax.get_window_extent() for ax in figure.axes] + [ax.title.get_window_extent() for ax in figure.axes]
    assert len(boxes) == 2 + 2 * 4
    for i, one in enumerate(boxes):
        assert one.x0 >= -1 and one.x1 <= figure.bbox.width + 1
        assert not any(one.overlaps(other) for other in boxes[:i])


def test_bad_counts() -> None:
    with pytest.raises(ConfigError, match="top"):
        gallery_items(bag(), SCORES, None, top=0)
    with pytest.raises(BagError, match="no instances"):
        gallery_figure([], SCORES)
