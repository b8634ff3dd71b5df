"""What a store's folder holds, and the rules that its files must pass before anything is believed.

    store.json            the marker, written last: type, counts, size and checksum of every file, provenance
    features.bin          (T, D) of all bags end to end, row-major, nothing before it, so it begins on a page
    offsets.bin           (B + 1,) int64: bag b is rows offsets[b] to offsets[b + 1]
    index.json            ids, labels, patients and other columns of the bags (`qgmil.bags.store.index`)
    coords.bin            (., 2) int64 or float64, of the bags that have coordinates, end to end
    instance_labels.bin   (.,) int64, of the bags that have them
    instance_ids.bin      one JSON list of names a bag that has them
    checksums.bin         (B, 16) uint8: BLAKE2b of each bag's rows of features.bin
    sources.json          the files that were packed, with size and time of change

All numbers are little-endian. Nothing is pickled, compressed or linked.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from qgmil.bags.readers.base import guarded, listing
from qgmil.errors import ReadError

FORMAT, VERSION = "qgmil-store", 1
HEADER, FEATURES, OFFSETS, INDEX, CHECKSUMS = "store.json", "features.bin", "offsets.bin", "index.json", "checksums.bin"
COORDS, INSTANCE_LABELS, INSTANCE_IDS = "coords.bin", "instance_labels.bin", "instance_ids.bin"
SOURCES = "sources.json"
MEMBERS = (FEATURES, OFFSETS, INDEX, COORDS, INSTANCE_LABELS, INSTANCE_IDS, CHECKSUMS, SOURCES)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
DIGEST_BYTES = 16
MAX_HEADER = 2**20  # bytes; a real one has a few thousand
MAX_INDEX = 2**28  # bytes that opening may read at most: a million bags
AGAIN = "copy the store again, or pack it again"


@dataclass(frozen=True)
class Member:
    """One file of a store: its size in bytes and its BLAKE2b (None for the features, which have one a bag)."""

    size: int
    digest: str | None


@dataclass(frozen=True)
class Header:
    """What ``store.json`` says.

    Args:
        dtype: type of the features: float16, bfloat16 or float32.
        bags, instances, width: counts; the features are ``(instances, width)``.
        members: every other file of the store.
        packed: where it comes from, for people.
    """

    dtype: torch.dtype
    bags: int
    instances: int
    width: int
    members: dict[str, Member]
    packed: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of ``store.json``."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "dtype": dtype_name(self.dtype),
            "bags": self.bags,
            "instances": self.instances,
            "width": self.width,
            "files": {name: {"bytes": m.size, "blake2b": m.digest} for name, m in self.members.items()},
            "packed": self.packed,
        }

    @property
    def identity(self) -> str:
        """A name for what is in the store: equal for the same bags packed again, whenever and from wherever."""
        said = self.to_json()
        content = {**said, "packed": None, "files": {n: f for n, f in said["files"].items() if n != SOURCES}}
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """ "float16" for `torch.float16`."""
    return str(dtype).removeprefix("torch.")


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of a finished store (by its marker; nothing else is looked at)."""
    try:
        return (Path(path) / HEADER).is_file()
    except (OSError, ValueError):  # no permission, a zero byte
        return False


def store_identity(path: str | os.PathLike[str]) -> str:
    """`Header.identity` of a store.

    Raises:
        ReadError: no store, or a broken one.
    """
    return read_header(Path(path)).identity


def read_header(folder: Path) -> Header:
    """Read and check ``store.json``, and compare the size of every file with it.

    Raises:
        ReadError: broken, of another version, a file that is missing, cut short or a link, or claims that do not
            agree with each other.
    """
    path = folder / HEADER
    with guarded(path, "the header of a store"):
        said = json.loads(read_member(folder, HEADER, MAX_HEADER))
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            raise ReadError(f"{path}: is not the header of a store made by qgmil pack")
        if said.get("version") != VERSION:
            raise ReadError(
                f"{path}: the store has version {said.get('version')!r} and this qgmil reads version {VERSION}; "
                "pack it again, or use the qgmil that made it"
            )
        header = _checked_header(path, said)
    for name, member in header.members.items():
        with open_member(folder, name) as file:
            size = os.fstat(file.fileno()).st_size
        if size != member.size:
            raise ReadError(f"{folder / name}: has {size:,} bytes where {HEADER} says {member.size:,}; {AGAIN}")
    return header


def _checked_header(path: Path, said: dict[str, Any]) -> Header:
    if said.get("dtype") not in DTYPES:
        raise ReadError(f"{path}: dtype is {said.get('dtype')!r}; expected one of {listing(DTYPES)}")
    for name in ("bags", "instances", "width"):
        if type(said.get(name)) is not int or said[name] < 1:
            raise ReadError(f"{path}: {name} is {_short(said.get(name))}; expected a whole number of at least 1")
    files = said.get("files")
    if not isinstance(files, dict) or set(files) != set(MEMBERS):
        raise ReadError(f"{path}: files are {_short(files)}; expected {listing(MEMBERS)}")
    members = {}
    for name in MEMBERS:
        entry = files[name] if isinstance(files[name], dict) else {}
        size, digest = entry.get("bytes"), entry.get("blake2b")
        if type(size) is not int or size < 0 or not isinstance(digest, str | None):
            raise ReadError(f"{path}: files has {_short(files[name])} for {name!r}; expected bytes and blake2b")
        members[name] = Member(size, digest)
    packed = said.get("packed")
    dtype = DTYPES[said["dtype"]]
    header = Header(
        dtype, said["bags"], said["instances"], said["width"], members, packed if isinstance(packed, dict) else {}
    )
    expected = {
        FEATURES: header.instances * header.width * dtype.itemsize,
        OFFSETS: 8 * (header.bags + 1),
        CHECKSUMS: DIGEST_BYTES * header.bags,
    }
    for name, size in expected.items():
        if members[name].size != size:
            counts = ", ".join(f"{what} {_short(said[what])}" for what in ("bags", "instances", "width"))
            raise ReadError(
                f"{path}: says {counts} and {said['dtype']}, so {name} should have {_short(size)} bytes, but it is "
                f"given {_short(members[name].size)}; {AGAIN}"
            )
    return header


@contextmanager
def open_member(folder: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a file of a store for reading, without following a link and without waiting for a pipe.

    Raises:
        ReadError: missing, a link, or no regular file.
    """
    path = folder / name
    flags = sum(getattr(os, f, 0) for f in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ReadError(f"{path}: is a link; a store keeps its own files and follows none out of it") from error
        if error.errno == errno.ENOENT:
            raise ReadError(f"{path}: is missing from the store; {AGAIN}") from error
        raise ReadError(f"{path}: cannot be opened ({error.strerror or error}); check the permissions") from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ReadError(f"{path}: is not a regular file; {AGAIN}")
        yield file


def read_member(folder: Path, name: str, limit: int = MAX_INDEX) -> bytes:
    """The whole content of a small file of a store.

    Raises:
        ReadError: as `open_member`, or more than `limit` bytes.
    """
    with open_member(folder, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ReadError(f"{folder / name}: has {size:,} bytes, more than the {limit:,} that any store needs there")
        return file.read(limit)


def _short(value: object) -> str:
    try:
        text = f"{value:,}" if type(value) is int else repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    return text if len(text) <= 80 else text[:80] + "..."
