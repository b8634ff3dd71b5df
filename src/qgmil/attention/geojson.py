"""Instance scores for QuPath: tiles as detections with measurements, high regions as annotations (RFC 7946)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgmil.attention.overlay import Overlay, rgb
from qgmil.errors import ConfigError
from qgmil.files import atomic_path

#: Of names in this file; any other UUID would do, but it must not change.
NAMESPACE = uuid.UUID("9f6c3f4e-5a0a-4c0e-8a53-3c7f6c1d2b11")
HIGH_COLOUR = [213, 94, 0]


def write_geojson(overlay: Overlay, path: Path, *, bag_id: str, percentile: float = 90.0) -> int:
    """Write a FeatureCollection that QuPath opens (File > Import objects); returns the number of features.

    Each tile is a ``detection`` with the measurements of the score's name, its percentile in the bag and its rank (1 is
    the highest). Tiles at or above the percentile, joined where they touch, are ``annotation`` polygons with their
    number of tiles, mean score and share of the bag's mass (where the scores are a mass). Coordinates are level-0
    pixels, rings are closed, outer ones counterclockwise and holes clockwise by the shoelace sum of RFC 7946. Features
    go to disk one by one; their ids depend on bag, score and tile alone.

    Raises:
        ConfigError: a percentile outside 0 to 100.
    """
    if not 0 <= percentile <= 100:
        raise ConfigError(f"percentile must lie between 0 and 100, got {percentile!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        for feature in (*regions(overlay, bag_id, percentile), *_tiles(overlay, bag_id)):
            file.write((",\n" if count else "") + json.dumps(feature, allow_nan=False))
            count += 1
        file.write("\n]}\n")
    return count


def ranks(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rank of each score (1 is the highest, ties by row) and its percentile: the share of scores not above it."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    ordered = np.sort(values)
    return rank, 100 * np.searchsorted(ordered, values, side="right") / len(values)


def regions(overlay: Overlay, bag_id: str, percentile: float) -> list[dict[str, Any]]:
    """Annotations of the tiles at or above a percentile, one a connected region, the largest mass first."""
    from shapely import STRtree, box, unary_union
    from shapely.geometry.polygon import orient

    values = overlay.scores.values
    chosen = np.flatnonzero(values >= np.percentile(values, percentile))
    edge = overlay.tile_size
    boxes = [box(x, y, x + edge, y + edge) for x, y in overlay.tiles[chosen]]
    joined = unary_union(boxes)
    polygons = [orient(p) for p in getattr(joined, "geoms", [joined])]
    tree = STRtree([b.centroid for b in boxes])
    found = []
    for polygon in polygons:
        inside = chosen[tree.query(polygon, predicate="intersects")]
        found.append((polygon, inside, float(values[inside].sum())))
    found.sort(key=lambda item: -item[2])
    name = f"high {overlay.scores.name}"
    features = []
    for number, (polygon, inside, mass) in enumerate(found):
        measured = {"tiles": len(inside), f"mean {overlay.scores.name}": float(values[inside].mean())}
        if overlay.scores.is_mass:
            measured["share of the bag's mass"] = mass
        rings = [polygon.exterior, *polygon.interiors]
        features.append(
            _feature(
                f"{bag_id}\0{overlay.scores.name}\0region {percentile} {number}",
                [[[float(x), float(y)] for x, y in ring.coords] for ring in rings],
                "annotation",
                name,
                HIGH_COLOUR,
                measured,
            )
        )
    return features


def _tiles(overlay: Overlay, bag_id: str) -> Iterator[dict[str, Any]]:
    values, edge, name = overlay.scores.values, overlay.tile_size, overlay.scores.name
    rank, percentile = ranks(values)
    colours = rgb(values, (overlay.low, overlay.high), overlay.colours)
    for i, (x, y) in enumerate(overlay.tiles.tolist()):
        ring = [[x, y], [x + edge, y], [x + edge, y + edge], [x, y + edge], [x, y]]
        measured = {name: float(values[i]), f"{name} percentile": float(percentile[i]), f"{name} rank": int(rank[i])}
        yield _feature(f"{bag_id}\0{name}\0tile {i}", [ring], "detection", "tile", colours[i].tolist(), measured)


def _feature(
    key: str, rings: list[list[list[float]]], kind: str, name: str, colour: list[int], measured: dict[str, Any]
) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(NAMESPACE, key)),
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {
            "objectType": kind,
            "classification": {"name": name, "color": colour},
            "isLocked": False,
            "measurements": measured,
        },
    }
