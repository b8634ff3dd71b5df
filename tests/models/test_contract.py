"""Every registered model keeps every part of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import qgmil
from qgmil.models.registry import find_entry
from qgmil.testing import aggregator_checks


def cases() -> Iterator[Any]:
    """Model and check; what is slow is run for one preset of a class and, marked so, for the others."""
    seen: set[type] = set()
    for name in qgmil.list_models():
        cls = find_entry(name).cls
        for check_name, check in aggregator_checks(name):
            slow = check_name == "large_bag" and cls in seen
            yield pytest.param(check, id=f"{name}-{check_name}", marks=[pytest.mark.slow] if slow else [])
        seen.add(cls)


@pytest.mark.parametrize("check", list(cases()))
def test_contract(check: Callable[[], None]) -> None:
    check()
