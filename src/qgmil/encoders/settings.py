"""What decides the features of a folder, and the file in it that says so."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qgmil.bags.made import EXTRACTED
from qgmil.encoders.base import Encoder
from qgmil.encoders.pictures import Shaping
from qgmil.errors import ConfigError, ReadError, RunError
from qgmil.files import write_json
from qgmil.images.tiling import Grid


@dataclass(frozen=True)
class TissueSearch:
    """How tissue is looked for: arguments of `find_tissue`."""

    pens: str = "drop"
    min_area: float = 0.02
    max_hole: float = 0.02
    everything: bool = False

    def __post_init__(self) -> None:
        for name in ("min_area", "max_hole"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: is an area in mm², not below 0")


@dataclass(frozen=True)
class Extraction:
    """How bags are made of images.

    Args:
        encoder: as it was asked for (`find_encoder`).
        weights: SHA-256 of its weights.
        input_size: edge of the square that it sees.
        resize: how pictures become that square.
        grid: of slides; None for cells.
        tissue: of slides; None for cells, and where another tool found the tiles.
        shaping: of cells; None for slides.
    """

    encoder: str
    weights: str
    input_size: int
    resize: str
    grid: Grid | None = None
    tissue: TissueSearch | None = None
    shaping: Shaping | None = None

    @property
    def kind(self) -> str:
        """ "slides" or "cells"."""
        return "cells" if self.grid is None else "slides"

    def as_dict(self) -> dict[str, Any]:
        """For the file."""
        values = {"kind": self.kind, **asdict(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: Path) -> Extraction:
        """What the file says.

        Raises:
            ReadError: it is none of ours.
        """
        try:
            parts = {k: v for k, v in values.items() if k != "kind"}
            for name, kind in (("grid", Grid), ("tissue", TissueSearch), ("shaping", Shaping)):
                if name in parts:
                    parts[name] = kind(**parts[name])
            return cls(**parts)
        except (TypeError, ConfigError) as error:
            raise ReadError(f"{source}: does not say how features were made ({error})") from None


def settings(
    encoder: Encoder, asked: str, *, grid: Grid | None = None, tissue: TissueSearch | None = None,
    shaping: Shaping | None = None,
) -> Extraction:  # fmt: skip
    """The settings of an extraction with an encoder that is loaded, by the name that it was asked for."""
    return Extraction(asked, encoder.weights, encoder.info.input_size, encoder.resize, grid, tissue, shaping)


def read_settings(path: Path) -> Extraction:
    """Read `EXTRACTED`.

    Raises:
        ReadError: broken, or none of ours.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path}: does not say how features were made ({error})") from None
    if not isinstance(values, dict):
        raise ReadError(f"{path}: does not say how features were made")
    return Extraction.from_dict(values, path)


def claim(output: Path, folder: Path, made: Extraction) -> None:
    """Note in the output and in its folder of features how they are made, or see that it is the same as before.

    Raises:
        RunError: features of other settings lie there, the first difference is named; or a table of somebody else's.
    """
    path = output / EXTRACTED
    if not path.is_file() and (output / "bags.csv").exists():
        raise RunError(f"{output}: has a bags.csv that is not from qgmil extract; name another folder")
    if path.is_file() and any(output.glob("features_*/*.h5")):
        before, now = read_settings(path).as_dict(), made.as_dict()
        for name in [n for n in {**before, **now} if n != "encoder"]:  # a file may have moved: its hash counts
            if before.get(name) != now.get(name):
                raise RunError(
                    f"{output}: holds features with {name} {before.get(name)}, not {now.get(name)}: name another "
                    "folder, or ask for the same settings to go on"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    for place in (output, folder):
        write_json(place / EXTRACTED, made.as_dict())
