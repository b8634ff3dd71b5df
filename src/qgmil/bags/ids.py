"""Names of a bag's instances, which may be fetched when somebody looks at them: training never does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from torch import Tensor


class LazyIds(Sequence[str]):
    """A sequence of `length` names that `load` fetches at the first look.

    Args:
        load: returns all names.
        length: how many they are.
        rows: positions among what `load` returns; None: all of them.
    """

    def __init__(self, load: Callable[[], tuple[str, ...]], length: int, rows: Tensor | None = None) -> None:
        self._load, self._length, self._rows = load, length, rows
        self._names: tuple[str, ...] | None = None

    def take(self, rows: Tensor) -> LazyIds:
        """The names at these positions ``(K,)``, still not fetched."""
        return LazyIds(self._load, len(rows), rows if self._rows is None else self._rows[rows])

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._all()[index]

    def __eq__(self, other: object) -> bool:
        return self._all() == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._all(),)

    def _all(self) -> tuple[str, ...]:
        if self._names is None:
            names = self._load()
            self._names = names if self._rows is None else tuple(names[i] for i in self._rows.tolist())
        return self._names


def take_ids(ids: Sequence[str], rows: Tensor) -> Sequence[str]:
    """The names at these positions ``(K,)``, in that order."""
    return ids.take(rows) if isinstance(ids, LazyIds) else tuple(ids[i] for i in rows.tolist())
