"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from pydantic import BaseModel

Device = Literal["auto", "cpu", "cuda", "mps"] | None
Positive = Annotated[int | None, Parameter(validator=Number(gte=1))]


def given(*sections: BaseModel | None) -> dict[str, Any]:
    """The options that were typed, so that a file's or a run's values are not overwritten by defaults."""
    values: dict[str, Any] = {}
    for section in sections:
        if section is not None:
            values |= {name: getattr(section, name) for name in section.model_fields_set}
    return values
