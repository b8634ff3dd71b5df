"""What every reader shares: the `BagFile` it returns, and the rules that arrays from outside must pass."""

from __future__ import annotations

import errno
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from qgmil.bags import hints
from qgmil.errors import BagError, QGMILError, ReadError

MAX_EXPANSION = 500  # real features never compress this well; decompression bombs do
FREE_BYTES = 64 * 2**20  # below this, no file can hurt: not worth refusing
MAX_NAME = 200  # characters of a name in a message
FEATURE_NAMES = ("features", "feats")
KEPT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class EmptyBagError(BagError):
    """The file holds no instances (a slide without tissue, for instance)."""


class MissingFileError(ReadError):
    """The file is not there."""


class DeniedFileError(ReadError):
    """The file is there, but its permissions do not let it be read."""


class LockedFileError(ReadError):
    """The file is still being written: a `.lock` lies beside it."""


@dataclass(frozen=True, eq=False)
class BagFile:
    """What one feature file says, normalised.

    Args:
        features: ``(N, D)``, float16, bfloat16 or float32, N >= 1.
        coords: ``(N, 2)`` top-left corners (int64, or float64 where the file has fractions), or None.
        coord_unit: "px" for level-0 pixels, "um" for microns, "grid" for columns and rows of the grid of tiles, None
            where the file does not say (the numbers are then as they stand in it).
        tile_size: edge of a tile in the unit of the coordinates (level-0 pixels where there are none), where known.
        mpp: microns per level-0 pixel, where known.
        magnification: objective magnification at which the tiles were cut, where known.
        tile_mpp: microns per pixel of the tiles as the encoder saw them, where known.
        instance_labels: ``(N,)`` int64, or None.
        instance_ids: N names, or None.
    """

    features: Tensor
    coords: Tensor | None = None
    coord_unit: str | None = None
    tile_size: float | None = None
    mpp: float | None = None
    magnification: float | None = None
    tile_mpp: float | None = None
    instance_labels: Tensor | None = None
    instance_ids: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Reader:
    """One on-disk layout: made from a module of this package that has ``NAME``, ``SUFFIXES`` and ``read``.

    What else a module may have: ``recognises(path, file)`` tells layouts that share a suffix apart by content (`file`
    is the open HDF5 file, None for other suffixes); no two may claim one file, and a reader without it takes what
    none claims. ``shape(path, dataset)`` is the raw shape of the features without reading them. ``FOLDERS`` is True
    for a reader of folders. ``parts(path)`` lists the bags of a file that holds several, with their labels, and
    ``label(path, dataset)`` is the label that a layout keeps beside a bag's features: neither is ever a feature.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, str | None], BagFile]
    recognises: Callable[[Path, h5py.File | None], bool] | None = None
    shape: Callable[[Path, str | None], tuple[int, ...]] | None = None
    folders: bool = False
    parts: Callable[[Path], dict[str, str | None]] | None = None
    label: Callable[[Path, str | None], str | None] | None = None


@contextmanager
def guarded(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a library raises on a broken file into one `ReadError` that names the file."""
    try:
        yield
    except QGMILError:
        raise
    except MemoryError as error:
        raise ReadError(f"{path}: does not fit into memory ({what}): {error}") from error
    except Exception as error:  # the libraries below raise anything at all on hostile bytes
        raise ReadError(f"{path}: cannot be read as {what} ({_first_line(error)}); copy or make it again") from error


def check_path(path: Path, *, folders: bool = False) -> None:
    """Refuse what is no finished regular file, before any library opens it (a pipe would block for ever).

    Args:
        path: the file.
        folders: whether a folder will do as well.

    Raises:
        MissingFileError, LockedFileError, DeniedFileError, ReadError.
    """
    if "\0" in str(path):
        raise ReadError(f"{str(path)!r}: a path cannot contain a zero byte; correct the path")
    try:
        folder = folders and path.is_dir()
        if not folder:
            _check_regular(path)
        elif not os.access(path, os.R_OK | os.X_OK):
            raise _denied(path, "chmod u+rx")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise MissingFileError(
                f"{str(path)[:100]}...: no such file, the name is too long; correct the path (several files of one "
                f"bag are separated by ';'), or {hints.skip('missing')}"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _denied(path, "chmod u+rx, for every folder on the way") from error
        raise ReadError(f"{path}: cannot be opened ({error.strerror or error}); check the path") from error


def _denied(path: Path, remedy: str) -> DeniedFileError:
    return DeniedFileError(f"{path}: there is no permission to read it; ask its owner for that ({remedy})")


def _check_regular(path: Path) -> None:
    if path.is_dir():
        raise ReadError(f"{path}: is a folder, not a feature file; name the file inside it")
    if not path.exists():
        hint = " (a broken symbolic link)" if path.is_symlink() else ""
        raise MissingFileError(f"{path}: no such file{hint}; correct the path, or {hints.skip('missing')}")
    if not path.is_file():
        raise ReadError(f"{path}: is not a regular file")
    if _is_locked(path):
        raise LockedFileError(
            f"{path}: is still being written ({path.name}.lock lies beside it); wait for the extraction to end, "
            "or delete the lock if no job is running"
        )
    if path.stat().st_size == 0:
        raise ReadError(f"{path}: the file has zero bytes; copy or make it again")
    if not os.access(path, os.R_OK):
        raise _denied(path, "chmod u+r")
    if stored := holes(path):
        raise ReadError(f"{path}: {stored}")


def holes(path: Path) -> str | None:
    """What is wrong with a file that consists of holes: its size costs nothing, and is what every other size is
    compared with. None where it is stored as it should be, or nobody can tell.

    Raises:
        OSError: it cannot be opened.
    """
    size = path.stat().st_size
    if size <= FREE_BYTES or not hasattr(os, "SEEK_DATA"):
        return None
    stored = at = 0
    with path.open("rb") as file:
        while at < size and stored * MAX_EXPANSION < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # a file system that cannot tell
                    return None
                break  # nothing but a hole follows
            stored += at - start
    if stored * MAX_EXPANSION >= size:
        return None
    return f"has {size:,} bytes but only {stored:,} are stored, the rest are holes; copy or make it again"


def _is_locked(path: Path) -> bool:
    return _exists(Path(f"{path}.lock"))


def split_part(path: Path) -> tuple[Path, str | None]:
    """``file.h5::part`` as the file and the name of one of its bags; a path that exists as it stands has no part.

    Where several ``::`` could be the one, the longest name of a file that is there wins.
    """
    text = str(path)
    at = -1 if _exists(path) else text.rfind("::")
    while at > 0:
        if at + 2 < len(text) and _exists(Path(text[:at])) and Path(text[:at]).is_file():
            return Path(text[:at]), text[at + 2 :]
        at = text.rfind("::", 0, at)
    return path, None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def matrix_shape(path: Path, shape: Sequence[int]) -> tuple[int, int]:
    """``(N, D)`` of a raw shape: ``(1, N, D)`` loses its first axis, a vector ``(D,)`` is one instance.

    Raises:
        ReadError: any other number of axes.
    """
    if len(shape) == 3 and shape[0] <= 1:
        return (shape[1] if shape[0] else 0, shape[2])
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 1:
        return (1, shape[0]) if shape[0] else (0, 0)
    raise ReadError(f"{path}: features have shape {tuple(shape)}; expected (instances, width)")


def as_features(path: Path, value: np.ndarray | Tensor) -> Tensor:
    """Features ``(N, D)``: float16, bfloat16 and float32 are kept, every other number becomes float32.

    Raises:
        EmptyBagError: no instances, or a width of zero.
        ReadError: not numbers, or not a matrix.
    """
    rows, width = matrix_shape(path, tuple(value.shape))
    if rows == 0 or width == 0:
        raise EmptyBagError(
            f"{path}: is empty, its features have shape {tuple(value.shape)}; leave it out, or {hints.skip('empty')}"
        )
    tensor = value.detach() if isinstance(value, Tensor) else _to_tensor(path, value, "features")
    if tensor.is_complex():
        raise ReadError(f"{path}: features are {tensor.dtype}; expected real numbers")
    return (tensor if tensor.dtype in KEPT_DTYPES else tensor.float()).reshape(rows, width).contiguous()


def as_coords(path: Path, value: np.ndarray | Tensor, rows: int) -> Tensor:
    """Coordinates ``(rows, 2)`` as int64, or float64 where they are not whole numbers by type.

    Raises:
        ReadError: another shape, another number of rows, or values that are not finite.
    """
    tensor = value.detach() if isinstance(value, Tensor) else _to_tensor(path, value, "coords")
    if tensor.ndim == 3 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 2 or tensor.shape[1] != 2 or tensor.shape[0] != rows:
        raise ReadError(
            f"{path}: coords have shape {tuple(tensor.shape)} for {rows} instances; expected ({rows}, 2): "
            "write the file again, with one (x, y) for each row of features"
        )
    if not tensor.is_floating_point():
        return tensor.long()
    if not bool(torch.isfinite(tensor).all()):
        row = int((~torch.isfinite(tensor)).any(dim=1).nonzero()[0])
        raise ReadError(f"{path}: row {row} of coords is {tensor[row].tolist()}; write the coordinates again")
    return tensor.double()


def as_instance_labels(path: Path, value: np.ndarray | Tensor, rows: int) -> Tensor:
    """Integer truth of each instance ``(rows,)``.

    Raises:
        ReadError: another length, or not whole numbers.
    """
    tensor = value.detach() if isinstance(value, Tensor) else _to_tensor(path, value, "instance_labels")
    tensor = tensor.reshape(-1)
    if tensor.shape[0] != rows:
        raise ReadError(f"{path}: {tensor.shape[0]} instance_labels for {rows} instances")
    if tensor.is_floating_point() and not bool((tensor == tensor.round()).all()):
        raise ReadError(f"{path}: instance_labels are not whole numbers")
    return tensor.long()


def choose(path: Path, names: Iterable[str], dataset: str | None, *, sole: Iterable[str] | None = None) -> str:
    """The name of the features among those a file has: `dataset`, else features, feats, else the only one.

    Raises:
        ReadError: the wanted one is not there, or several could be meant (all are listed).
    """
    have = list(names)
    if dataset is not None:
        if dataset in have:
            return dataset
        raise ReadError(f"{path}: has no data set {dataset!r}; it has {listing(have)}")
    for name in FEATURE_NAMES:
        if name in have:
            return name
    candidates = list(have if sole is None else sole)
    if len(candidates) == 1:
        return candidates[0]
    raise ReadError(
        f"{path}: cannot tell which data set holds the features; it has {listing(have)}: "
        f"name one with {hints.option('dataset')}"
    )


def check_expansion(path: Path, declared: int, stored: int, what: str) -> None:
    """Refuse a size that no honest compression explains, before anything is allocated."""
    if declared > max(FREE_BYTES, MAX_EXPANSION * stored):
        raise ReadError(
            f"{path}: {what} declares {declared:,} bytes but only {stored:,} are stored: "
            "the file is broken or hostile, make it again"
        )


def check_zip(path: Path) -> list[zipfile.ZipInfo]:
    """The members of a zip archive, once all their declared sizes are believable."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        check_expansion(path, member.file_size, member.compress_size, f"member {member.filename!r}")
    check_expansion(path, sum(m.file_size for m in members), path.stat().st_size, "the archive")
    return members


def listing(names: Iterable[str], limit: int = 20) -> str:
    """Names for a message, cut after `limit`; a name of a megabyte is no help either."""
    have = [str(n) for n in names]
    more = f" and {len(have) - limit} more" if len(have) > limit else ""
    shown = [n if len(n) <= MAX_NAME else f"{n[:MAX_NAME]}..." for n in have[:limit]]
    return (", ".join(repr(n) for n in shown) or "none") + more


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts ``cell_2`` before ``cell_10``."""
    pieces = re.split(r"([0-9]+)", name)  # texts and numbers in turn, so that only like is compared with like
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name


def positive(path: Path, name: str, value: float | None) -> float | None:
    """A length that must be a positive number where it is known."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ReadError(f"{path}: {name} is {value}; expected a positive number")
    return value


def _to_tensor(path: Path, value: np.ndarray, what: str) -> Tensor:
    if value.dtype.kind not in "fiub":
        raise ReadError(f"{path}: {what} are of type {value.dtype}; expected numbers")
    if value.dtype.kind == "u" or value.dtype.itemsize > 8:
        value = value.astype(np.float32 if what == "features" else np.int64)
    # torch knows only the machine's own byte order, and may not alias memory that others can write
    native: Any = np.array(value, dtype=value.dtype.newbyteorder("="), order="C", copy=None)
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
