"""How a message names an option: as a flag for the command line, and as an argument for Python."""

from __future__ import annotations

import shlex

FLAGS = {"bag_id": "--id", "patient_id": "--patient"}


def option(name: str, value: str | None = "NAME") -> str:
    """An option set to a value, e.g. ``--patient case_id (patient_id='case_id' in Python)``; None is "none"."""
    python = f"{name}={[value]!r}" if name == "skip" else f"{name}={value!r}"
    return f"{flag(name)} {'none' if value is None else shlex.quote(value)} ({python} in Python)"


def flag(name: str) -> str:
    """The flag of an argument: ``patient_id`` is ``--patient``."""
    return FLAGS.get(name, "--" + name.replace("_", "-"))


def skip(kind: str) -> str:
    """How to leave bags of a kind ("empty", "missing", "unlabelled") out."""
    return option("skip", kind)
