"""`Pool`: a few long-lived child processes that read untrusted files, so that none of them can take the check down."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from qgmil.bags.check.frames import receive, send
from qgmil.errors import ConfigError, ReadError

INSPECT = "qgmil.bags.check.facts:inspect_file"
SECONDS = 300.0  # for one file: the largest slides on a slow network drive take a minute
START_SECONDS = 300.0  # for the imports, on a machine that is very busy
AHEAD = 64  # answers kept while an earlier file takes its time
# A fresh interpreter (nothing is inherited, and a user's script is not run again) that finds the same packages.
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from qgmil.bags.check.child import main; main(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))"
)


@dataclass(frozen=True)
class Lost:
    """No answer to a task. `kind` is "crash" or "hangs"; `how` says how the process ended ("SIGSEGV")."""

    kind: str
    how: str


class Pool:
    """Child processes that answer tasks with one function; a context manager. None is left when it is closed.

    The children are fresh interpreters in a session of their own: Ctrl-C stops the check, and the check ends them.
    One that crashes or takes too long costs its task, and another goes on with the next.

    Args:
        function: "module:name" of a function from dictionary to dictionary (JSON values and arrays).
        children: how many to start; `grow` adds more.
        seconds: the time that one task may take before it is given up as hanging.
        memory: bytes that a child may map (Linux); None: what the machine has, 0: no limit.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self, function: str = INSPECT, *, children: int = 1, seconds: float = SECONDS, memory: int | None = None
    ) -> None:
        if children < 1 or seconds <= 0:
            raise ConfigError(f"children={children} must be at least 1 and seconds={seconds} more than 0")
        self.seconds = seconds
        memory = physical_memory() if memory is None else memory
        self._command = [sys.executable, "-c", PROGRAM, json.dumps(sys.path), function, str(seconds), str(memory)]
        self._inbox: queue.SimpleQueue[tuple[_Child, dict[str, Any] | None]] = queue.SimpleQueue()
        self._children: list[_Child] = []
        self.grow(children)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all children at once, whatever they are doing."""
        while self._children:
            self._children.pop().kill()

    def grow(self, children: int) -> None:
        """Have at least that many children."""
        while len(self._children) < children:
            self._children.append(_Child(self._command, self._inbox))

    def run(self, tasks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any] | Lost]:
        """Answers in the order of the tasks, which are drawn only as far ahead as there is something to do.

        Raises:
            ReadError: a child cannot be started at all.
        """
        for child in [c for c in self._children if c.task is not None]:  # of a run that was given up
            child.kill()
            self._replace(child, None)
        source = enumerate(tasks)
        answers: dict[int, dict[str, Any] | Lost] = {}
        drawn, done, more = 0, 0, True
        while True:
            for child in self._children:
                if more and child.idle and drawn - done < AHEAD:
                    index, task = next(source, (-1, {}))
                    more = index >= 0
                    if more:
                        drawn = index + 1
                        child.give(index, task, self.seconds)
            if done in answers:
                yield answers.pop(done)
                done += 1
            elif more or done < drawn:
                answers |= self._wait()
            else:
                return

    def _wait(self) -> dict[int, dict[str, Any] | Lost]:
        """What the next message of a child, or the end of its time, answers."""
        deadlines = [c.deadline for c in self._children if c.deadline is not None]
        try:
            child, frame = self._inbox.get(timeout=max(0.0, min(deadlines) - time.monotonic()))
        except queue.Empty:
            child = min((c for c in self._children if c.deadline is not None), key=lambda c: c.deadline or 0.0)
            child.kill()
            return self._replace(child, Lost("hangs", f"not done after {self.seconds:g} s"))
        if child not in self._children:  # the last words of one that was ended
            return {}
        if frame is None:
            return self._replace(child, child.ended())
        task = child.take()
        return {} if task is None else {task: frame}

    def _replace(self, child: _Child, lost: Lost | None) -> dict[int, dict[str, Any] | Lost]:
        """Another child in place of one that is gone, and what became of its task."""
        if child.starting and lost is not None:
            raise ReadError(
                f"the process that reads the files could not start ({lost.how}); read them in this one with "
                "--in-process (isolate=False in Python)"
            )
        self._children[self._children.index(child)] = _Child(self._command, self._inbox)
        return {} if child.task is None or lost is None else {child.task: lost}


class _Child:
    """One process, what it works on (a number) and until when it may."""

    def __init__(self, command: list[str], inbox: queue.SimpleQueue[tuple[_Child, dict[str, Any] | None]]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C is for the parent, which ends this one
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
        self.starting = True
        self.last_words = ""  # the last line on its standard error, once it has ended
        self.task: int | None = None
        self.deadline: float | None = time.monotonic() + START_SECONDS
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    @property
    def idle(self) -> bool:
        """Whether it waits for a task."""
        return not self.starting and self.task is None

    def give(self, index: int, task: dict[str, Any], seconds: float) -> None:
        """Hand it a task. If it is gone, it says so by ending."""
        self.task, self.deadline = index, time.monotonic() + seconds
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            send(self.process.stdin, task)  # type: ignore[arg-type]

    def take(self) -> int | None:
        """It has answered: the task it answered, None if it only said that it is ready."""
        self.starting, self.deadline = False, None
        task, self.task = self.task, None
        return task

    def ended(self) -> Lost:
        """How it ended by itself."""
        code = self.process.wait()
        self.kill()
        if hasattr(signal, "SIGALRM") and code == -signal.SIGALRM:
            return Lost("hangs", "out of time")
        if code == -9:  # not by us, or nobody would wait for it
            return Lost("crash", "SIGKILL, most likely for taking all memory")
        names = {s.value: s.name for s in signal.Signals}
        how = names.get(-code, f"exit code {code}")
        return Lost("crash", f"{how}: {self.last_words}" if code > 0 and self.last_words else how)

    def kill(self) -> None:
        """End it at once and wait until it has."""
        self.process.kill()
        self.process.wait()
        if not self._said.closed:
            self._said.seek(0)
            lines = self._said.read().decode(errors="replace").split("\n")
            self.last_words = next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]
            self._said.close()
        with contextlib.suppress(OSError):  # what was not yet written to one that is gone
            if self.process.stdin is not None:
                self.process.stdin.close()

    def _listen(self, inbox: queue.SimpleQueue[tuple[_Child, dict[str, Any] | None]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            frame: dict[str, Any] | None = {}
            while frame is not None:
                try:
                    frame = receive(pipe)  # type: ignore[arg-type]
                except Exception:  # not what a healthy child sends
                    frame = None
                inbox.put((self, frame))


def processors() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_memory() -> int:
    """Bytes of memory that the machine has; 0 where that cannot be known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
