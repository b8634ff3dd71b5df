"""What a ``.pt`` file would have PyTorch do, read instruction by instruction before PyTorch does it.

``weights_only=True`` keeps a pickle from running code. It does not keep one from asking for gigabytes: a few bytes
construct ``torch.Tensor(10**9)``, declare a storage of any size, or nest tuples so that hashing a key takes for ever.
So the instructions are followed here without carrying any of them out, and the sizes are compared with what is stored.
"""

from __future__ import annotations

import mmap
import pickletools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch

from qgmil.errors import ReadError

ZIP = b"PK\x03\x04"  # what PyTorch goes by
MAGIC = 0x1950A86A20F9469CFC6C  # of files that are no zip archive
PARTS = 5  # pickles at the start of such a file: magic number, version, machine, content, keys of the storages
MAX_WEIGHT = 10_000  # elements of a tuple, counted through the tuples in it
ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "UntypedStorage": 1,
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip
TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")  # (storage, offset, size, stride, ...)
OTHERS = frozenset(
    {
        "collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set", "builtins.complex",
        "torch.Size", "torch.device", "torch.serialization._get_layout", "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state", "_codecs.encode",
    }
)  # fmt: skip
INTEGERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1"})
TEXTS = frozenset({"BINUNICODE", "SHORT_BINSTRING"})
CONSTANTS = frozenset({"NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"})
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
STORES, FETCHES = frozenset({"BINPUT", "LONG_BINPUT"}), frozenset({"BINGET", "LONG_BINGET"})


@dataclass(frozen=True)
class _Item:
    """Something on the stack: its kind, what is known of it, and for tuples how many elements hashing it visits."""

    kind: str
    value: Any = None
    weight: int = 1


def check_pickles(path: Path) -> None:
    """Refuse a file whose instructions do more than rebuild tensors and plain values from what is stored.

    Raises:
        ReadError: Python objects, sizes beyond what is stored, or keys that could not be hashed.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            _check_archive(path)
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            _check_stream(path, raw)


def python_objects(path: Path) -> ReadError:
    """The error for a file that holds anything but tensors and plain values."""
    return ReadError(
        f"{path}: holds Python objects (a pickle), which could run code when opened; save the features alone, "
        "with torch.save(tensor, path) or as .safetensors"
    )


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {m.filename: m for m in archive.infolist()}
        prefix = next(iter(members), "").partition("/")[0]
        if len(members) < len(archive.infolist()) or f"{prefix}/data.pkl" not in members:
            raise ReadError(f"{path}: is no archive of torch.save (data.pkl is missing, or a name is there twice)")
        reading = _Reading(path)
        reading.follow(BytesIO(archive.read(members[f"{prefix}/data.pkl"])))
    for key, declared in reading.storages.items():
        member = members.get(f"{prefix}/data/{key}")
        _compare(path, key, declared, 0 if member is None else member.file_size)


def _check_stream(path: Path, raw: mmap.mmap) -> None:
    for part in range(PARTS):
        reading = _Reading(path)
        said = reading.follow(raw)
        if part == 0 and said.value != MAGIC:
            raise python_objects(path)
        if part == PARTS - 2:
            storages = reading.storages
    _compare(path, "together", sum(storages.values()), len(raw) - raw.tell())


def _compare(path: Path, what: str, declared: int, stored: int) -> None:
    if declared > stored:
        raise ReadError(
            f"{path}: its storages ({what}) declare {declared:,} bytes but only {stored:,} are stored: the file is "
            "broken or hostile, make it again"
        )


class _Reading:
    """Follows one pickle. `storages` is the number of bytes that each storage it asks for is said to have."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.storages: dict[str, int] = {}
        self.memo: dict[int, _Item] = {}
        self.below: list[list[_Item]] = []
        self.stack: list[_Item] = []

    def follow(self, pickle: IO[bytes] | mmap.mmap) -> _Item:
        """What is left on the stack at the end."""
        for code, argument, _ in pickletools.genops(pickle):  # type: ignore[arg-type]
            self._step(code.name, argument)
        return self.stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in INTEGERS or name in TEXTS:
            stack.append(_Item("value", argument))
        elif name in CONSTANTS:
            stack.append(_Item("value"))
        elif name in FETCHES:
            stack.append(self.memo[argument])
        elif name in STORES:
            self.memo[argument] = stack[-1]
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name == "TUPLE":
            self._tuple(self._since_mark())
        elif name in TUPLES:
            self._tuple([stack.pop() for _ in range(TUPLES[name])][::-1])
        elif name in ("APPENDS", "SETITEMS"):
            self._since_mark()
        elif name in ("APPEND", "SETITEM"):
            del stack[-1 - (name == "SETITEM") :]
        elif name == "GLOBAL":
            stack.append(_Item(self._known(argument.replace(" ", "."))))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop().value))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(self._made(stack.pop().kind, arguments))
        elif name == "BUILD":
            stack.pop()
            if stack[-1].kind != "collections.OrderedDict":
                raise python_objects(self.path)
        elif name not in ("PROTO", "STOP"):
            raise python_objects(self.path)

    def _since_mark(self) -> list[_Item]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _tuple(self, items: Sequence[_Item]) -> None:
        weight = 1 + sum(item.weight for item in items)
        if weight > MAX_WEIGHT:
            raise ReadError(f"{self.path}: holds tuples of more than {MAX_WEIGHT:,} elements; save the tensors alone")
        self.stack.append(_Item("tuple", tuple(items), weight))

    def _known(self, name: str) -> str:
        module, _, last = name.rpartition(".")
        storage = last in ITEM_BYTES and module in ("torch", "torch.storage", "torch.cuda")
        tensor = last in TENSORS and module == "torch._utils"
        dtype = module == "torch" and isinstance(getattr(torch, last, None), torch.dtype)
        if not (storage or tensor or dtype or name in OTHERS):
            raise python_objects(self.path)
        return last if storage or tensor else name

    def _storage(self, said: Any) -> _Item:
        """("storage", its type, its key, where it was, number of elements, ...)."""
        kind, key, _, count = (item for item in said[1:5])
        declared = count.value * ITEM_BYTES[kind.kind]
        name = str(key.value)
        self.storages[name] = max(declared, self.storages.get(name, 0))
        return _Item("storage", (declared, ITEM_BYTES[kind.kind]))

    def _made(self, kind: str, arguments: _Item) -> _Item:
        if kind in TENSORS:
            storage, offset, sizes, strides = arguments.value[:4]
            shape = [item.value for item in sizes.value]
            steps = [item.value for item in strides.value]
            stored, item = storage.value
            if kind == "_rebuild_tensor_v3":
                item = getattr(torch, arguments.value[6].kind.removeprefix("torch.")).itemsize
            last = offset.value + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
            if storage.kind != "storage" or (min(shape, default=1) > 0 and (last + 1) * item > stored):
                raise ReadError(
                    f"{self.path}: a tensor of shape {tuple(shape)} declares more than the {stored:,} bytes of its "
                    "storage; the file is broken or hostile, make it again"
                )
        elif kind in ("value", "storage", "tuple"):
            raise python_objects(self.path)
        return _Item(kind, None, arguments.weight)
