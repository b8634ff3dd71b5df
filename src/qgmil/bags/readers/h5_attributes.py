"""Attributes of HDF5 objects: numbers and short texts, from files that are not to be trusted.

A text of variable length is read as in `h5_text`: from its global heap, which is parsed here, because HDF5 believes
what a broken file says of its length. To find it, the headers of the object that carries the attribute are parsed.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import h5py
import numpy as np

from qgmil.bags.readers.h5_headers import ATTRIBUTE, SHARED, messages
from qgmil.bags.readers.h5_text import ELEMENT, Heaps
from qgmil.errors import ReadError

MAX_TEXT = 64 * 2**10  # no name of a unit, a kind or a class is longer
SIZES = struct.Struct("<HHH")  # of an attribute's name, type and shape


def number(path: Path, owner: h5py.Group | h5py.Dataset, name: str) -> float | None:
    """A number among the attributes. TRIDENT writes None as the text "None": a text is no number, whatever it says.

    Raises:
        ReadError: several numbers.
    """
    values = numbers(owner, name, 1)
    if values is None:
        if _is_number(owner, name):
            shape = owner.attrs.get_id(name).shape
            raise ReadError(
                f"{path}: the attribute {name} of {owner.name.strip('/') or 'the file'} has shape {shape}; "
                "expected one number"
            )
        return None
    return values[0]


def numbers(owner: h5py.Group | h5py.Dataset, name: str, most: int) -> tuple[float, ...] | None:
    """At least one and at most `most` numbers of an attribute; None where there is no such thing."""
    if not _is_number(owner, name) or not 0 < math.prod(owner.attrs.get_id(name).shape) <= most:
        return None
    return tuple(float(v) for v in np.asarray(owner.attrs[name]).ravel())


def text(path: Path, owner: h5py.Group | h5py.Dataset, name: str) -> str | None:
    """A text among the attributes; None where there is none, or it is stored in a way that is not read safely."""
    if name not in owner.attrs:
        return None
    attribute = owner.attrs.get_id(name)
    stored = attribute.get_type()
    if stored.get_class() != h5py.h5t.STRING or math.prod(attribute.shape) != 1:
        return None
    if not stored.is_variable_str():
        return _fixed(owner, name) if stored.get_size() <= MAX_TEXT else None
    base = owner.file.userblock_size
    with path.open("rb") as handle:
        for kind, flags, message in messages(handle, base, h5py.h5o.get_info(owner.id).addr):
            element = None if kind != ATTRIBUTE or flags & SHARED else _element(message, name.encode())
            if element is not None:
                return Heaps(path, handle, base).text(*element)
    return None  # many attributes lie in a structure of their own, which is not parsed


def _is_number(owner: h5py.Group | h5py.Dataset, name: str) -> bool:
    # The type alone: a text is not to be read (see above).
    return name in owner.attrs and owner.attrs.get_id(name).get_type().get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT)


def _fixed(owner: h5py.Group | h5py.Dataset, name: str) -> str:
    value = np.asarray(owner.attrs[name]).item()
    return value if isinstance(value, str) else bytes(value).rstrip(b"\0").decode()


def _element(message: bytes, name: bytes) -> tuple[int, int, int] | None:
    """Length, heap and index of the text that an attribute message of this name holds."""
    if len(message) < 2 + SIZES.size or message[0] not in (1, 2, 3) or (message[0] > 1 and message[1]):
        return None
    sizes = SIZES.unpack_from(message, 2)
    at = 2 + SIZES.size + (message[0] == 3)
    if message[at : at + sizes[0]].rstrip(b"\0") != name:
        return None
    at += sum(-(-s // 8) * 8 if message[0] == 1 else s for s in sizes)
    if len(message) < at + ELEMENT.size:
        return None
    length, address, index = ELEMENT.unpack_from(message, at)
    return length, address, index
