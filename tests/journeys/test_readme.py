"""The commands and the Python of the README and the guide do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import qgmil
from cohort import make_cohort, write_tiles
from qgmil.cli import main
from slides import painted, real_slide, write_ome

ROOT = Path(__file__).resolve().parents[2]
#: Makes a documented training command quick; it is typed otherwise as documented.
QUICK = ["--epochs", "1", "--options.width", "16", "-q"]

ENCODER_HASH = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
BENCH = """
folds: 2
seeds: 1
common: {epochs: 1, min_epochs: 1}
datasets: {cohort: {manifest: bags.csv}}
models: {qgmil: {options: {width: 16, num_heads: 2}}, abmil_gated: {options: {width: 16}}}
"""


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.S)


def commands(name: str) -> list[str]:
    """Documented qgmil commands, comments removed."""
    lines = [line.split("  #")[0].strip() for block in blocks(name, "bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("qgmil ")]


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README's reader has it: bags.csv with splits, another cohort, new slides."""
    make_cohort(tmp_path)
    text = (tmp_path / "bags.csv").read_text().splitlines()
    part = {"P00": "test", "P01": "test", "P02": "val", "P03": "val"}
    rows = [f"{text[0]},split", *(f"{line},{part.get(line.split(',')[1], 'train')}" for line in text[1:])]
    (tmp_path / "bags.csv").write_text("\n".join(rows) + "\n")
    make_cohort(tmp_path / "other", patients=6, seed=3)
    other = (tmp_path / "other" / "bags.csv").read_text().replace("features/", "other/features/")
    (tmp_path / "other_cohort.csv").write_text(other.replace(",P0", ",Q0").replace("\np0", "\nq0"))
    (tmp_path / "new_slides").mkdir()
    with h5py.File(tmp_path / "new_slides" / "a.h5", "w") as file:
        file["features"] = np.zeros((5, 12), dtype=np.float16)
    (tmp_path / "recipe.yaml").write_text("batch_size: 4\n")
    (tmp_path / "bench.yaml").write_text(BENCH)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def type_in(line: str) -> int:
    arguments = shlex.split(line)[1:]
    if arguments[0] == "train" and "--resume" not in arguments:
        arguments += QUICK
    if arguments[0] == "train" and "-o" not in arguments:
        arguments += ["-o", f"runs/{abs(hash(line))}"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


def test_the_readme_in_order(cohort: Path) -> None:
    """Commands as documented, one after the other; three seeds are one here."""
    typed = commands("README.md")
    assert len(typed) >= 6 and typed[0] == "qgmil check bags.csv"
    for line in typed:
        line = line.replace("--seeds 3", "--seeds 1").replace("--folds 5", "--folds 2")
        assert type_in(line) == 0, line
    assert (cohort / "predictions.csv").read_text().count("\n") == 2
    assert (cohort / "runs" / "qgmil" / "report.html").is_file()


def test_the_guide(cohort: Path) -> None:
    typed = [c for c in commands("docs/guide.md") if c.startswith("qgmil train bags.csv")]
    assert len(typed) >= 5
    for line in typed:
        line = (
            line.replace("--seeds 3", "--seeds 1").replace("--folds 5", "--folds 2").replace("--lr 3e-4", "--lr 1e-3")
        )
        assert type_in(line) == 0, line


def test_the_page_on_bags(cohort: Path) -> None:
    rows = [line.split(",") for line in (cohort / "bags.csv").read_text().splitlines()[1:]]
    table = "".join(f"{Path(files).stem},{patient},{label}\n" for _, patient, label, files, *_ in rows)
    (cohort / "labels.csv").write_text("slide_id,case_id,label\n" + table)
    typed = commands("docs/bags.md")
    assert [line.split()[1] for line in typed] == ["manifest", "check", "train", "pack", "train"]
    for line in typed:
        assert type_in(line.replace("--folds 5", "--folds 2")) == 0, line
    names: dict[str, Any] = {}
    exec(blocks("docs/bags.md", "python")[0], names)
    assert len(names["data"].bags) == 58
    assert {"bags", "splits", "notes", "info"} <= set(dir(names["data"]))


def test_the_page_on_the_benchmark(cohort: Path) -> None:
    """Its commands; and its yaml, as documented, passes every check that comes before training."""
    whole = commands("docs/benchmark.md")
    typed = [line for line in whole if line.startswith("qgmil benchmark bench.yaml")]
    assert len(typed) == 4 and {line.split()[1] for line in whole} == {"benchmark", "verify", "ablate"}
    for line in typed:
        assert type_in(line) == 0, line
    assert (cohort / "runs" / "bench" / "tables" / "results.md").is_file()
    (cohort / "bench.yaml").write_text(blocks("docs/benchmark.md", "yaml")[0])
    assert type_in("qgmil benchmark bench.yaml --dry-run -o runs/documented") == 0


def test_the_page_on_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands, from slides and cells that are made here to predictions, a check and a tuned encoder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    rows = ["bag_id,patient_id,label,features,slide"]
    for i in range(8):
        path = write_ome(tmp_path / "slides" / f"s{i}.ome.tif", painted((1000, 600), ((450, 300), 250), seed=i), 0.5)
        features = f"features/features_efficientnet_lite0/s{i}.h5"
        rows.append(f"s{i},P{i},{'tumour' if i % 2 else 'benign'},{features},{path}")
        folder = tmp_path / "labelled_cells" / ("apl" if i % 2 else "aml") / f"p{i}"
        folder.mkdir(parents=True)
        for c in range(3):
            Image.new("RGB", (64, 64), (90 + 60 * (i % 2), 10 * i, 20 * c)).save(folder / f"c{c}.png")
    (tmp_path / "labelled.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "cells").symlink_to(tmp_path / "labelled_cells")
    (tmp_path / "new_slide.svs").symlink_to(real_slide())
    typed = commands("docs/images.md")
    verbs = ["extract", "train", "predict", "extract", "check", "finetune", "finetune", "extract"]
    assert [line.split()[1] for line in typed] == verbs
    for line in typed:
        small = " --options.width 16 --options.num-heads 2" if " finetune " in line else ""
        assert type_in(line + small) == 0, line
    assert len(list((tmp_path / "features" / "previews").iterdir())) == 8
    assert (tmp_path / "said_overlays" / "new_slide.png").is_file()
    assert (tmp_path / "runs" / "tuned" / "fold1" / "encoder.pth").is_file()
    assert not (tmp_path / "runs" / "frozen" / "fold0" / "encoder.pth").exists()
    with h5py.File(tmp_path / "tuned_features" / "features_efficientnet_lite0" / "p0.h5") as file:
        assert file["features"].attrs["encoder_sha256"] != ENCODER_HASH


def test_the_page_on_attention(cohort: Path) -> None:
    """Its commands, on bags with coordinates and pictures."""
    rng = np.random.default_rng(0)
    (cohort / "cells").mkdir()
    for path in sorted((cohort / "features").glob("*.npy")):
        x = np.load(path)
        write_tiles(path.with_suffix(".h5"), x, [f"{path.stem}_{i}" for i in range(len(x))], columns=4, edge=10)
        for i in range(len(x)):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
                cohort / "cells" / f"{path.stem}_{i}.png"
            )
    (cohort / "bags.csv").write_text((cohort / "bags.csv").read_text().replace(".npy", ".h5"))
    for name, model in (("qgmil", "qgmil"), ("abmil", "abmil_gated")):
        assert type_in(f"qgmil train bags.csv --folds 2 -o runs/{name} --model {model}") == 0
    np.savez(cohort / "theirs.npz", **{p.stem: rng.normal(size=len(np.load(p))) for p in cohort.glob("features/*.npy")})
    typed = commands("docs/attention.md")
    assert [line.split()[1] for line in typed] == ["attention", "attention", "overlay", "gallery", "report"]
    for line in typed:
        placed = " --coord-unit px --tile-size 10" if " overlay " in line else ""
        assert type_in(line + placed) == 0, line
    (inline,) = re.findall(r"`(qgmil attention bags.csv [^`]*)`", (ROOT / "docs/attention.md").read_text())
    assert type_in(inline.replace("theirs.h5", "theirs.npz")) == 0


def test_the_python_of_the_readme() -> None:
    rng = np.random.default_rng(0)
    fit, loop = blocks("README.md", "python")
    names: dict[str, object] = {
        "bags": [rng.normal(i % 2, 1, (6, 8)).astype(np.float32) for i in range(20)],
        "y": [i % 2 for i in range(20)],
        "patients": list(range(20)),
        "new_bags": [np.zeros((3, 8), np.float32)],
    }
    exec(fit.replace('model="qgmil"', 'model="qgmil", epochs=1'), names)
    assert np.asarray(names["probabilities"]).shape == (1, 2)
    names = {"features": torch.randn(2, 5, 1024), "mask": torch.ones(2, 5), "labels": torch.tensor([0, 1])}
    exec(loop, names)
    loss = names["loss"]
    assert isinstance(loss, torch.Tensor) and torch.isfinite(loss)


def test_the_python_of_the_guide(cohort: Path) -> None:
    assert type_in("qgmil train bags.csv -o runs/first") == 0
    use, define = blocks("docs/guide.md", "python")
    names: dict[str, object] = {}
    exec(use, names)
    assert len(names["maps"]) == 1  # type: ignore[arg-type]
    header = (
        "import torch\nfrom torch import nn\nfrom qgmil.bags.bag import PackedBags\n"
        "from qgmil.models.base import Aggregator, apply_head\nfrom qgmil.models.output import BagOutput\n"
        "from qgmil.models.registry import register_model\n"
    )
    exec(header + define, {})
    from qgmil.models import registry

    try:
        out = qgmil.create_model("median", in_dim=4, num_classes=3)(torch.randn(2, 5, 4))
        assert out.logits.shape == (2, 3)
    finally:
        registry._ENTRIES.pop("median")


def test_the_tree_of_the_readme_is_the_tree() -> None:
    tree = (ROOT / "README.md").read_text().split("```\nsrc/qgmil/")[1].split("```")[0]
    named = set(re.findall(r"^  (\w+)/ ", tree, re.M))
    rooms = {p.name for p in (ROOT / "src" / "qgmil").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert named == rooms


def test_make_knows_the_documented_targets() -> None:
    for target in ("demo", "test", "lint"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
