"""`pack_store`: bags into a store, one after the other, finished or not there at all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch

from qgmil.bags import hints
from qgmil.bags.dataset import BagDataset, Skipped, open_bags
from qgmil.bags.made import carry_settings
from qgmil.bags.manifest import BagRecord
from qgmil.bags.readers import bag_files
from qgmil.bags.source import PathLikes
from qgmil.bags.store.layout import DTYPES, FEATURES, Header, dtype_name, is_store
from qgmil.bags.store.writing import FeatureFile, Rounding, StoreWriter, sync_folder
from qgmil.errors import ConfigError, RunError

try:
    import fcntl
except ImportError:  # Windows: two programs that pack to one place at one time are not told apart from a killed one
    fcntl = None  # type: ignore[assignment]

LOCK = "packing.lock"


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Args:
        path: the store.
        header: what the store says of itself.
        reason: why the features have their type.
        rounding: the largest error of converting them.
        skipped: ``(bag_id, reason)`` of what was left out.
        cleaned: whether files of an interrupted packing were removed.
    """

    path: Path
    header: Header
    reason: str
    rounding: Rounding = field(default_factory=Rounding)
    skipped: Skipped = ()
    cleaned: bool = False


def pack_store(
    path: PathLikes,
    output: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    force: bool = False,
    skip: Collection[str] = (),
    labels: bool = True,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Packed:
    """Pack bags into a new store, holding one of them in memory at a time.

    It is written beside `output` and takes its name when it is whole: whatever interrupts packing leaves nothing that
    looks finished, and what a killed one left is removed by the next.

    Args:
        path: whatever `open_bags` takes: a manifest, a long table, another store; feature files with ``labels=False``.
        output: folder to make.
        dtype: "float16", "bfloat16" or "float32"; None keeps what the files have, and takes the smallest that holds
            all values exactly where they differ.
        force: replace a store that is there. Anything else that is there is never replaced.
        skip, labels: as for `open_bags`.
        progress: called with (bags done, bags in all).
        options: the other options of `open_bags`.

    Raises:
        ConfigError: an unknown `dtype`.
        RunError: something is there already, another program is packing to the same place, or it cannot be written.
        QGMILError: bags that cannot be used, and values that `dtype` cannot hold, by name.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype (dtype in Python) is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    output = Path(output).resolve()
    _check_output(output, force)
    bags = open_bags(path, skip=skip, labels=labels, **options)
    with _workplace(output) as (folder, cleaned):
        header, reason, rounding = _write(bags, folder, output, dtype, _names(path, options), progress)
        _check_output(output, force)
        _put(folder, output)
    return Packed(output, header, reason, rounding, bags.skipped, cleaned)


def _write(
    bags: BagDataset,
    folder: Path,
    output: Path,
    dtype: str | None,
    names: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> tuple[Header, str, Rounding]:
    """Write the bags; a full disk says how far it came."""
    files: dict[str, dict[str, Any]] = {}
    found: Counter[str] = Counter()
    writer = None
    try:
        carry_settings(bags.items, folder)
        for i, item in enumerate(bags.items):
            if isinstance(item, BagRecord):
                behind = (file for cell in item.files for file in bag_files(cell))
                files |= {str(f): _source(f) for f in behind if str(f) not in files}
            bag = bags[i]
            found[dtype_name(bag.features.dtype)] += 1
            if writer is None:
                first = bag.features.dtype if dtype is None else DTYPES[dtype]
                writer = StoreWriter(folder, FeatureFile(folder / FEATURES, first))
            wider = torch.promote_types(writer.features.dtype, bag.features.dtype)
            if dtype is None and wider != writer.features.dtype:
                writer.features.widen(wider)
            writer.add(item, bag)
            if progress is not None:
                progress(i + 1, len(bags))
        assert writer is not None  # a data set has bags
        writer.index.columns = {
            n: names["options"].get(n) for n in ("bag_id", "label", "patient_id", "features", "dataset")
        }
        writer.index.skipped = list(bags.skipped)
        rounding = writer.features.rounding
        packed = {
            "qgmil": importlib.metadata.version("qgmil"),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            **names,
            "features_were": dict(found),
            "largest_rounding_error": {"error": rounding.error, "value": rounding.value, "bag_id": rounding.bag_id},
        }
        header = writer.finish(list(files.values()), packed)
    except OSError as error:
        done = 0 if writer is None else len(writer.features.sizes)
        raise RunError(
            f"{output}: {error.strerror or error} after {done} of {len(bags)} bags; nothing was kept: "
            "make room or choose another place, and pack again"
        ) from error
    finally:
        if writer is not None:
            writer.close()
    return header, _reason(dtype, found, dtype_name(header.dtype)), rounding


def _reason(dtype: str | None, found: Counter[str], used: str) -> str:
    if dtype is not None:
        return "as asked"
    if len(found) == 1:
        return "as the files have them"
    have = " and ".join(f"{name} ({count} bags)" for name, count in found.most_common())
    return f"the files differ, {have}, and {used} holds every value exactly; {hints.flag('dtype')} chooses another"


def _names(path: PathLikes, options: dict[str, Any]) -> dict[str, Any]:
    """Where the bags come from, for the record."""
    one = isinstance(path, str | os.PathLike)
    table = Path(path).absolute() if one else None  # type: ignore[arg-type]
    return {"from": None if table is None else _source(table), "options": options}


def _source(path: Path) -> dict[str, Any]:
    """Path, size and time of change of a file, as far as the system tells them."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return {"path": str(path), "bytes": None, "mtime": None}
    changed = datetime.fromtimestamp(found.st_mtime, UTC).isoformat(timespec="microseconds")
    return {"path": str(path), "bytes": found.st_size, "mtime": changed}


def _check_output(output: Path, force: bool) -> None:
    """Refuse what is there: a store may be replaced if asked, anything else never."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not is_store(output):
        raise RunError(f"{output} exists already and is no store: choose another folder with --output")
    if not force:
        raise RunError(
            f"{output} is a store already: choose another folder with --output, or replace it with --force "
            "(force=True in Python)"
        )


@contextlib.contextmanager
def _workplace(output: Path) -> Iterator[tuple[Path, bool]]:
    """A folder beside `output` for this program alone, and whether an interrupted packing had left something.

    It is removed at the end unless it was renamed.
    """
    folder, replaced = _beside(output, "packing"), _beside(output, "replaced")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise RunError(f"{output}: cannot be written ({error.strerror or error}); choose another place") from error
    with lock:
        _lock(lock, folder, output)
        cleaned = _clear(folder)
        if replaced.exists():  # killed between taking the old store away and putting the new one there
            cleaned = True
            if output.exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(output)
        try:
            yield folder, cleaned
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _lock(lock: IO[str], folder: Path, output: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_ino == (folder / LOCK).stat().st_ino:
            return
    except OSError:
        pass
    raise RunError(f"{output}: another program is packing to this place; wait for it, or choose another place")


def _clear(folder: Path) -> bool:
    leftover = [p for p in folder.iterdir() if p.name != LOCK]
    for path in leftover:
        path.unlink()
    return bool(leftover)


def _put(folder: Path, output: Path) -> None:
    """Give a finished store its name, and remove the one that had it."""
    replaced = _beside(output, "replaced")
    if is_store(output):
        output.rename(replaced)
    try:
        folder.rename(output)
    except BaseException:
        if replaced.exists():
            replaced.rename(output)
        raise
    sync_folder(output.parent)
    (output / LOCK).unlink()
    if replaced.exists():
        shutil.rmtree(replaced)


def _beside(output: Path, what: str) -> Path:
    return output.with_name(f".{output.name}.{what}")
