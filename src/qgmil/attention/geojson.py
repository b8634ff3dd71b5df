"""Instance scores for QuPath: tiles as detections with measurements, high regions as annotations (RFC 7946)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from itertools import chain
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
        for feature in chain(regions(overlay, bag_id, percentile), _tiles(overlay, bag_id)):
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
    from shapely import STRtree, box, centroid, unary_union
    from shapely.geometry.polygon import orient

    values = overlay.scores.values
    chosen = np.flatnonzero(values >= np.percentile(values, percentile))
    near = overlay.tiles[chosen]
    left, right = _met(near[:, 0], near[:, 0] + overlay.tile_size)
    top, bottom = _met(near[:, 1], near[:, 1] + overlay.tile_size)
    boxes = box(left, top, right, bottom)
    joined = unary_union(boxes)
    polygons = [orient(p) for p in getattr(joined, "geoms", [joined])]
    tree = STRtree(centroid(boxes))
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
                [_corners([[float(x), float(y)] for x, y in ring.coords]) for ring in rings],
                "annotation",
                name,
                HIGH_COLOUR,
                measured,
            )
        )
    return features


def _met(near: NDArray[np.float64], far: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of tiles along one axis, those made one that differ by rounding alone.

    Coordinates that were microns are no whole pixels, and ``x + edge`` is then not quite the ``x`` of the next tile:
    without this, a crack of 1e-12 pixels would part them.
    """
    edges = np.concatenate([near, far])
    size = float((far - near).min())
    # files keep coordinates in float32 at times; a tenth of a tile is no rounding
    tolerance = min(size / 10, max(size * 1e-4, 4 * float(np.finfo(np.float32).eps) * float(np.abs(edges).max())))
    distinct, where = np.unique(edges, return_inverse=True)
    first = distinct[0]
    for i, value in enumerate(distinct):
        if value - first > tolerance:
            first = value
        distinct[i] = first
    joined = distinct[where]
    return joined[: len(near)], joined[len(near) :]


def _corners(ring: list[list[float]]) -> list[list[float]]:
    """A closed ring of level and upright sides without the points within a side, one of which each seam leaves."""
    points = ring[:-1]
    turns = [
        (x, y)
        for (x0, y0), (x, y), (x1, y1) in zip([points[-1], *points], points, [*points[1:], points[0]], strict=False)
        if not (x0 == x == x1 or y0 == y == y1)
    ]
    return [[x, y] for x, y in (*turns, turns[0])]


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
