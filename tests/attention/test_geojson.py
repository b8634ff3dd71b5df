"""GeoJSON: valid by RFC 7946, what QuPath reads, and the same regions as the tiles that made them."""

from __future__ import annotations

import json
import tracemalloc
import uuid
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import shape

from qgmil.attention.geojson import ranks, regions, write_geojson
from qgmil.attention.overlay import Overlay, make_overlay, place_tiles
from qgmil.attention.scores import InstanceScores
from qgmil.bags.bag import Bag
from qgmil.errors import ConfigError


def overlay(coords: list[tuple[int, int]], values: list[float], edge: float = 10.0) -> Overlay:
    bag = Bag(torch.zeros(len(coords), 2), bag_id="s", coords=torch.tensor(coords), coord_unit="px", tile_size=edge)
    return make_overlay(bag, InstanceScores(np.array(values), "attention", "attention", True), size=64)


def shoelace(ring: list[list[float]]) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) / 2


def check_valid(collection: dict) -> None:
    """Section 3 of RFC 7946, for polygons."""
    assert collection["type"] == "FeatureCollection"
    ids = [f["id"] for f in collection["features"]]
    assert len(set(ids)) == len(ids)
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        geometry = feature["geometry"]
        assert geometry["type"] == "Polygon"
        for number, ring in enumerate(geometry["coordinates"]):
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert all(len(point) == 2 for point in ring)
            assert (shoelace(ring) > 0) == (number == 0)  # outer ring counterclockwise, holes clockwise
        assert shape(geometry).is_valid
        assert feature["properties"]["objectType"] in ("detection", "annotation")
        kind = feature["properties"]["classification"]
        assert isinstance(kind["name"], str)
        assert all(isinstance(c, int) and 0 <= c <= 255 for c in kind["color"]) and len(kind["color"]) == 3
        assert all(isinstance(v, int | float) for v in feature["properties"]["measurements"].values())


RING = [(x, y) for x in (0, 10, 20) for y in (0, 10, 20) if (x, y) != (10, 10)]


def test_tiles_and_a_region_with_a_hole(tmp_path: Path) -> None:
    coords = [*RING, (10, 10), (100, 0)]
    values = [0.1] * 8 + [0.01, 0.19]
    made = overlay(coords, values)
    count = write_geojson(made, tmp_path / "new" / "s.geojson", bag_id="s", percentile=10)
    collection = json.loads((tmp_path / "new" / "s.geojson").read_text())
    check_valid(collection)
    assert count == len(collection["features"]) == 10 + 2
    around, alone = collection["features"][:2]
    assert [len(around["geometry"]["coordinates"]), len(alone["geometry"]["coordinates"])] == [2, 1]
    assert shape(around["geometry"]).area == 800
    assert around["properties"]["measurements"]["tiles"] == 8
    assert around["properties"]["measurements"]["share of the bag's mass"] == pytest.approx(0.8)
    tile = collection["features"][2 + 9]
    assert tile["properties"]["objectType"] == "detection"
    assert tile["properties"]["measurements"] == {"attention": 0.19, "attention percentile": 100.0, "attention rank": 1}
    assert tile["geometry"]["coordinates"] == [[[100, 0], [110, 0], [110, 10], [100, 10], [100, 0]]]


def test_ids_are_the_same_every_time(tmp_path: Path) -> None:
    made = overlay([(0, 0), (50, 0)], [0.4, 0.6])
    for name in ("a", "b"):
        write_geojson(made, tmp_path / name, bag_id="s")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_geojson(made, tmp_path / "c", bag_id="other")
    ids = [{f["id"] for f in json.loads((tmp_path / n).read_text())["features"]} for n in "ac"]
    assert not ids[0] & ids[1]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25, unique=True))
def test_regions_cover_the_high_tiles_and_nothing_else(cells: list[tuple[int, int]]) -> None:
    values = [float((3 * x + 5 * y) % 7) for x, y in cells]
    made = overlay([(10 * x, 10 * y) for x, y in cells], values)
    high = [c for c, v in zip(cells, values, strict=True) if v >= np.percentile(values, 50)]
    found = regions(made, "s", 50)
    check_valid({"type": "FeatureCollection", "features": found})
    assert sum(shape(f["geometry"]).area for f in found) == pytest.approx(100 * len(high))
    assert sum(f["properties"]["measurements"]["tiles"] for f in found) == len(high)


@given(
    st.floats(0.1, 2.0),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(2, 12),
    st.integers(0, 400),
    st.floats(20, 300),
)
def test_tiles_that_touch_are_one_region_whatever_the_pixel_size(
    mpp: float, kind: torch.dtype, side: int, first: int, edge: float
) -> None:
    """Microns over the pixel size are no whole numbers: rounding must not part neighbours, nor join others."""
    steps = [(first + x, y) for x in range(side) for y in range(side)] + [(first + side + 1, 0)]
    coords = (torch.tensor(steps, dtype=torch.float64) * edge).to(kind)
    bag = Bag(torch.zeros(len(steps), 2), bag_id="s", coords=coords, coord_unit="um", tile_size=edge, mpp=mpp)
    values = InstanceScores(np.full(len(steps), 1 / len(steps)), "attention", "attention", True)
    found = regions(make_overlay(place_tiles(bag), values, size=64), "s", 0)
    check_valid({"type": "FeatureCollection", "features": found})
    assert [f["properties"]["measurements"]["tiles"] for f in found] == [side * side, 1]
    assert [len(f["geometry"]["coordinates"][0]) for f in found] == [5, 5]  # squares, without steps at their seams


def test_many_tiles_are_never_all_in_memory(tmp_path: Path) -> None:
    side = 120
    values = np.random.default_rng(0).random(side * side)
    made = overlay([(10 * x, 10 * y) for x in range(side) for y in range(side)], values.tolist())
    tracemalloc.start()
    try:
        write_geojson(made, tmp_path / "s.geojson", bag_id="s", percentile=99.9)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "s.geojson").stat().st_size > 5e6
    assert most < 4e6  # the tiles as features are 30 MB
    assert len(json.loads((tmp_path / "s.geojson").read_text())["features"]) >= side * side


def test_ranks_and_percentiles_with_ties() -> None:
    rank, percentile = ranks(np.array([0.2, 0.5, 0.2, 0.1]))
    assert rank.tolist() == [2, 1, 3, 4]
    assert percentile.tolist() == [75.0, 100.0, 75.0, 25.0]


def test_a_percentile_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="percentile"):
        write_geojson(overlay([(0, 0)], [1.0]), tmp_path / "x", bag_id="s", percentile=101)
    assert not (tmp_path / "x").exists()
