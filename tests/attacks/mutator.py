"""Damage files in ways that readers stumble over; the same seed does the same damage everywhere."""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence

HEAD = 4096  # bytes in which most of what a file says of itself stands
BOUNDS = (0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
TEXTS = (
    b"-1",
    b"0",
    b"1e999",
    b"nan",
    b"99999999999999999999",
    b"4294967296",
    b"../../x",
    b"\xff\xfe",
    b"\0",
    b'"',
    b";",
)


def mutate(raw: bytes, others: Sequence[bytes], seed: int) -> bytes:
    """A damaged copy of a file.

    Args:
        raw: a file.
        others: files of the same kind, to splice with.
    """
    draw = random.Random(seed)
    ways = [*WAYS, _spliced] if others else WAYS
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        way = draw.choice(ways)
        raw = _spliced(raw, draw, others) if way is _spliced else way(raw, draw)
    return raw


def _at(raw: bytes, draw: random.Random) -> int:
    """A position, in the head of the file as often as not."""
    return draw.randrange(min(len(raw), HEAD) if draw.random() < 0.5 else len(raw)) if raw else 0


def _flipped(raw: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if damaged:
            damaged[_at(raw, draw)] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _overwritten(raw: bytes, draw: random.Random) -> bytes:
    at, size = _at(raw, draw), draw.choice((1, 2, 4, 8, 16, 64, 512))
    fill = draw.choice((b"\0", b"\xff", b"A", None))
    return raw[:at] + (draw.randbytes(size) if fill is None else fill * size) + raw[at + size :]


def _number(raw: bytes, draw: random.Random) -> bytes:
    """Another value for a whole number: a boundary, the size of the file, or the old one and a little."""
    form = draw.choice(("<B", "<H", "<I", "<Q", ">I", ">Q"))
    size = struct.calcsize(form)
    if len(raw) < size:
        return raw
    at = min(_at(raw, draw) // size * size, len(raw) - size)
    old = struct.unpack_from(form, raw, at)[0]
    new = draw.choice((*BOUNDS, len(raw), len(raw) + 1, old + 1, old - 1, old * 2, draw.getrandbits(64)))
    return raw[:at] + struct.pack(form, new % 256**size) + raw[at + size :]


def _digits(raw: bytes, draw: random.Random) -> bytes:
    """Another text for a number that is written out."""
    found = list(re.finditer(rb"-?[0-9]+(\.[0-9]+)?", raw[:HEAD]))
    if not found:
        return _overwritten(raw, draw)
    where = draw.choice(found)
    new = draw.choice((*TEXTS, b"9" * draw.randrange(1, 40), b"1" * 5000))
    return raw[: where.start()] + new + raw[where.end() :]


def _cut(raw: bytes, draw: random.Random) -> bytes:
    return raw[: draw.randrange(len(raw))] if raw else raw


def _inserted(raw: bytes, draw: random.Random) -> bytes:
    at = _at(raw, draw)
    return raw[:at] + draw.choice((draw.randbytes(draw.choice((1, 3, 8, 100))), b"\0" * 64, *TEXTS)) + raw[at:]


def _removed(raw: bytes, draw: random.Random) -> bytes:
    at = _at(raw, draw)
    return raw[:at] + raw[at + draw.choice((1, 2, 8, 100)) :]


def _copied(raw: bytes, draw: random.Random) -> bytes:
    """A run of bytes from one place at another, so that pointers lead to what is of the wrong kind."""
    source, target, size = _at(raw, draw), _at(raw, draw), draw.choice((4, 8, 16, 64, 256))
    return raw[:target] + raw[source : source + size] + raw[target + size :]


def _spliced(raw: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    other = draw.choice(list(others))
    at, start = _at(raw, draw), _at(other, draw)
    end = raw[at + len(other) - start :] if draw.random() < 0.5 else b""
    return raw[:at] + other[start:] + end


def _inside(raw: bytes, draw: random.Random) -> bytes:
    """Damage in a member of a zip archive whose checksums are right, or in a stream that is still deflated."""
    if raw[:4] != b"PK\x03\x04":
        return _deflated(raw, draw)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = [(m.filename, archive.read(m), m.compress_type) for m in archive.infolist()]
    except Exception:  # damaged before
        return _flipped(raw, draw)
    if not members:
        return raw
    chosen = draw.randrange(len(members))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i, (name, content, kind) in enumerate(members):
            archive.writestr(name, draw.choice(PLAIN)(content, draw) if i == chosen else content, kind)
    return out.getvalue()


def _deflated(raw: bytes, draw: random.Random) -> bytes:
    starts = [m.start() for m in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", raw)]
    if not starts:
        return _number(raw, draw)
    at = draw.choice(starts)
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(raw[at:], 2**20)
    except zlib.error:
        return _number(raw, draw)
    packed = zlib.compress(draw.choice(PLAIN)(content, draw), draw.choice((1, 9)))
    return raw[:at] + packed + raw[at + len(packed) :]  # what follows stays where it is


Way = Callable[[bytes, random.Random], bytes]
PLAIN: tuple[Way, ...] = (_flipped, _overwritten, _number, _number, _digits, _cut, _inserted, _removed, _copied)
WAYS: tuple[Way, ...] = (*PLAIN, _inside, _inside)
