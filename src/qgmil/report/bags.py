"""The part of the page that needs the bags themselves: maps, galleries and faithfulness."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from qgmil.analysis.figures import faithfulness_figure
from qgmil.analysis.measure import Plan
from qgmil.analysis.output import verdict_of
from qgmil.analysis.sources import RunSource
from qgmil.attention.concentration import concentration
from qgmil.attention.gallery import GalleryItem, gallery_items
from qgmil.attention.geojson import ranks
from qgmil.attention.overlay import Overlay, make_overlay, place_tiles
from qgmil.errors import QGMILError
from qgmil.images.instances import open_images
from qgmil.images.slides import Slide, open_slide
from qgmil.report.data import RunResult
from qgmil.training.explain import BagExplanation, explain_bag

#: Longer edge of a map on the page in pixels.
MAP_SIZE = 1400
SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Looks:
    """What the page shows of the bags, ready for the template, and what could not be shown, with its reason.

    `data` is what the viewers read: one entry a bag, None where it has no map.
    """

    bags: list[dict[str, Any]] = field(default_factory=list)
    data: list[dict[str, Any] | None] = field(default_factory=list)
    faithfulness: dict[str, Any] | None = None
    left_out: list[str] = field(default_factory=list)


def chosen_bags(result: RunResult, wrong: int = 2) -> dict[str, str]:
    """Bags worth a look, {bag id: why}: wrong and most sure, and of each class the one that is surest and right."""
    rows, probabilities, truth = result.predictions()
    by_bag: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_bag.setdefault(row["bag_id"], []).append(i)
    mean = {bag: probabilities[at].mean(axis=0) for bag, at in by_bag.items()}
    label = {bag: int(truth[at[0]]) for bag, at in by_bag.items()}
    surest = sorted(mean, key=lambda bag: -mean[bag].max())
    found: dict[str, str] = {}
    for bag in [b for b in surest if int(mean[b].argmax()) != label[b]][:wrong]:
        found[bag] = "Wrong, and among the surest of the wrong ones"
    for c, name in enumerate(result.classes):
        right = [b for b in surest if label[b] == c and int(mean[b].argmax()) == c]
        if right:
            found[right[0]] = f"The surest of class {name} that is right"
    return found


def look(
    source: RunSource,
    chosen: dict[str, str],
    *,
    images: Path | None = None,
    slides: Path | None = None,
    placing: dict[str, Any] | None = None,
    faithful: int = 50,
    on_bag: Callable[[int], None] | None = None,
) -> Looks:
    """Explain the chosen bags, and measure faithfulness on up to `faithful` bags, evenly spaced in their order."""
    made = Looks()
    for number, (bag_id, why) in enumerate(chosen.items()):
        said = explain_bag(source.run, source.bags, bag_id, **source.options)
        entry, data = bag_entry(said, why, images, slides, placing or {}, made.left_out)
        made.bags.append(entry)
        made.data.append(data)
        if on_bag is not None:
            on_bag(number + 1)
    if not faithful:
        return made
    plan = Plan(stability=False, layers=False)
    ids = source.bag_ids
    places = np.unique(np.linspace(0, len(ids) - 1, min(faithful, len(ids))).round().astype(int))
    records = []
    for number, place in enumerate(places):
        records.append(source.record(ids[place], plan))
        if on_bag is not None:
            on_bag(len(chosen) + number + 1)
    some = "" if len(places) == len(ids) else f" {len(places)} of {len(ids)} bags, evenly spaced."
    verdict = verdict_of(records)
    figure = io.BytesIO()
    faithfulness_figure({source.run.config.model: records}, title="").savefig(figure, format="png", dpi=130)
    faithfulness = {
        "verdicts": [f"{verdict}{some}"],
        "data": base64.b64encode(figure.getvalue()).decode("ascii"),
        "alt": "Probability of the predicted class as the most attended instances are removed, or alone kept, "
        "against random order.",
    }
    return replace(made, faithfulness=faithfulness)


def bag_entry(
    said: BagExplanation,
    why: str,
    images: Path | None,
    slides: Path | None,
    placing: dict[str, Any],
    left_out: list[str],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the template shows of one bag, and what its viewer reads."""
    bag, scores = said.bag, said.scores
    entry: dict[str, Any] = {
        "name": bag.bag_id,
        "title": said.headline,
        "why": why,
        "instances": len(bag),
        "top": f"{100 * concentration(scores.values, bag.bag_id)['top_10pct']:.0f} %",
    }
    data, slide = None, None
    placed = bag
    if bag.coords is not None:
        try:
            slide = _slide_of(slides, bag.bag_id)
            placed = place_tiles(bag, **{"mpp": None if slide is None else slide.mpp, **placing})
            overlay = make_overlay(placed, scores, slide, size=MAP_SIZE)
            entry["viewer"], data = viewer_entry(overlay, opacity=1.0 if slide is None else 0.5)
        except QGMILError as error:
            left_out.append(f"The map of {bag.bag_id}: {error}")
    try:
        pictures = images if images is not None else slide.path if slide is not None else None
        items = gallery_items(
            placed, scores, None if pictures is None else open_images(pictures_of(pictures, bag.bag_id), placed)
        )
        entry["gallery"] = [_gallery_entry(item) for item in items]
    except QGMILError as error:
        left_out.append(f"The gallery of {bag.bag_id}: {error}")
    return entry, data


def viewer_entry(overlay: Overlay, *, opacity: float = 0.5) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of a map for the template, and those for the viewer; the map begins with this opacity."""
    rank, _ = ranks(overlay.scores.values)
    ramp = (colormaps[overlay.colours](np.linspace(0, 1, 256))[None, :, :3] * 255).round().astype(np.uint8)
    entry = {
        "still": _url(overlay.blended(opacity), "JPEG"),
        "bar": _url(Image.fromarray(ramp).resize((256, 8)), "PNG"),
        "opacity": round(100 * opacity),
        "low": f"{overlay.low:.3g}",
        "high": f"{overlay.high:.3g}",
        "legend": f"{overlay.scores.description}; {overlay.range_name}",
    }
    data = {
        "base": _url(overlay.base, "JPEG"),
        "heat": _url(overlay.heat, "PNG"),
        "origin": list(overlay.origin),
        "scale": overlay.scale,
        "edge": overlay.tile_size,
        "opacity": opacity,
        "name": overlay.scores.name,
        "x": _floats(overlay.tiles[:, 0]),
        "y": _floats(overlay.tiles[:, 1]),
        "weights": _floats(overlay.scores.values),
        "ranks": _floats(rank),
    }
    return entry, data


def pictures_of(where: Path, bag_id: str) -> Path:
    """The tar, folder or file of one bag inside a folder of them, or what was given."""
    if where.is_dir():
        for name in (bag_id, f"{bag_id}.tar", f"{bag_id}.tar.gz", f"{bag_id}.tgz"):
            if (where / name).exists():
                return where / name
    return where


def _slide_of(slides: Path | None, bag_id: str) -> Slide | None:
    if slides is None:
        return None
    for suffix in SLIDE_SUFFIXES:
        for path in (slides / f"{bag_id}{suffix}", slides / f"{bag_id}{suffix.upper()}"):
            if path.is_file():
                return open_slide(path)
    return None


def _gallery_entry(item: GalleryItem) -> dict[str, Any]:
    name = item.instance_id if item.instance_id is not None else f"instance {item.row}"
    return {
        "picture": None if item.image is None else _url(item.image, "JPEG"),
        "alt": f"{name}, rank {item.rank}",
        "text": f"{item.rank}. {100 * item.weight:.2g} %, Σ {100 * item.cumulative:.3g} %"
        + ("" if item.problem is None else " (no picture)"),
        "sought": bool(item.truth),
    }


def _url(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _floats(values: NDArray[Any] | Sequence[float]) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode("ascii")
