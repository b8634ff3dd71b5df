"""Coordinates of tiles that another tool found: TRIDENT's and CLAM's patches, or a CSV of x and y."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qgmil.bags.readers import clam, trident
from qgmil.bags.readers.base import as_coords, check_path, listing
from qgmil.bags.readers.h5 import find, open_h5, read_array
from qgmil.bags.tabular import read_text_table
from qgmil.errors import ReadError
from qgmil.images.slides import Slide, check_inside

NAMES = ("{}_patches.h5", "{}.h5", "{}.csv")


def read_coordinates(folder: Path, name: str, edge: float, slide: Slide) -> NDArray[np.int64]:
    """Corners ``(N, 2)`` of a slide's tiles in level-0 pixels.

    Looked for are ``NAME_patches.h5`` (TRIDENT), ``NAME.h5`` (CLAM's patches, or a file of features) and ``NAME.csv``
    with columns x and y.

    Args:
        folder: where the files lie.
        name: of the slide.
        edge: of a tile, as it was asked for.
        slide: on which they must lie.

    Raises:
        ReadError: no such file, no coordinates in it, or tiles of another size than was asked for.
        BagError: they do not lie on the slide.
    """
    path = next((p for p in (folder / n.format(name) for n in NAMES) if p.is_file()), None)
    if path is None:
        looked = listing(n.format(name) for n in NAMES)
        raise ReadError(f"{folder}: has no coordinates of {name!r}; looked for {looked}")
    found, own = _from_csv(path) if path.suffix == ".csv" else _from_h5(path)
    if own is not None and abs(own - edge) > max(1.0, 0.01 * edge):
        raise ReadError(
            f"{path}: has tiles of {own:g} level-0 pixels, and what was asked for are tiles of {edge:g}; for those ask "
            f"for {own / edge:g} times the --mpp, or as many times the --tile"
        )
    if not len(found):
        raise ReadError(f"{path}: holds no tiles")
    check_inside(name, found.astype(np.float64), edge, slide)
    return found


def _from_h5(path: Path) -> tuple[NDArray[np.int64], float | None]:
    check_path(path)
    with open_h5(path) as file:
        stored = find(path, file, "coords")
        if stored is None:
            raise ReadError(f"{path}: has no coords")
        trident.unit(path, file, stored)  # refuses what counts in microns
        array = read_array(path, stored)
        coords = as_coords(path, array, len(array))
        edge = trident.tile_size(path, stored)
    return coords.long().numpy(), edge if edge is not None else clam.tile_size(path)


def _from_csv(path: Path) -> tuple[NDArray[np.int64], float | None]:
    table = read_text_table(path)
    if not {"x", "y"} <= set(table.columns):
        raise ReadError(f"{path}: has columns {listing(table.columns)}; expected x and y, in level-0 pixels")
    rows = []
    for line, cells in table.rows:
        try:
            rows.append(np.array([round(float(cells["x"])), round(float(cells["y"]))], dtype=np.int64))
        except (ValueError, OverflowError):
            raise ReadError(
                f"{path}: {table.word} {line}: x {cells['x']!r} and y {cells['y']!r} must be numbers"
            ) from None
    return np.array(rows, dtype=np.int64).reshape(-1, 2), None  # of no rows as well
