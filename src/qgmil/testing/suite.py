"""The suite: all checks in order, run together or one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from qgmil.errors import ConfigError, ContractError
from qgmil.models.base import Aggregator
from qgmil.testing import invariance, learning, losses, outputs, scale, storage
from qgmil.testing.subject import Subject, make_subject

Model = str | Aggregator | Callable[..., Aggregator]
Check = Callable[[Subject], None]

_ORDER: tuple[Check, ...] = (
    outputs.check_shapes,
    outputs.check_attention,
    outputs.check_errors,
    invariance.check_permutation,
    invariance.check_padding,
    invariance.check_layouts,
    invariance.check_batch,
    learning.check_gradients,
    learning.check_noiseless_training,
    learning.check_evaluation,
    learning.check_chance,
    learning.check_seeds,
    learning.check_overfits,
    losses.check_loss,
    storage.check_save_and_load,
    storage.check_state_dict,
    storage.check_dtypes,
    storage.check_bfloat16,
    storage.check_devices,
    scale.check_bag_sizes,
    scale.check_feature_scales,
    scale.check_large_bag,
)
CHECKS: Mapping[str, Check] = {check.__name__.removeprefix("check_"): check for check in _ORDER}


def list_checks() -> dict[str, str]:
    """Names of the checks, in the order in which they run, with what each asks."""
    return {name: " ".join((check.__doc__ or "").split()) for name, check in CHECKS.items()}


def check_aggregator(
    model: Model,
    *,
    in_dim: int = 12,
    num_classes: Sequence[int] = (1, 2, 5),
    options: Mapping[str, Any] | None = None,
    skip: Sequence[str] = (),
) -> None:
    """Run the contract's checks on an aggregator; returns if it keeps all of them.

    Models are built small: options called ``width``, ``num_heads``, ``ffn_dim`` and ``attention_dim`` get small values
    unless `options` says otherwise. Random numbers drawn elsewhere are not disturbed.

    Args:
        model: a registered name, a model that `create_model` built, or what builds one: a class, or
            ``factory(in_dim=, num_classes=, **options)``.
        in_dim: width of the features.
        num_classes: numbers of classes to check with.
        options: of the aggregator.
        skip: names of checks to leave out (`list_checks`).

    Raises:
        ContractError: one for all failures: each check, the model, the input and the two values.
        ConfigError: an unknown name, option or check.
    """
    unknown = [name for name in skip if name not in CHECKS]
    if unknown:
        raise ConfigError(f"no checks of that name: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    failures = []
    first: Exception | None = None
    for name, check in aggregator_checks(model, in_dim=in_dim, num_classes=num_classes, options=options):
        if name in skip:
            continue
        try:
            check()
        except ContractError as error:
            failures.append(str(error))
            first = first or error
    if len(failures) == 1:
        assert first is not None
        raise first
    if failures:
        raise ContractError(f"{len(failures)} checks failed:\n" + "\n".join(failures)) from first


def aggregator_checks(
    model: Model,
    *,
    in_dim: int = 12,
    num_classes: Sequence[int] = (1, 2, 5),
    options: Mapping[str, Any] | None = None,
) -> list[tuple[str, Callable[[], None]]]:
    """The checks of `check_aggregator` one by one, for a test framework: names, and functions to call.

    ```python
    @pytest.mark.parametrize(("name", "check"), aggregator_checks("abmil_gated"))
    def test_contract(name, check):
        check()
    ```

    Args and errors as `check_aggregator`.
    """
    subject = make_subject(model, in_dim, num_classes, options)
    return [(name, partial(run_check, name, check, subject)) for name, check in CHECKS.items()]


def run_check(name: str, check: Check, subject: Subject) -> None:
    """Run one check under its own random numbers.

    Raises:
        ContractError: it failed, or the model raised something; the message begins with the model and the check.
    """
    where = f"{subject.label} {dict(subject.options)}, check {name!r}"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            check(subject)
    except ContractError as error:
        raise ContractError(f"{where}: {error}") from None
    except Exception as error:
        raise ContractError(f"{where} ({list_checks()[name]}): raised {type(error).__name__}: {error}") from error
