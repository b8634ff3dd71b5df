"""Calls that could run what a file says, found in source text: names are followed through imports and assignments."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

MODULES = (
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
    "imp",
    "runpy",
    "code",
    "codeop",
    "xmlrpc",
)
ALLOWED_PICKLE = ("pickle.UnpicklingError", "pickle.PicklingError", "pickle.PickleError", "pickle.HIGHEST_PROTOCOL")
BUILTINS = ("eval", "exec", "compile", "__import__", "execfile")
SYSTEM = ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput")
TENSORS = (
    "torch.load",
    "torch.serialization.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "torch.hub.load",
)
ARRAYS = ("numpy.load", "numpy.lib.format.read_array", "numpy.lib.npyio.NpzFile", "numpy.fromfile", "numpy.memmap")
YAML = (
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
)
ARCHIVES = ("extractall", "extract", "unpack_archive")
OTHERS = (
    "torch.serialization.add_safe_globals",
    "torch.serialization.safe_globals",
    "pandas.read_pickle",
    "scipy.io.loadmat",
)


class Finding(NamedTuple):
    """A line of source that is not allowed, and why."""

    line: int
    what: str


def unsafe_calls(source: str) -> list[Finding]:
    """Everything in a module that could run, unpickle or unpack what a file says."""
    tree = ast.parse(source)
    names = _names(tree)
    found = [*_imports(tree), *_references(tree, names)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += _call(node, names)
    return sorted(set(found))


def _names(tree: ast.AST) -> dict[str, str]:
    """What the names of a module stand for: ``np`` is numpy, ``load`` may be torch.load."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module or ''}.{alias.name}"
    for _ in range(3):  # names for names for names
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and (target := _dotted(node.value, names)) is not None:
                for name in node.targets:
                    if isinstance(name, ast.Name) and (target in BUILTINS or "." in target):
                        names.setdefault(name.id, target)
    return names


def _dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """The full name that an expression stands for, or None."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value, names)
        return None if inner is None else f"{inner}.{node.attr}"
    if isinstance(node, ast.Call) and len(node.args) >= 2:  # getattr(torch, "load"), importlib.import_module("pickle")
        called, last = _dotted(node.func, names), node.args[1]
        if called == "getattr" and isinstance(last, ast.Constant) and isinstance(last.value, str):
            inner = _dotted(node.args[0], names)
            return None if inner is None else f"{inner}.{last.value}"
    if (
        isinstance(node, ast.Call)
        and node.args
        and _dotted(node.func, names) in ("importlib.import_module", "__import__")
    ):
        first = node.args[0]
        return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
    return None


def _imports(tree: ast.AST) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in modules:
            if name.partition(".")[0] in MODULES:
                yield Finding(node.lineno, f"imports {name}")
            if name.partition(".")[0] in ("pickle", "_pickle", "cPickle") and name not in ("pickle", *ALLOWED_PICKLE):
                yield Finding(node.lineno, f"imports {name}")


def _references(tree: ast.AST, names: dict[str, str]) -> Iterator[Finding]:
    """Names that must not even be passed on."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name | ast.Call) or _is_given(node):
            continue
        if (name := _dotted(node, names)) is None:
            continue
        top = name.partition(".")[0]
        if top in ("pickle", "_pickle") and name not in (top, *ALLOWED_PICKLE):
            yield Finding(node.lineno, name)
        if isinstance(node, ast.Call) and top in (*MODULES, "pickle", "_pickle"):
            yield Finding(node.lineno, f"imports {name}")
        if name in (*SYSTEM, *OTHERS, *(y for y in YAML if y not in ("yaml.load", "yaml.load_all"))):
            yield Finding(node.lineno, name)
        if name in BUILTINS or name.removeprefix("builtins.") in BUILTINS:
            yield Finding(node.lineno, name)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in called and not _is_given(node):
            name = _dotted(node, names)
            if name in (*TENSORS, "numpy.load", *YAML):
                yield Finding(node.lineno, f"{name} is passed on")


def _is_given(node: ast.AST) -> bool:
    """Whether a name is given here (a field called "compile") and not used."""
    return isinstance(getattr(node, "ctx", None), ast.Store)


def _call(node: ast.Call, names: dict[str, str]) -> Iterator[Finding]:
    name = _dotted(node.func, names) or ""
    given = {k.arg: k.value for k in node.keywords}
    if name in TENSORS and not _is(given.get("weights_only"), True):
        yield Finding(node.lineno, f"{name} without weights_only=True")
    if name in ARRAYS[:2] and not _is(given.get("allow_pickle"), False):
        yield Finding(node.lineno, f"{name} without allow_pickle=False")
    if "allow_pickle" in given and not _is(given["allow_pickle"], False):
        yield Finding(node.lineno, f"{name} with allow_pickle")
    if "weights_only" in given and not _is(given["weights_only"], True):
        yield Finding(node.lineno, f"{name} with another weights_only than True")
    if name in YAML[:2]:
        yield Finding(node.lineno, f"{name} instead of safe_load")
    if "shell" in given and not _is(given["shell"], False):
        yield Finding(node.lineno, f"{name} with a shell")
    last = node.func.attr if isinstance(node.func, ast.Attribute) else name.rpartition(".")[2]
    if last in ARCHIVES:
        yield Finding(node.lineno, f"{name or last} of an archive")
    if None in given and name in (*TENSORS, *ARRAYS[:2]):
        yield Finding(node.lineno, f"{name} with options that are not seen here")


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
