"""Which bags folders, tars and tables make, and what is said of those that make none."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from qgmil.encoders.work import find_cells, find_slides
from qgmil.errors import ManifestError, ReadError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def write_tar(path: Path, *names: str, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name in names:
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (len(name) * 9 % 256, 9, 9)).save(buffer, "PNG")
            info = tarfile.TarInfo(name)
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)
    return path


def said(works: list) -> dict:  # type: ignore[type-arg]
    return {w.bag_id: (w.label, w.patient_id, w.names) for w in works}


def test_classes_and_patients(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "cells", "apl/p1/cell_10.png", "apl/p1/cell_2.png", "apl/p1/cell_1.TIF", "aml/p2/a.jpg",
        "aml/p2/.hidden.png", "aml/p2/notes.txt",
    )  # fmt: skip
    assert said(find_cells([root])) == {
        "p2": ("aml", "p2", ("a",)),
        "p1": ("apl", "p1", ("cell_1", "cell_2", "cell_10")),  # in their natural order
    }


def test_patients_alone_one_folder_and_deeper_ones(tmp_path: Path) -> None:
    assert said(find_cells([touch(tmp_path / "a", "p1/1.png", "p2/1.png")])) == {
        "p1": (None, "p1", ("1",)), "p2": (None, "p2", ("1",)),
    }  # fmt: skip
    assert said(find_cells([touch(tmp_path / "smear", "1.png", "2.png")])) == {"smear": (None, None, ("1", "2"))}
    deep = touch(tmp_path / "c", "apl/p1/slide1/1.png", "apl/p1/slide2/1.png")
    assert said(find_cells([deep])) == {"p1": ("apl", "p1", ("slide1/1", "slide2/1"))}


def test_names_that_are_twice_keep_their_ending(tmp_path: Path) -> None:
    assert said(find_cells([touch(tmp_path / "s", "1.png", "1.jpg")]))["s"][2] == ("1.jpg", "1.png")


def test_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "t" / "p1.tar", "b.png", "a.png")
    write_tar(tmp_path / "t" / "p2.tar.gz", "x/1.png", "x/2.png", mode="w:gz")
    assert said(find_cells([tmp_path / "t"])) == {"p1": (None, "p1", ("a", "b")), "p2": (None, "p2", ("1", "2"))}
    write_tar(tmp_path / "u" / "apl" / "p3.tar", "1.png")
    assert said(find_cells([tmp_path / "u"])) == {"p3": ("apl", "p3", ("1",))}
    tree = write_tar(tmp_path / "tree.tar", "apl/p4/1.png", "aml/p5/1.png", "aml/p5/2.png")
    assert said(find_cells([tree])) == {"p4": ("apl", "p4", ("1",)), "p5": ("aml", "p5", ("1", "2"))}
    usual = write_tar(tmp_path / "cells.tar", "cells/apl/p6/1.png", "cells/aml/p7/1.png")  # tar cf cells.tar cells
    assert said(find_cells([usual])) == {"p6": ("apl", "p6", ("1",)), "p7": ("aml", "p7", ("1",))}
    alone = write_tar(tmp_path / "p8.tar", "p8/10.png", "p8/9.png")
    assert said(find_cells([alone])) == {"p8": (None, "p8", ("9", "10"))}
    with pytest.raises(ReadError, match=r"odd\.tar: all images are below 'top', which may be a class or not"):
        find_cells([write_tar(tmp_path / "odd.tar", "top/a/p1/1.png", "top/b/p2/1.png")])
    deep = write_tar(tmp_path / "v" / "apl" / "p9" / "x1.tar", "1.png").parents[2]
    assert said(find_cells([deep])) == {"x1": ("apl", "p9", ("1",))}
    write_tar(tmp_path / "w" / "a" / "b" / "c" / "x.tar", "1.png")
    with pytest.raises(ReadError, match=r"x\.tar: lies deeper than <class>/<patient>/"):
        find_cells([tmp_path / "w"])
    with pytest.raises(ReadError, match=r"none\.tar: has no images of cells"):
        find_cells([write_tar(tmp_path / "none.tar", "a.txt")])
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ReadError, match=r"bad\.tar: cannot be read as a tar"):
        find_cells([tmp_path / "bad.tar"])


def test_names_in_a_tar_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"bag id '\.\.' cannot be used"):
        find_cells([write_tar(tmp_path / "a.tar", "../../evil.png", "x/p1/1.png")])
    (one,) = find_cells([write_tar(tmp_path / "b.tar", "../../evil.png")])
    assert (one.bag_id, one.names) == ("b", ("evil",))


def test_tables_of_cells(tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    table.write_text("image,patient_id,label,instance_id\nx/1.png,0012,apl,c1\ny/1.png,0012,apl,c2\nx/3.png,7,aml,c3\n")
    works = find_cells([table])
    assert said(works) == {"0012": ("apl", "0012", ("c1", "c2")), "7": ("aml", "7", ("c3",))}
    assert works[0].files == (tmp_path / "x/1.png", tmp_path / "y/1.png")
    for text, match in (
        ("image,label\na.png,x\n", "has no column bag_id or patient_id; it has 'image', 'label': whose cells"),
        ("picture,bag_id\na.png,x\n", "has no column of images of cells"),
        ("image,bag_id\n,x\n", "line 2: the column image is blank"),
        ("image,bag_id,label\na.png,b,x\nc.png,b,y\n", "line 3: bag 'b' has label 'y' .* here, 'x' .* before"),
        ("image,bag_id\na.png,b\na.png,b\n", r"a\.png: is there twice in one bag"),
        ("image,bag_id\n", "has a header but no rows"),
        ("image,bag_id\na.png,../b\n", r"bag id '\.\./b' cannot be used"),
    ):
        table.write_text(text)
        with pytest.raises(ManifestError, match=match):
            find_cells([table])


def test_folders_that_make_no_bags(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"has images in .*mixed and in .*mixed/p1; cells lie in <class>/<patient>"):
        find_cells([touch(tmp_path / "mixed", "1.png", "p1/2.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="empty: has no images of cells"):
        find_cells([tmp_path / "empty"])
    with pytest.raises(ManifestError, match="would be bag 'p1'; name them in a table"):
        find_cells([touch(tmp_path / "twice", "apl/p1/1.png", "aml/p1/1.png")])
    with pytest.raises(ReadError, match="gone: is no folder, tar, image or table"):
        find_cells([tmp_path / "gone"])


def test_a_folder_of_a_hundred_thousand_files(tmp_path: Path) -> None:
    """They are listed and none of them is opened: all are empty, which no image is."""
    for p in range(100):
        folder = tmp_path / "cells" / "c" / f"p{p}"
        folder.mkdir(parents=True)
        for i in range(1000):
            (folder / f"{i}.png").touch()
    works = find_cells([tmp_path / "cells"])
    assert len(works) == 100 and sum(len(w.files) for w in works) == 100_000
    assert works[0].names is not None and works[0].names[:3] == ("0", "1", "2")


def test_slides_of_folders_files_and_tables(tmp_path: Path) -> None:
    root = touch(tmp_path / "s", "a.svs", "deep/b.ndpi")
    assert [w.bag_id for w in find_slides([root])] == ["a", "b"]
    assert [w.bag_id for w in find_slides([root / "a.svs"])] == ["a"]
    table = tmp_path / "slides.csv"
    table.write_text("slide;bag_id;label;patient_id;mpp\ns/a.svs;A1;x;0012;0.25\ns/deep/b.ndpi;;y;;\n")
    one, two = find_slides([table])
    assert (one.bag_id, one.label, one.patient_id, one.mpp) == ("A1", "x", "0012", 0.25)
    assert one.files == (root / "a.svs",)
    assert (two.bag_id, two.label, two.patient_id, two.mpp) == ("b", "y", None, None)
    table.write_text("slide,mpp\ns/a.svs,fine\n")
    with pytest.raises(ManifestError, match="line 2: mpp is 'fine'; expected microns per pixel"):
        find_slides([table])
    assert len(find_slides([root / "a.svs", root / "a.svs"])) == 1
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(ReadError, match=r"a\.h5: is a file of features, not a slide"):
        find_slides([tmp_path / "a.h5"])
    with pytest.raises(ManifestError, match=r"would be bag 'a'"):
        find_slides([root / "a.svs", touch(tmp_path, "a.svs") / "a.svs"])
    (tmp_path / "void").mkdir()
    with pytest.raises(ReadError, match="void: has no slides or images"):
        find_slides([tmp_path / "void"])
