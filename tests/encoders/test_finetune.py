"""Encoder and aggregator trained together: the gradient reaches the encoder, and only what should change does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from commandline import run
from qgmil.encoders.base import Encoder, sized
from qgmil.encoders.finetune import CellBags, Draws, FinetuneConfig, checkpoint_of, finetune, logits_of, turned
from qgmil.encoders.lite0 import load_trainable, published
from qgmil.encoders.load import load_encoder
from qgmil.encoders.pictures import Shaping
from qgmil.encoders.registry import DEFAULT, ENCODERS
from qgmil.encoders.work import Work, find_cells
from qgmil.errors import ConfigError, ReadError
from qgmil.files import read_csv
from qgmil.models.registry import create_model

INFO = sized(ENCODERS[DEFAULT], 32)
QUICK = FinetuneConfig(cells=4, val_cells=4, batch_size=4, epochs=3, min_epochs=1, lr=1e-3, encoder_lr=1e-3)


def cells(root: Path, patients: int = 8, count: int = 6) -> list[Work]:
    """Two classes that differ in their texture, not in their colour."""
    rng = np.random.default_rng(0)
    for i in range(patients):
        folder = root / ("stripes" if i % 2 else "noise") / f"p{i}"
        folder.mkdir(parents=True)
        for c in range(count):
            pixels = rng.integers(60, 200, (32, 32, 3))
            if i % 2:
                pixels = np.sort(pixels, axis=0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"c{c}.png")
    return find_cells([root])


def trained(works: list[Work], config: FinetuneConfig = QUICK):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network, _ = load_trainable(ENCODERS[DEFAULT])
    aggregator = create_model("abmil_gated", in_dim=1280, num_classes=2, width=16, attention_dim=8, standardize=True)
    return finetune(
        network, aggregator, INFO, works[:4] + works[6:], works[4:6], ("noise", "stripes"), config, shaping=Shaping()
    )


@pytest.mark.parametrize("freeze", [False, True])
def test_only_what_should_change_does(tmp_path: Path, freeze: bool) -> None:
    before, _ = load_trainable(ENCODERS[DEFAULT])
    works = cells(tmp_path)
    tuned = trained(works, FinetuneConfig(**{**vars(QUICK), "freeze": freeze}))
    assert len(tuned.history) == 3
    changed = {
        name for (name, a), b in zip(before.state_dict().items(), tuned.network.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    }  # fmt: skip
    if freeze:
        assert not changed
    else:
        parameters = {name for name, _ in before.named_parameters()}
        assert changed == parameters  # every weight, the first convolution's too, and no statistic of a batch
    assert tuned.history[tuned.best_epoch]["val_loss"] == min(row["val_loss"] for row in tuned.history)
    standardize = tuned.aggregator.standardize
    assert (
        standardize is not None and (standardize.std > 0).all() and not torch.allclose(standardize.mean, torch.zeros(1))
    )


def test_it_learns_and_the_same_seed_gives_the_same(tmp_path: Path) -> None:
    works = cells(tmp_path)
    config = FinetuneConfig(**{**vars(QUICK), "epochs": 6})
    first, second = trained(works, config), trained(works, config)
    assert [r["train_loss"] for r in first.history] == [r["train_loss"] for r in second.history]
    said = logits_of(first, works, INFO, shaping=Shaping())
    np.testing.assert_array_equal(said, logits_of(second, works, INFO, shaping=Shaping()))
    truth = [("noise", "stripes").index(str(w.label)) for w in works]
    assert said.argmax(axis=1).tolist() == truth


def test_the_checkpoint_is_what_extract_loads(tmp_path: Path) -> None:
    tuned = trained(cells(tmp_path / "cells"))
    torch.save(checkpoint_of(tuned.network, published()), tmp_path / "e.pth")
    loaded = load_encoder(weights=tmp_path / "e.pth", input_size=32)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    mine = Encoder(INFO, tuned.network.eval(), "").encode(images)
    torch.testing.assert_close(loaded.encode(images), mine, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(load_encoder(input_size=32).encode(images), mine, rtol=1e-2, atol=1e-2)


def test_every_epoch_draws_other_cells_and_validation_the_same(tmp_path: Path) -> None:
    works = cells(tmp_path, 2, 12)
    encoder = Encoder(INFO, nn.Identity(), "")
    bags = CellBags(works, [0, 1], encoder, Shaping(), 4, 0, 2)
    one, again, other = (bags[0, draw][0] for draw in (0, 0, 1))
    assert one.shape == (4, 32, 32, 3) and torch.equal(one, again) and not torch.equal(one, other)
    order = Draws(9, 0)
    epochs = [list(order), list(order)]
    assert epochs[0] != epochs[1] and {d for _, d in epochs[1]} == {1}
    assert list(Draws(3, None)) == list(Draws(3, None)) == [(0, 0), (1, 0), (2, 0)]
    bags.close()


def test_cells_that_cannot_be_read_are_replaced(tmp_path: Path) -> None:
    (work, _) = cells(tmp_path, 2, 5)
    for path in work.files[:3]:
        path.write_bytes(b"x")
    encoder = Encoder(INFO, nn.Identity(), "")
    bags = CellBags([work], [0], encoder, Shaping(), 2, 0, 1)
    assert bags[0, 0][0].shape == (2, 32, 32, 3)
    for path in work.files:
        path.write_bytes(b"x")
    with pytest.raises(ReadError, match="bag 'p0': none of its cells can be read"):
        bags[0, 0]
    bags.close()


def test_turned_cells_are_the_same_pixels() -> None:
    pixels = torch.arange(40 * 3 * 3 * 1).view(40, 3, 3, 1).to(torch.uint8)
    made = turned(pixels)
    for a, b in zip(pixels, made, strict=True):
        ways = [torch.rot90(a, k, (0, 1)) for k in range(4)]
        assert any(torch.equal(b, w) or torch.equal(b, w.flip(1)) for w in ways)
    assert sum(torch.equal(a, b) for a, b in zip(pixels, made, strict=True)) < 20


def test_the_verb_goes_on_and_refuses_another_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells(tmp_path / "cells")
    words = [
        "finetune",
        tmp_path / "cells",
        "-o",
        tmp_path / "o",
        "--input-size",
        "32",
        "--epochs",
        "1",
        "--folds",
        "2",
    ]
    words += ["--model", "abmil", "--options.width", "8", "--cells-per-step", "4"]
    assert run(*words) == 0
    assert "over 2 folds; pooled macro F1" in " ".join(capsys.readouterr().out.split())
    rows = [r for k in (0, 1) for r in read_csv(tmp_path / "o" / f"fold{k}" / "predictions.csv")]
    assert sorted(r["bag_id"] for r in rows) == [f"p{i}" for i in range(8)]
    first = (tmp_path / "o" / "fold0" / "encoder.pth").stat().st_mtime_ns
    (tmp_path / "o" / "fold1" / "metrics.json").unlink()
    assert run(*words) == 0
    assert (tmp_path / "o" / "fold0" / "encoder.pth").stat().st_mtime_ns == first
    assert "fold1 epoch 1/1" in capsys.readouterr().err
    assert run(*words, "--lr", "0.1") == 1
    assert "was begun with lr 0.0003, not 0.1" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain" / "a.png")
    assert run("finetune", tmp_path / "plain", "-o", tmp_path / "p") == 1
    assert "no cells have a class" in capsys.readouterr().err and not (tmp_path / "p").exists()
    for wrong in (("--options.widht", "8"), ("--input-size", "4"), ("--folds", "9")):
        assert run(*words[:3], tmp_path / "q", *wrong) == 1 and not (tmp_path / "q").exists()
    assert run(*words[:3], tmp_path / "cells", *words[4:]) == 1
    assert "is none of ours" in " ".join(capsys.readouterr().err.split())


def test_recipes_that_are_none() -> None:
    with pytest.raises(ConfigError, match="cells=0: must be at least 1"):
        FinetuneConfig(cells=0)
    with pytest.raises(ConfigError, match="encoder_lr=0: must be above 0"):
        FinetuneConfig(encoder_lr=0)
