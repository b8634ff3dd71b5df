"""Finding things by the names that tables give them: "slide.svs" in a table is "slide.h5" in a folder.

A name matches as it is written, or without the ending of a slide, image or feature file. It never matches by a prefix:
``TCGA-A1`` is not ``TCGA-A1.F6E9``. Letters with marks are the same however they are encoded (NFC), for file systems
and spreadsheets write them differently.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Generic, TypeVar

# Endings that are no part of a name.
SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".isyntax", ".qptiff", ".dcm")
IMAGES = (".ome", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
FEATURES = (".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz", ".safetensors", ".zarr")
ENDINGS = frozenset((*SLIDES, *IMAGES, *FEATURES))
T = TypeVar("T")


def bare(name: str) -> str:
    """A name without the endings of slides, images and feature files; other dots belong to it."""
    while True:
        stem, _, ending = name.rpartition(".")
        if not stem or stem.endswith("/") or f".{ending.lower()}" not in ENDINGS:
            return name
        name = stem


def composed(name: str) -> str:
    """A name in the one encoding (NFC) in which names are compared."""
    return unicodedata.normalize("NFC", name)


def climbs(name: str) -> bool:
    """Whether a table's name of a file leads out of the folder it is looked up in."""
    path = name.replace("\\", "/")
    return path.startswith("/") or path[1:3] == ":/" or ".." in path.split("/")


class NameIndex(Generic[T]):
    """Things by name; a thing may have several names (with its subfolder and without)."""

    def __init__(self, named: Iterable[tuple[str, T]]) -> None:
        self._exact: dict[str, dict[T, None]] = {}  # ordered sets
        self._loose: dict[str, dict[T, None]] = {}
        for given, thing in named:
            name = composed(given)
            for names, key in ((self._exact, name), (self._loose, bare(name))):
                names.setdefault(key, {})[thing] = None

    def find(self, name: str) -> list[T]:
        """What is meant: nothing, one, or several (the name is ambiguous).

        The name as written comes first, then without endings, then without the folders before it.
        """
        path = composed(name).replace("\\", "/").removeprefix("./")
        for text in dict.fromkeys((path, path.rpartition("/")[2])):
            found = self._exact.get(text) or self._loose.get(bare(text))
            if found:
                return list(found)
        return []
