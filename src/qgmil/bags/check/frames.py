"""What goes through the pipes between a check and the processes that read its files: JSON and arrays, never pickles.

A frame is eight bytes of length and a safetensors archive: its "json" holds everything but the arrays.
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import load, save

LENGTH = 8
JSON = "json"


def send(pipe: BinaryIO, values: dict[str, Any]) -> None:
    """Write one frame: arrays as arrays, the rest as JSON."""
    arrays = {name: np.ascontiguousarray(v) for name, v in values.items() if isinstance(v, np.ndarray)}
    text = json.dumps({name: v for name, v in values.items() if name not in arrays}).encode()
    data = save({**arrays, JSON: np.frombuffer(text, dtype=np.uint8)})
    pipe.write(len(data).to_bytes(LENGTH, "big") + data)
    pipe.flush()


def receive(pipe: BinaryIO) -> dict[str, Any] | None:
    """Read one frame; None at the end of the pipe, or where it breaks off in the middle."""
    head = pipe.read(LENGTH)
    if len(head) < LENGTH:
        return None
    size = int.from_bytes(head, "big")
    data = pipe.read(size)
    if len(data) < size:
        return None
    arrays = load(data)
    rest = json.loads(arrays.pop(JSON).tobytes())
    return {**arrays, **rest}
