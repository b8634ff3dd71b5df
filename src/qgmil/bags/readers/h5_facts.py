"""What `write_facts` notes beside features in HDF5 of the layout ``h5``, and how it is read again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from qgmil.bags.bag import COORD_UNITS, TILE_FACTS
from qgmil.bags.readers.base import listing, positive
from qgmil.bags.readers.h5_attributes import number, text
from qgmil.errors import ReadError

UNIT = "coord_unit"


def write_facts(features: h5py.Dataset, facts: Mapping[str, Any]) -> None:
    """Note the unit of the coordinates and what is known of the tiles (names as in `Bag`) as attributes."""
    for name in TILE_FACTS:
        if facts[name] is not None:
            features.attrs[name] = float(facts[name])
    if facts[UNIT] is not None:
        features.attrs[UNIT] = np.bytes_(facts[UNIT])


def read_facts(path: Path, features: h5py.Dataset) -> dict[str, Any]:
    """The same again, as arguments of `BagFile`; None where nothing is noted.

    Raises:
        ReadError: an unknown unit, or a length that is no positive number.
    """
    unit = text(path, features, UNIT)
    if unit not in COORD_UNITS:
        raise ReadError(f"{path}: {UNIT} is {unit[:40]!r}; it must be one of {listing(u for u in COORD_UNITS if u)}")
    return {UNIT: unit, **{name: positive(path, name, number(path, features, name)) for name in TILE_FACTS}}
