"""The contenders of benchmarks/encoding.py compute the same, so that their times can be compared."""

from __future__ import annotations

import json
from pathlib import Path

import encoding
import pytest
import torch
from PIL import Image

import images


def test_the_plain_loop_and_qgmil_give_the_same_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoding.encoding(most=3, rounds=1, json_to=tmp_path / "o.json")
    found = json.loads((tmp_path / "o.json").read_text())["sources"]
    assert len(found) == 2 and capsys.readouterr().out.count("3 pictures; plain ") == 2
    for line in found.values():
        assert line["pictures"] == 3 and line["largest_difference"] < 1e-3
        assert line["ratio"] == pytest.approx(line["qgmil"] / line["plain"]) and 0 <= line["reading"] <= 1


def test_figures_of_agreement() -> None:
    a = torch.eye(3)
    said = images.quantiles(images.cosine(a, torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 0]])))
    assert said["mean"] == pytest.approx((1 + 2**-0.5) / 3) and said["least"] == 0


def test_the_picture_of_the_page(tmp_path: Path) -> None:
    name = encoding.slide().stem
    Image.new("RGB", (200, 400), "red").save(tmp_path / f"{name}.jpg")
    Image.new("RGB", (300, 200), "blue").save(tmp_path / f"{name}.png")
    made = images.side_by_side(tmp_path, tmp_path, height=100)
    assert made.size == (50 + 30 + 150, 100)
    assert made.getpixel((25, 50))[0] > 240 and made.getpixel((200, 50)) == (0, 0, 255)
