"""Aggregators of other packages: entry points, and what docs/extending.md shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import qgmil
from cohort import make_cohort
from qgmil.errors import ConfigError
from qgmil.models import registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
Install = Callable[..., None]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S)


def install(folder: Path, package: str, point: str, source: str, module: str = "aggregators") -> None:
    """What pip leaves of a package: its module, and metadata with an entry point."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / package / f"{module}.py").write_text(source)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{point}\n")


@pytest.fixture
def discover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Looks for models anew, with `tmp_path` among the installed packages; returns the warnings' texts."""
    qgmil.list_models()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    def look() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            registry._discover.__wrapped__()
        return [str(w.message) for w in caught if "entry point" in str(w.message)]

    return look


def test_the_page_on_extending(tmp_path: Path, discover: Callable[[], list[str]]) -> None:
    """Its aggregator as its package registers it: it passes the suite, trains from the command line, and is found by
    a fresh process."""
    from qgmil.cli import main

    define, check, under_pytest = blocks("python")
    point = re.search(r'^\[project\.entry-points\."qgmil\.models"\]\n(.*)$', blocks("toml")[0], re.M)
    assert point is not None
    install(tmp_path, "my_package", point[1].replace('"', ""), define)
    assert discover() == []
    assert "sharp_abmil" in qgmil.list_models()
    exec(check, {})  # noqa: S102
    names: dict[str, Any] = {}
    exec(under_pytest, names)  # noqa: S102
    assert len(names["test_contract"].pytestmark[0].args[1]) > 15
    manifest = make_cohort(tmp_path / "cohort")
    with pytest.raises(SystemExit) as stop:
        typed = ["--model", "sharp_abmil", "--options.temperature", "0.3", "--epochs", "1", "-q"]
        main(["train", str(manifest), "-o", str(tmp_path / "run"), *typed])
    assert stop.value.code in (0, None)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["temperature"] == 0.3
    code = "import sys, qgmil; print(qgmil.load_model(sys.argv[1]).name)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "sharp_abmil"


def test_the_page_names_every_check_and_attribute() -> None:
    from qgmil.testing import list_checks

    page = PAGE.read_text()
    assert [name for name in list_checks() if f"`{name}`" not in page] == []
    named = re.findall(r"^\| `(\w+)` \| `", page, re.M)
    assert {"has_attention", "permutation_invariant", "noiseless", "is_control"} <= set(named)
    assert all(hasattr(qgmil.Aggregator, name) for name in named)


def test_a_broken_package_is_a_warning_that_names_it(tmp_path: Path, discover: Callable[[], list[str]]) -> None:
    before = qgmil.list_models()
    install(tmp_path, "broken_package", "theirs = broken_package.aggregators", "import no_such_module_anywhere")
    (message,) = discover()
    assert "theirs = 'broken_package.aggregators' of the package broken_package" in message
    assert "ModuleNotFoundError: No module named 'no_such_module_anywhere'" in message
    assert qgmil.list_models() == before


def test_a_package_cannot_take_a_name_that_is_there(tmp_path: Path, discover: Callable[[], list[str]]) -> None:
    source = (
        "from qgmil.models.registry import register_model\nfrom qgmil.models.simple import MeanPool\n\n"
        "@register_model('abmil', 'not ours')\nclass ABMIL(MeanPool):\n    pass\n"
    )
    install(tmp_path, "rude_package", "abmil = rude_package.aggregators", source)
    (message,) = discover()
    assert (
        "model name 'abmil' of rude_package.aggregators.ABMIL is already taken by qgmil.models.abmil.ABMIL" in message
    )
    assert type(qgmil.create_model("abmil", in_dim=2, num_classes=2)).__module__ == "qgmil.models.abmil"


def test_the_same_class_may_be_registered_again() -> None:
    """A reloaded module in a notebook."""
    from qgmil.models.simple import MeanPool

    registry.register_model("mean", registry.find_entry("mean").summary)(MeanPool)
    with pytest.raises(ConfigError, match="already taken"):
        registry.register_model("max", "another")(MeanPool)
    assert torch.isfinite(qgmil.create_model("mean", in_dim=2, num_classes=2)(torch.ones(3, 2)).logits).all()
