"""The contract that every aggregator keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgmil.bags.bag import Bag, PackedBags
from qgmil.bags.packing import BagsLike, pack
from qgmil.errors import BagError, ConfigError
from qgmil.layers.compiled import CUDA_GRAPHS
from qgmil.layers.standardize import Standardize
from qgmil.models.output import BagOutput


@runtime_checkable
class ClosedForm(Protocol):
    """An aggregator that is fitted in one go instead of by gradient descent."""

    def fit_closed_form(
        self, bags: Iterable[Bag], classes: Sequence[str], *, class_weights: Tensor | None = None, seed: int = 0
    ) -> None:
        """Fit on labelled bags."""


class Aggregator(nn.Module, ABC):
    """Bags in, one prediction a bag out.

    A subclass implements `forward_packed`; packing, width checks, standardisation and the caller's layout are
    handled here, once. Built by `qgmil.create_model`, which also records `name` and `options`.

    Args:
        in_dim: width D of the instance features.
        num_classes: number of logits C; 1 means one logit with binary cross-entropy.

    Raises:
        ConfigError: a size below 1.
    """

    #: Options that are recomputed when one of the named options is given (a preset's value is then dropped).
    derived_options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: False where the original depends on the order of instances (TransMIL).
    permutation_invariant: ClassVar[bool] = True
    #: Values of options that take all chance out of training; those that a model does not have are ignored.
    noiseless: ClassVar[Mapping[str, Any]] = {"dropout": 0.0, "attention_dropout": 0.0}
    #: Ends of the names of weights that the mathematics leaves without a gradient: a constant added to all scores of
    #: a softmax, or to all keys, changes nothing.
    without_gradient: ClassVar[tuple[str, ...]] = ("attention_weights.bias", "k_proj.bias")
    #: The recipe of the method's original training, as fields of `qgmil.training.config.TrainConfig`.
    published_recipe: ClassVar[Mapping[str, Any]] = {}
    #: Whether `return_attention=True` can give instance weights. An instance may override it.
    has_attention: bool = True
    #: Whether ``auxiliary["class_attention"]`` ``(T, C)`` then has the weights of each class. As above.
    has_class_attention: bool = False
    #: A yardstick that every table shows (a probe, the bag's size, the class frequencies), not a contender.
    is_control: ClassVar[bool] = False

    def __init__(self, in_dim: int, num_classes: int) -> None:
        super().__init__()
        check_sizes(in_dim=in_dim, num_classes=num_classes)
        self.in_dim, self.num_classes = in_dim, num_classes
        self.name: str = type(self).__name__.lower()
        self.options: dict[str, Any] = {}
        self.standardize: Standardize | None = None
        #: Recompute blocks in the backward pass instead of keeping their activations. No effect without blocks.
        self.checkpointing = False
        #: Whether compiled parts record CUDA graphs.
        self.records = False

    @abstractmethod
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        """The aggregator itself, on packed bags; attention packed ``(T,)`` where it has any and it is asked for."""

    def forward(self, bags: BagsLike, mask: Tensor | None = None, *, return_attention: bool = False) -> BagOutput:
        """Predict.

        Args:
            bags: `PackedBags`, a `Bag` or several, ``(N, D)``, ``(B, N, D)`` or a nested jagged tensor.
            mask: ``(B, N)`` for dense input (bool, int or float; nonzero = valid). Padding is never read.
            return_attention: also return instance weights, laid out as the input was.

        Raises:
            BagError: an empty bag, the wrong feature width, or a mask that does not fit.
        """
        packed, layout = pack(bags, mask)
        packed = self.prepare(packed)
        out = self.forward_packed(packed, return_attention)
        if out.attention is not None:
            out.attention = layout.restore(out.attention)
        return out

    def prepare(self, bags: PackedBags) -> PackedBags:
        """Check the width, standardise if the model does, and bring the features to the weights' precision.

        Whatever computes on bags begins with this, once.
        """
        if self.records:  # else each compiled part would take back what those before it have made
            torch.compiler.cudagraph_mark_step_begin()
        if bags.features.shape[1] != self.in_dim:
            raise BagError(
                f"bag {bags.bag_ids[0]!r} has {bags.features.shape[1]} features an instance but this model was made "
                f"for {self.in_dim}: use features of the same encoder"
            )
        features = bags.features
        if self.standardize is not None:
            features = self.standardize(features)
        return bags.with_features(features.to(next(self.parameters()).dtype))

    def loss(
        self,
        output: BagOutput,
        labels: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Mean loss of a batch: cross-entropy, or binary cross-entropy with one logit.

        Args:
            output: of `forward`.
            labels: ``(B,)`` class indices; 0 or 1 with one logit.
            class_weights: ``(C,)`` (two with one logit); each bag's loss is multiplied by its class's. The mean is over
                bags, not over weights, so that they also count in batches of one bag.
            label_smoothing: share of the target spread over all classes.
        """
        return bag_losses(output.logits, labels, class_weights=class_weights, label_smoothing=label_smoothing).mean()

    def compile_parts(self, mode: str = "default", **options: Any) -> None:
        """Compile (`torch.compile`) what works row by row, for any number of rows: no bag size compiles it anew.

        Attention and pooling, whose shapes are the bags', stay as they are.

        Args:
            mode: of `torch.compile`; "reduce-overhead" records CUDA graphs, for small bags: one for each of few numbers
                of rows (`qgmil.layers.compiled`). A forward pass then ends what the one before has made for its
                backward pass: call backward before the next.
            options: others of `torch.compile`, such as ``backend``.

        Raises:
            ConfigError: this aggregator has no such parts.
        """
        self.compile_rowwise(mode, **options)
        self.records = mode == CUDA_GRAPHS

    def compile_rowwise(self, mode: str, **options: Any) -> None:
        """Compile the parts (`compile_module`); an aggregator that has some overrides this."""
        raise ConfigError(f"{self.name} has no parts to compile: leave compile at 'no'")

    @property
    def config(self) -> dict[str, Any]:
        """Everything that `create_model` needs to build this model again."""
        return {
            "name": self.name,
            "in_dim": self.in_dim,
            "num_classes": self.num_classes,
            "options": {**self.options, **({"standardize": True} if self.standardize is not None else {})},
        }

    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @classmethod
    def from_released(cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Self:
        """Build from a checkpoint of the method's original release.

        Raises:
            ConfigError: this aggregator has no released checkpoints, or they do not fit.
        """
        raise ConfigError(f"{cls.__name__} has no released weights to load")

    def to_released(self) -> dict[str, Tensor]:
        """The weights under the names of the method's original release.

        Raises:
            ConfigError: there is no release with this arrangement of weights.
        """
        raise ConfigError(f"{type(self).__name__} has no release to export to")


def bag_losses(
    logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each bag ``(B,)`` from logits ``(B, C)``, as `Aggregator.loss` describes it."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if logits.shape[1] == 1:  # one logit z is the two logits [0, z]
        logits = F.pad(logits, (1, 0))
    losses = F.cross_entropy(logits, labels.long(), label_smoothing=label_smoothing, reduction="none")
    if class_weights is None:
        return losses
    # Not torch's weight=: with smoothing it weighs the other classes' shares by their weights, not by the bag's own.
    return losses * class_weights.to(losses)[labels.long()]


def apply_head(head: nn.Module, embedding: Tensor) -> Tensor:
    """Logits in the head's own precision, also under autocast.

    bfloat16 keeps three decimal digits: logits rounded to it tie, and ties blur rankings and probabilities.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        return head(embedding.to(next(head.parameters()).dtype))


def check_sizes(**sizes: Any) -> None:
    """Options that count something.

    Raises:
        ConfigError: not a whole number of at least 1, by name.
    """
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_rates(**rates: Any) -> None:
    """Options that are probabilities.

    Raises:
        ConfigError: not in 0 <= p < 1 (NaN included), by name.
    """
    for name, value in rates.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ConfigError(f"{name} must be at least 0 and less than 1, got {value!r}")


def fold_standardization(state: dict[str, Tensor], model: Aggregator, linear: str) -> dict[str, Tensor]:
    """The state with the model's standardisation, if it has one, inside its first layer, called `linear`.

    ``W (x - mean) / std + b = (W / std) x + (b - (W / std) mean)``.
    """
    state = {k: v for k, v in state.items() if not k.startswith("standardize.")}
    if model.standardize is not None:
        weight = state[f"{linear}.weight"]
        scaled = weight.double() / model.standardize.std.double()
        shift = scaled @ model.standardize.mean.double()
        state[f"{linear}.weight"] = scaled.to(weight.dtype)
        state[f"{linear}.bias"] = (state[f"{linear}.bias"].double() - shift).to(weight.dtype)
    return state


def rename_state(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename the leading part of each key; the first prefix that fits wins."""
    renamed = {}
    for key, value in state.items():
        for old, new in names.items():
            if key.startswith(old):
                key = new + key.removeprefix(old)
                break
        renamed[key] = value.detach().clone()
    return renamed


def load_strict(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict; missing, unexpected and misshapen weights are one readable error.

    Raises:
        ConfigError: the weights do not fit the model.
    """
    own = model.state_dict()
    problems = [f"missing {k}" for k in own if k not in state] + [f"unexpected {k}" for k in state if k not in own]
    problems += [
        f"{k} is {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ConfigError(f"{what} does not fit {type(model).__name__}: {'; '.join(problems[:6])}{more}")
    model.load_state_dict(state, strict=True)
