"""From slides and cells to a trained run and predictions on new ones, as a user types it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import commandline
from encoders.test_encoders import Tiny, write_onnx
from qgmil.encoders.registry import ENCODERS
from qgmil.files import read_csv
from slides import TISSUE, real_slide


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def says(self, pattern: str) -> bool:
        """Whether the message says it, however the terminal breaks its lines."""
        return re.search(pattern, " ".join(self.err.split())) is not None


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def typed(*words: object) -> Done:
        capsys.readouterr()
        code = commandline.run(*words)
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return typed


SIZES = ("--tile", "64", "--input-size", "32", "--tissue", "all")
PLAIN = ("--epochs", "2", "--options.width", "16", "--options.num-heads", "2", "--options.ffn-dim", "32", "-q")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small slides of two classes that differ in their grain, extracted as a user would."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    rows = ["slide,label,patient_id,mpp"]
    for i in range(12):
        kind = "fine" if i % 2 else "coarse"
        grain = rng.normal(0, 30, (192, 192, 3) if kind == "fine" else (24, 24, 3))
        grown = grain if kind == "fine" else np.kron(grain, np.ones((8, 8, 1)))
        Image.fromarray((np.array(TISSUE) + grown).clip(0, 255).astype(np.uint8)).save(folder / f"s{i}.png")
        rows.append(f"s{i}.png,{kind},p{i},0.5")
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")
    assert commandline.run("extract", folder / "slides.csv", "-o", folder / "f", *SIZES) == 0
    return folder


def test_slides_to_predictions_with_overlays(run: Run, cohort: Path, tmp_path: Path) -> None:
    rows = read_csv(cohort / "f" / "bags.csv")
    assert len(rows) == 12 and rows[0]["label"] == "coarse" and rows[0]["patient_id"] == "p0"
    assert Path(rows[0]["slide"]) == cohort / "s0.png"
    assert (cohort / "f" / "previews" / "s0.jpg").is_file()
    done = run("extract", cohort / "slides.csv", "-o", cohort / "f", *SIZES)
    assert done.says(r"\[12/12\] s11: is there already 0 bags made of 0 images; 12 were there; table: ")
    out = tmp_path / "run"
    done = run("train", cohort / "f" / "bags.csv", "-o", out, *PLAIN)
    assert done.code == 0, done.err
    assert (out / "extract.json").read_text() == (
        cohort / "f" / "features_efficientnet_lite0" / "extract.json"
    ).read_text()
    assert run("pack", cohort / "f" / "bags.csv", "-o", tmp_path / "store").code == 0  # a store says it, too
    assert run("pack", tmp_path / "store", "-o", tmp_path / "again").code == 0
    assert (tmp_path / "again" / "extract.json").read_text() == (out / "extract.json").read_text()
    assert run("check", tmp_path / "again").code == 0
    done = run("predict", out, real_slide(), "-o", tmp_path / "said.csv", "--tissue", "auto")
    assert done.code == 0, done.err
    (row,) = read_csv(tmp_path / "said.csv")
    assert row["bag_id"] == "cmu_small_region" and row["seen"] == "no" and int(row["instances"]) > 300
    assert float(row["probability_fine"]) + float(row["probability_coarse"]) == pytest.approx(1)
    with Image.open(tmp_path / "said_overlays" / "cmu_small_region.png") as picture:
        assert min(picture.size) > 500
    again = run("predict", out, real_slide(), "-o", tmp_path / "said.csv", "--tissue", "auto", "--overwrite")
    assert again.code == 0 and "is there already" in again.err
    # what encoding and predicting in one go says is what the two steps say
    both = (cohort / "s0.png", cohort / "s1.png")
    done = run("extract", *both, "-o", tmp_path / "f", *SIZES, "--slide-mpp", "0.5")
    assert done.code == 0, done.err
    assert run("predict", out, tmp_path / "f" / "bags.csv", "-o", tmp_path / "two.csv").code == 0
    table = tmp_path / "new.csv"
    table.write_text(f"slide,mpp\n{cohort / 's0.png'},0.5\n{cohort / 's1.png'},0.5\n")
    done = run("predict", out, table, "-o", tmp_path / "one.csv", "--no-overlays")
    assert done.code == 0, done.err
    assert read_csv(tmp_path / "one.csv") == read_csv(tmp_path / "two.csv")
    assert not (tmp_path / "one_overlays").exists()


def test_predict_knows_patients_says_failures_and_never_mistakes_a_slide(
    run: Run, cohort: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run("train", cohort / "f" / "bags.csv", "-o", out, *PLAIN).code == 0
    seen = next(r["patient_id"] for r in read_csv(out / "split.csv") if r["part"] == "train")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for i, name in enumerate(("x0", "x1")):
        (tmp_path / "deep" / "er" / f"{name}.png").write_bytes((cohort / f"s{i}.png").read_bytes())
    table = tmp_path / "new.csv"
    table.write_text(f"slide,mpp,patient_id\ndeep/er/x0.png,0.5,{seen}\ndeep/er/x1.png,0.5,new\n")
    assert run("predict", out, table, "-o", tmp_path / "t.csv", "--no-overlays").code == 0
    assert [r["seen"] for r in read_csv(tmp_path / "t.csv")] == ["yes", "no"]  # by the patient, under another name
    done = run("predict", out, tmp_path / "deep", "-o", tmp_path / "d.csv", "--slide-mpp", "0.5")
    assert done.code == 0 and len(read_csv(tmp_path / "d.csv")) == 2
    assert {p.name for p in (tmp_path / "d_overlays").iterdir()} == {"x0.png", "x1.png"}
    words = ("-o", tmp_path / "deep" / "said.csv", "--slide-mpp", "0.5")  # among the slides: not taken for slides again
    assert run("predict", out, tmp_path / "deep", *words).code == 0
    assert run("predict", out, tmp_path / "deep", *words, "--overwrite").code == 0
    (tmp_path / "deep" / "er" / "x1.png").write_bytes(b"broken")
    done = run("predict", out, tmp_path / "deep", "-o", tmp_path / "b.csv", "--slide-mpp", "0.5")
    assert done.code == 1 and [r["bag_id"] for r in read_csv(tmp_path / "b.csv")] == ["x0"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x0.png").write_bytes((cohort / "s3.png").read_bytes())
    again = ("predict", out, tmp_path / "other", "-o", tmp_path / "b.csv", "--slide-mpp", "0.5", "--no-overlays")
    (tmp_path / "b.csv").unlink()
    done = run(*again)
    assert done.code == 1 and done.says("was made of other images of that name") and not (tmp_path / "b.csv").exists()
    assert run(*again, "--overwrite").code == 0
    done = run("predict", out, cohort / "s3.png", "-o", tmp_path / "c.csv", "--slide-mpp", "0.5", "--no-overlays")
    assert done.code == 0
    (one,), (two,) = read_csv(tmp_path / "b.csv"), read_csv(tmp_path / "c.csv")
    assert one["probability_fine"] == two["probability_fine"]
    features = cohort / "f" / "features_efficientnet_lite0" / "s0.h5"
    done = run("predict", out, cohort / "s0.png", features, "-o", tmp_path / "m.csv")
    assert done.code == 1 and done.says("slides and files of features are predicted one kind at a time")


def test_an_encoder_file_that_has_moved_is_known_by_its_hash(run: Run, cohort: Path, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "tiny.onnx", Tiny(), size=32)
    sizes = ("--tile", "64", "--tissue", "all")
    assert run("extract", cohort / "slides.csv", "-o", tmp_path / "f", "--encoder", path, *sizes).code == 0
    assert run("train", tmp_path / "f" / "bags.csv", "-o", tmp_path / "run", *PLAIN).code == 0
    (tmp_path / "else").mkdir()
    moved = path.rename(tmp_path / "else" / "tiny.onnx")
    words = ("predict", tmp_path / "run", cohort / "s0.png", "-o", tmp_path / "p.csv", "--slide-mpp", "0.5")
    done = run(*words)
    assert done.code == 1 and done.says(r"tiny\.onnx: no such file")
    assert run(*words, "--encoder", moved).code == 0
    other = Tiny()
    other.layers[0].weight.data.mul_(2)
    done = run(*words, "--overwrite", "--encoder", write_onnx(tmp_path / "tiny.onnx", other))
    assert done.code == 1 and done.says("were made with other weights")


def test_extracting_into_the_folder_of_the_slides_goes_on(run: Run, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.png").write_bytes((cohort / "s0.png").read_bytes())
    words = ("extract", tmp_path / "s", "-o", tmp_path / "s" / "features", *SIZES, "--slide-mpp", "0.5")
    assert run(*words).code == 0
    done = run(*words)
    assert done.code == 0 and done.says("0 bags made of 0 images; 1 were there")


def test_predict_refuses_what_would_be_another_encoding(run: Run, cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("train", cohort / "f" / "bags.csv", "-o", out, *PLAIN).code == 0
    slide, target = cohort / "s0.png", tmp_path / "p.csv"
    for words, said in (
        (("--tile", "128"), "--tile 128: the features of .* were made with 64; leave it out"),
        (("--encoder", "uni"), "--encoder uni: the features of .* were made with efficientnet_lite0"),
        (("--cells",), "was trained on slides: leave out --cells"),
        ((), "does not say how many microns a pixel is; give --slide-mpp"),
    ):
        done = run("predict", out, slide, "-o", target, *words)
        assert done.code == 1 and done.says(said), done.err
        assert not target.exists()
    (out / "extract.json").unlink()
    done = run("predict", out, slide, "-o", target)
    assert done.code == 1 and done.says("does not say how its features were made.*--encoder NAME --tile PIXELS")
    words = (
        "--encoder",
        "efficientnet_lite0",
        "--tile",
        "64",
        "--input-size",
        "32",
        "--tissue",
        "all",
        "--slide-mpp",
        "0.5",
    )
    assert run("predict", out, slide, "-o", target, *words).code == 0


def test_cells_to_predictions(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        kind, patient = ("apl", "aml")[i % 2], f"p{i}"
        folder = tmp_path / "cells" / kind / patient
        folder.mkdir(parents=True)
        for c in range(3):
            pixels = rng.integers(0, 256, (40, 40, 3)) * 0.3 + (120 if kind == "apl" else 60)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"c{c}.png")
    words = ("--cells", "--centre", "32", "--input-size", "32")
    done = run("extract", tmp_path / "cells", "-o", tmp_path / "f", *words)
    assert done.code == 0, done.err
    assert "12 bags made of 36 images" in done.err
    out = tmp_path / "run"
    assert run("train", tmp_path / "f" / "bags.csv", "-o", out, *PLAIN).code == 0
    new = tmp_path / "new" / "pX"
    new.mkdir(parents=True)
    Image.new("RGB", (40, 40), (200, 190, 180)).save(new / "a.png")
    done = run("predict", out, tmp_path / "new", "-o", tmp_path / "p.csv", "--cells")
    assert done.code == 0, done.err
    assert [r["bag_id"] for r in read_csv(tmp_path / "p.csv")] == ["pX"]
    done = run("predict", out, tmp_path / "new", "-o", tmp_path / "q.csv", "--cells", "--centre", "20")
    assert done.code == 1 and done.says("--centre 20: the features of .* were made with 32")


def test_failures_end_with_one_and_are_listed(run: Run, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "bad.svs").write_bytes(b"no slide")
    (tmp_path / "s" / "good.png").write_bytes((cohort / "s0.png").read_bytes())
    words = ("--tile", "64", "--input-size", "32", "--tissue", "all", "--slide-mpp", "0.5")
    done = run("extract", tmp_path / "s", "-o", tmp_path / "f", *words)
    assert done.code == 1
    assert done.says("1 of 2 bags failed: .*failed.csv") and done.says("bad.svs: cannot be read")
    assert [r["bag_id"] for r in read_csv(tmp_path / "f" / "bags.csv")] == ["good"]
    (tmp_path / "s" / "bad.svs").unlink()
    done = run("extract", tmp_path / "s", "-o", tmp_path / "f", *words, "-q")
    assert (done.code, done.err) == (0, "")
    assert [r["bag_id"] for r in read_csv(tmp_path / "f" / "failed.csv")] == ["bad"]  # what is on record stays


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cells", "--tile", "64"), "--tile is about slides; with --cells there are --centre and --fit"),
        (("--centre", "64"), "--centre is about images of cells: add --cells"),
        (("--mpp", "0.5", "--magnification", "20"), "give --mpp or --magnification, not both"),
        (("--magnification", "0"), "--magnification 0.0: is above 0"),
        (("--mpp", "0"), "mpp=0.0: microns per pixel are above 0"),
        (("--min-area", "nan"), "min_area=nan: is an area in mm², not below 0"),
        (("--encoder", "resnet"), "there is no encoder 'resnet'"),
        (("--tile", "4"), "tile=4: a tile has an edge of at least 8"),
        (("--weights", "gone.pth"), "gone.pth: no such file"),
    ],
)
def test_options_that_do_not_go_together(
    run: Run, cohort: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = run("extract", cohort / "s0.png", "-o", tmp_path / "f", *words)
    assert done.code == 1 and said in done.err, done.err
    assert "Traceback" not in done.err and not (tmp_path / "f").exists()


def test_the_list_of_encoders(run: Run) -> None:
    done = run("encoders")
    assert done.code == 0
    for name in ENCODERS:
        assert name in done.out
    assert "ready" in done.out and "CC BY-NC-ND 4.0" in done.out
    done = run("encoders", "virchow2")
    assert "paige-ai/Virchow2 (register with its owner first)" in done.out and "0.485, 0.456, 0.406" in done.out
    assert "class token, then mean of patches" in done.out and "2560" in done.out
    assert run("encoders", "virchow3").code == 1
