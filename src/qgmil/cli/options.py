"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from pydantic import BaseModel, ConfigDict, Field

from qgmil.errors import RunError

Device = Literal["auto", "cpu", "cuda", "mps"] | None
Positive = Annotated[int | None, Parameter(validator=Number(gte=1))]


class Asking(BaseModel):
    """Which models of a run are asked, and where they run."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    score: str = Field("attention", description="attention, rollout, gradient, or class:NAME.")
    include_seen: Annotated[bool, Parameter(negative=())] = Field(
        False, description="Also ask models that were trained on the bag."
    )
    new_cohort: Annotated[bool, Parameter(negative=())] = Field(
        False, description="Bags and patients named as in training are others."
    )
    device: Device = Field(None, description="Where to run. Default: as the run was configured.")


class Placing(BaseModel):
    """Where tiles lie, for files that do not say it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tile_size: float | None = Field(
        None,
        description="Edge of a tile in the unit of the coordinates, where the file does not know it. Of a grid: "
        "level-0 pixels from one column to the next.",
    )
    coord_unit: Literal["px", "um", "grid"] | None = Field(
        None, description="Unit of the coordinates, where the file does not know it."
    )
    mpp: float | None = Field(None, description="Microns per level-0 pixel, where neither file nor slide knows it.")


def flat(group: str) -> Parameter:
    """A section whose fields are options of their own, under a heading in the help."""
    return Parameter(name="*", group=group)


def check_new(*paths: Path | None, overwrite: bool) -> None:
    """Nothing of the user's is replaced unless asked.

    Raises:
        RunError: a file that is there already, or a folder.
    """
    for path in paths:
        if path is not None and path.is_dir():
            raise RunError(f"{path} is a folder: give the name of a file")
        if path is not None and path.exists() and not overwrite:
            raise RunError(f"{path} exists already: choose another name, or --overwrite")


def given(*sections: BaseModel | None) -> dict[str, Any]:
    """The options that were typed, so that a file's or a run's values are not overwritten by defaults."""
    values: dict[str, Any] = {}
    for section in sections:
        if section is not None:
            values |= {name: getattr(section, name) for name in section.model_fields_set}
    return values
