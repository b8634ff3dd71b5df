"""What the child process of these tests runs: a file is read, and what that cost and touched is told."""

from __future__ import annotations

import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attacks.watch import Audit, Watch
from qgmil.bags.bag import Bag
from qgmil.bags.check import check_bags
from qgmil.bags.dataset import open_bags
from qgmil.bags.layouts.build import build_manifest
from qgmil.bags.manifest import Manifest
from qgmil.bags.readers import bag_file_shape, bag_files, bag_label, parts, read_bag_file
from qgmil.bags.split_files import from_files, read_split_files
from qgmil.bags.store import verify_store
from qgmil.datasets import load_dataset
from qgmil.datasets.corel import read_bags
from qgmil.datasets.images import read_rgb
from qgmil.datasets.patho_bench import _config as task_config
from qgmil.errors import QGMILError

Options = dict[str, Any]


def read(path: str, options: Options) -> None:
    """A bag as training reads it."""
    read_bag_file(path, **options)


def read_finite(path: str, options: Options) -> None:
    """A bag as a data set gives it: one that is not finite is refused as well."""
    open_bags([path], labels=False, **options)[0]


def shape(path: str, options: Options) -> None:
    """What is asked of a file before it is read."""
    bag_file_shape(path, **options)


def whole(path: str, options: Options) -> None:
    """Every bag behind a table or in a store, with all that is known of it."""
    bags = open_bags(path, **options)
    for i in range(len(bags)):
        names = bags[i].instance_ids
        _ = None if names is None else list(names)


def verified(path: str, options: Options) -> None:
    """A store against its checksums; the first problem is raised."""
    for problem in verify_store(path):
        raise QGMILError(problem.message)


def checked(path: str, options: Options) -> None:
    """`qgmil check`, in this process; the first problem of a file is raised."""
    for problem in check_bags(path, **options).problems:
        if problem.kind not in ("class", "number"):
            raise QGMILError(f"{path}: {problem.message}")


def built(path: str, options: Options) -> None:
    """`qgmil manifest`."""
    result = build_manifest(path, **options)
    for problem in result.left_out:
        raise QGMILError(f"{path}: {problem.message}")


def split(path: str, options: Options) -> None:
    """A split file over the bags a and b."""
    from_files(path, [Bag(torch.ones(1, 1), str(i), name) for i, name in enumerate("ab")])


ACTS: dict[str, Callable[[str, Options], None]] = {
    "read": read,
    "finite": read_finite,
    "shape": shape,
    "parts": lambda path, options: print(parts(path, format=options.get("format"))),
    "label": lambda path, options: print(bag_label(path, **options)),
    "files": lambda path, options: print(bag_files(path)),
    "open": whole,
    "manifest": lambda path, options: print(Manifest.read(path, **options)),
    "verify": verified,
    "check": checked,
    "build": built,
    "splits": lambda path, options: print(read_split_files(path)),
    "splits_of": split,
    "task": lambda path, options: print(task_config(Path(path))),
    "corel": lambda path, options: print(len(read_bags(Path(path)))),
    "dataset": lambda path, options: print(load_dataset(root=path, **options)),
    "image": lambda path, options: print(read_rgb(Path(path)).shape),
}

audit: Audit | None = None
watches: dict[str, Watch] = {}


def attempt(task: dict[str, Any]) -> dict[str, Any]:
    """Do what the task says, under watch.

    Args:
        task: "act" of `ACTS` and its "path" and "options"; the "root" in which everything must happen; "outside", a
            folder in which nothing may be opened.

    Returns:
        "error", the names of its classes and their message ("" where there was none), "traceback" where it is
        none of ours, CPU "seconds", "grew" (bytes of memory at the peak), "touched" (what was opened outside).
    """
    global audit
    audit = audit or Audit()
    if task["outside"] not in watches:  # the system has few of them to give
        for old in [watches.pop(name) for name in list(watches)]:
            old.close()
        watches[task["outside"]] = Watch(Path(task["outside"]))
    watch = watches[task["outside"]]
    watch.opened()
    before = _peak(reset=True)
    started = time.process_time()
    error: BaseException | None = None
    trace = ""
    audit.start(Path(task["root"]))
    try:
        ACTS[task["act"]](task["path"], task["options"])
    except BaseException as caught:  # a library may raise what is no Exception
        error = caught
        if not isinstance(caught, QGMILError):
            trace = "".join(traceback.format_exception(caught)[-6:])
    touched = audit.stop()
    seconds = time.process_time() - started
    return {
        "error": [] if error is None else [c.__name__ for c in type(error).__mro__],
        "message": "" if error is None else str(error),
        "traceback": trace,
        "seconds": seconds,
        "grew": _peak() - before,
        "touched": [*touched, *watch.opened()],
    }


def _peak(reset: bool = False) -> int:
    """Bytes of memory that this process had at most (since the last reset, where the system can forget)."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:
        with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123 not a path of the tests
            file.write("5")
    with open("/proc/self/status") as file:  # noqa: PTH123
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
