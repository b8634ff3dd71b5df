"""What a process opens: by Python's own account, and by the system's where a library opens files by itself."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Any

IN_ACCESS, IN_OPEN = 0x01, 0x20
EVENT = struct.Struct("iIII")
OPENS = frozenset({"open", "os.listdir", "os.scandir"})
CHANGES = frozenset(
    {
        *(f"os.{name}" for name in ("mkdir", "rename", "remove", "rmdir", "link", "symlink", "truncate", "chmod")),
        *(f"os.{name}" for name in ("system", "exec", "fork", "posix_spawn")),
        *(f"{name}.{how}" for name in ("socket", "pickle") for how in ("connect", "bind", "find_class")),
        *("subprocess.Popen", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp"),
    }
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Audit:
    """Python's own events in this process: files opened outside `root`, or anything written, started or unpickled.

    Such a hook cannot be taken away again, so there is one for the life of a process.
    """

    def __init__(self) -> None:
        self.root: Path | None = None
        self.seen: list[str] = []
        self._packages = tuple(os.path.realpath(p) for p in {sys.prefix, sys.base_prefix, *filter(None, sys.path)})
        sys.addaudithook(self._hear)

    def start(self, root: Path) -> None:
        """Listen from now on."""
        self.root, self.seen = root.resolve(), []

    def stop(self) -> list[str]:
        """What was heard."""
        self.root = None
        return self.seen

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.root is None or event not in OPENS | CHANGES:
            return
        root, self.root = self.root, None  # what is done here is not heard
        try:
            if event in CHANGES or not self._allowed(root, arguments):
                self.seen.append(f"{event}: {arguments[:3]!r}"[:300])
        finally:
            self.root = root

    def _allowed(self, root: Path, arguments: tuple[Any, ...]) -> bool:
        path = arguments[0]
        if isinstance(path, int):  # a handle that is open already
            return True
        named = os.fsdecode("." if path is None else path)
        flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
        if flags & WRITING:
            return False
        stays = flags & getattr(os, "O_NOFOLLOW", 0)  # a link is then not opened but refused
        real = os.path.realpath(Path(named).parent if stays else named)
        return Path(real).is_relative_to(root) or real.startswith((*self._packages, "/proc/self", "/sys/", "/dev/null"))


class Watch:
    """The system's account of files opened in a folder, whoever opens them (inotify); elsewhere it sees nothing."""

    def __init__(self, folder: Path) -> None:
        self.handle = -1
        if sys.platform != "linux":
            return
        libc = ctypes.CDLL(None, use_errno=True)
        self.handle = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.handle < 0 or libc.inotify_add_watch(self.handle, os.fsencode(folder), IN_ACCESS | IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), f"{folder} cannot be watched")

    def close(self) -> None:
        """Watch no longer."""
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1

    def opened(self) -> list[str]:
        """Names of the files (or "." for the folder itself) that were opened since the last call."""
        names = []
        try:
            while self.handle >= 0 and (raw := os.read(self.handle, 2**16)):
                at = 0
                while at < len(raw):
                    _, _, _, length = EVENT.unpack_from(raw, at)
                    at += EVENT.size
                    names.append(raw[at : at + length].rstrip(b"\0").decode(errors="replace") or ".")
                    at += length
        except BlockingIOError:
            pass
        return sorted(set(names))
