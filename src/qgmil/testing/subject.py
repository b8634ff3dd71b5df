"""What is checked: small models of one kind, with weights that make every part matter, and small bags."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qgmil.bags.bag import PackedBags
from qgmil.errors import ConfigError, ContractError
from qgmil.models.base import Aggregator, ClosedForm
from qgmil.models.registry import create_model, find_entry, model_entries, model_options

#: Sizes by the name of the option, so that a check takes milliseconds; a model without the option keeps its own.
SMALL: Mapping[str, Any] = {"width": 32, "num_heads": 4, "ffn_dim": 48, "attention_dim": 16}


@dataclass(frozen=True)
class Subject:
    """An aggregator under test, and how to build small ones.

    Args:
        label: what messages call it.
        factory: ``factory(in_dim=, num_classes=, **options)``.
        cls: the class that the factory builds.
        in_dim: width of the features.
        num_classes: numbers of classes to check with.
        options: for every build.
        defaults: options that the aggregator has, with their defaults.
        registered: the name it is registered under, or None.
    """

    label: str
    factory: Callable[..., Aggregator]
    cls: type[Aggregator]
    in_dim: int
    num_classes: tuple[int, ...]
    options: Mapping[str, Any]
    defaults: Mapping[str, Any]
    registered: str | None

    @property
    def classes(self) -> int:
        """The largest number of classes: for checks that need no more than one."""
        return max(self.num_classes)

    @property
    def closed_form(self) -> bool:
        """Whether it is fitted in one go."""
        return issubclass(self.cls, ClosedForm)

    @property
    def noiseless(self) -> dict[str, Any]:
        """The options that take all chance out of its training."""
        return {option: value for option, value in self.cls.noiseless.items() if option in self.defaults}

    def build(
        self,
        num_classes: int | None = None,
        *,
        seed: int = 0,
        noiseless: bool = True,
        randomised: bool = True,
        **options: Any,
    ) -> Aggregator:
        """A model in evaluation mode, in float32.

        Args:
            num_classes: None: the largest that is asked for.
            seed: of its weights.
            noiseless: with the options that take all chance out of training.
            randomised: with weights of the size of a trained model's instead of its own initial ones.
            options: on top of the others.
        """  # fmt: skip
        torch.manual_seed(seed)
        classes = self.classes if num_classes is None else num_classes
        chance = self.noiseless if noiseless else {}
        model = self.factory(in_dim=self.in_dim, num_classes=classes, **{**self.options, **chance, **options})
        if randomised:
            randomise(model, seed)
        return model.eval()

    def bag(self, size: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal features ``(size, in_dim)``."""
        return features(size, self.in_dim, seed=seed, dtype=dtype)

    def bags(self, *sizes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> PackedBags:
        """Packed bags of the given sizes."""
        return PackedBags(self.bag(sum(sizes), seed=seed, dtype=dtype), sizes)


def make_subject(
    model: str | Aggregator | Callable[..., Aggregator],
    in_dim: int,
    num_classes: Sequence[int],
    options: Mapping[str, Any] | None,
) -> Subject:
    """See `qgmil.testing.check_aggregator`.

    Raises:
        ConfigError: an unknown name or option, or an instance of a class that no name builds.
        ContractError: a factory that does not build aggregators of the sizes it is given.
    """
    given = dict(options or {})
    if isinstance(model, Aggregator):
        entry = model_entries().get(model.name)
        if entry is None or entry.cls is not type(model):
            raise ConfigError(
                f"a {type(model).__name__} does not remember its options unless create_model built it: give its "
                "class, a factory or its registered name"
            )
        given = {**{k: v for k, v in model.config["options"].items() if k != "standardize"}, **given}
        model = model.name
    if isinstance(model, str):
        name, cls, defaults = model, find_entry(model).cls, model_options(model)
        small = {option: value for option, value in SMALL.items() if option in defaults}

        def build(**arguments: Any) -> Aggregator:
            return create_model(name, **arguments)

        chosen = {**small, **given}
        return Subject(name, build, cls, in_dim, tuple(num_classes), chosen, defaults, name)
    label = getattr(model, "__name__", repr(model))
    cls = type(_probe(model, label, in_dim, max(num_classes), given))
    defaults = _options_of(model, cls)
    small = {option: value for option, value in SMALL.items() if option in defaults}
    subject = Subject(label, model, cls, in_dim, tuple(num_classes), {**small, **given}, defaults, None)
    _probe(model, label, in_dim, max(num_classes), subject.options)
    return subject


def _probe(
    factory: Callable[..., Aggregator], label: str, in_dim: int, classes: int, options: Mapping[str, Any]
) -> Any:
    try:
        with torch.random.fork_rng(devices=[]):
            model = factory(in_dim=in_dim, num_classes=classes, **options)
    except Exception as error:
        raise ContractError(
            f"{label}(in_dim={in_dim}, num_classes={classes}, {dict(options)}) raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, Aggregator):
        raise ContractError(f"{label} built a {type(model).__name__}: it must build a qgmil.Aggregator")
    if (model.in_dim, model.num_classes) != (in_dim, classes):
        raise ContractError(
            f"{label}(in_dim={in_dim}, num_classes={classes}) built a model of in_dim={model.in_dim}, "
            f"num_classes={model.num_classes}: pass both on to Aggregator.__init__"
        )
    return model


def _options_of(factory: Callable[..., Aggregator], cls: type[Aggregator]) -> dict[str, Any]:
    """Options that the factory takes; where it passes any on, those of the class."""
    own = inspect.signature(factory).parameters
    sources = [own]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values()):
        sources.append(inspect.signature(cls.__init__).parameters)
    return {
        p.name: p.default
        for parameters in sources
        for p in parameters.values()
        if p.name not in ("self", "in_dim", "num_classes")
        and p.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    }


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of the size of a trained model's: at an initial size of 0.02 every attention is flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim >= 2:
                inputs = parameter.numel() / parameter.shape[0]
                parameter.copy_(1.5 * noise / inputs**0.5)
            elif name.endswith("weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            else:
                parameter.copy_(0.5 * noise)
    return model


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, the same for every dtype up to rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels_for(count: int, num_classes: int) -> Tensor:
    """Class indices ``(count,)`` going round the classes; 0 and 1 with one logit."""
    return torch.arange(count) % max(2, num_classes)
