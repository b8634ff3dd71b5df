"""The suite itself: aggregators that break one part of the contract each are caught by that check, with its values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qgmil
from qgmil.bags.bag import Bag, PackedBags
from qgmil.errors import ConfigError, QGMILError
from qgmil.layers.pooling import segment_mean, segment_softmax, weighted_sum
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput
from qgmil.testing import ContractError, aggregator_checks, check_aggregator, list_checks


class Sound(Aggregator):
    """Attention pooling that keeps the contract; those below break it in one place."""

    def __init__(self, in_dim: int, num_classes: int, *, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__(in_dim, num_classes)
        self.embed = nn.Sequential(nn.Linear(in_dim, width), nn.Tanh(), nn.Dropout(dropout))
        self.attention_weights = nn.Linear(width, 1)
        self.head = nn.Linear(width, num_classes)

    def weights(self, h: Tensor, sizes: Sequence[int]) -> Tensor:
        return segment_softmax(self.attention_weights(h).squeeze(-1), sizes)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        h = self.embed(bags.features)
        attention = self.weights(h, bags.sizes)
        z = weighted_sum(attention, h, bags.sizes)
        logits = self.head(z.to(self.head.weight.dtype)).float() if z.dtype == torch.bfloat16 else self.head(z)
        return BagOutput(logits, z, attention if return_attention else None)


class TouchesPadding(Sound):
    def forward(self, bags: Any, mask: Tensor | None = None, *, return_attention: bool = False) -> BagOutput:
        if mask is not None and isinstance(bags, Tensor) and bags.ndim == 3:
            bags, mask = bags.nan_to_num(0.0), torch.ones_like(mask)
        return super().forward(bags, mask, return_attention=return_attention)


class DependsOnOrder(Sound):
    def weights(self, h: Tensor, sizes: Sequence[int]) -> Tensor:
        place = torch.cat([torch.linspace(0, 1, n) for n in sizes])
        return segment_softmax((self.attention_weights(h).squeeze(-1) + place).to(h.dtype), sizes)


class MixesBags(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        output = super().forward_packed(bags, return_attention)
        output.logits = output.logits + 0.1 * output.logits.mean(dim=0)
        return output


class MixesGradients(Sound):
    """Outputs are those of single bags, the gradient is not: the loss is a sum."""

    def loss(self, output: BagOutput, labels: Tensor, **options: Any) -> Tensor:
        return super().loss(output, labels, **options) * len(labels)


class AttentionTooLarge(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        output = super().forward_packed(bags, return_attention)
        if output.attention is not None:
            output.attention = output.attention * 1.5
        return output


class NegativeAttention(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        output = super().forward_packed(bags, return_attention)
        if output.attention is not None:
            output.attention = torch.cat([2 * part - 1 / len(part) for part in bags.unpack(output.attention)])
        return output


class ForgetsAttention(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        return super().forward_packed(bags, False)


class AttentionIsNotFree(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        output = super().forward_packed(bags, return_attention)
        output.logits = output.logits + float(return_attention)
        return output


class Quadratic(Sound):
    def weights(self, h: Tensor, sizes: Sequence[int]) -> Tensor:
        parts = [(part @ part.T).tanh().mean(dim=1) for part in h.split(list(sizes))]
        return segment_softmax(self.attention_weights(h).squeeze(-1) + torch.cat(parts), sizes)


class QuadraticInBlocks(Sound):
    """No large tensor at once, but all blocks are kept for the backward pass."""

    def weights(self, h: Tensor, sizes: Sequence[int]) -> Tensor:
        parts = []
        for bag in h.split(list(sizes)):
            parts += [(rows @ bag.T).tanh().mean(dim=1) for rows in bag.split(500)]
        return segment_softmax(self.attention_weights(h).squeeze(-1) + torch.cat(parts), sizes)


class DeadParameter(Sound):
    def __init__(self, in_dim: int, num_classes: int, **options: Any) -> None:
        super().__init__(in_dim, num_classes, **options)
        self.unused = nn.Linear(3, 3)


class ZeroGradient(Sound):
    def weights(self, h: Tensor, sizes: Sequence[int]) -> Tensor:
        return segment_softmax(0 * self.attention_weights(h).squeeze(-1), sizes)


class NoisyEvaluation(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        noisy = bags.with_features(bags.features + 1e-3 * torch.randn_like(bags.features))
        return super().forward_packed(noisy, return_attention)


class RandomButUnused(Sound):
    """Evaluation draws a number and does nothing with it: training after it differs."""

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        torch.rand(1)
        return super().forward_packed(bags, return_attention)


class ChangesItsInput(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        if not bags.features.requires_grad:
            bags.features.mul_(1.01)
        return super().forward_packed(bags, return_attention)


class HiddenNoise(Sound):
    """Chance in training that no option in `noiseless` takes out."""

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        x = bags.features
        kept = bags.with_features(x * (1 + 0.1 * torch.rand_like(x))) if self.training else bags
        return super().forward_packed(kept, return_attention)


class DropoutThatDoesNothing(Sound):
    def __init__(self, in_dim: int, num_classes: int, *, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__(in_dim, num_classes, width=width, dropout=0.0)


class StateDependsOnSeed(Sound):
    def __init__(self, in_dim: int, num_classes: int, **options: Any) -> None:
        super().__init__(in_dim, num_classes, **options)
        self.register_buffer("noise", torch.zeros(int(torch.randint(1, 1000, ()))))


class SeedsItself(Sound):
    def __init__(self, in_dim: int, num_classes: int, **options: Any) -> None:
        torch.manual_seed(0)
        super().__init__(in_dim, num_classes, **options)


class TensorLeftBehind(Sound):
    def __init__(self, in_dim: int, num_classes: int, **options: Any) -> None:
        super().__init__(in_dim, num_classes, **options)
        self.scale = torch.ones(())


class ForgetsToSave(Sound):
    """What it says depends on a number that is in no state."""

    def __init__(self, in_dim: int, num_classes: int, **options: Any) -> None:
        super().__init__(in_dim, num_classes, **options)
        self.shift = float(torch.rand(()))

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        output = super().forward_packed(bags, return_attention)
        output.logits = output.logits + self.shift
        return output


class Float32Only(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        output = super().forward_packed(bags, return_attention)
        output.logits = output.logits.float()
        return output


class Overflows(Sound):
    def weights(self, h: Tensor, sizes: Sequence[int]) -> Tensor:
        score = (100 * self.attention_weights(h).squeeze(-1)).exp()
        return torch.cat([part / part.sum() for part in score.split(list(sizes))])


class NeedsTwo(Sound):
    def weights(self, h: Tensor, sizes: Sequence[int]) -> Tensor:
        spread = torch.cat([part.std(dim=0).mean().expand(len(part)) for part in h.split(list(sizes))])
        return segment_softmax(self.attention_weights(h).squeeze(-1) + spread, sizes)


class IgnoresClassWeights(Sound):
    def loss(self, output: BagOutput, labels: Tensor, **options: Any) -> Tensor:
        return super().loss(output, labels, label_smoothing=options.get("label_smoothing", 0.0))


class IgnoresSmoothing(Sound):
    def loss(self, output: BagOutput, labels: Tensor, **options: Any) -> Tensor:
        return super().loss(output, labels, class_weights=options.get("class_weights"))


class MeanOverWeights(Sound):
    def loss(self, output: BagOutput, labels: Tensor, **options: Any) -> Tensor:
        weights = options.get("class_weights")
        total = super().loss(output, labels, **options)
        return total if weights is None else total / weights[labels.long()].to(total).mean()


class CannotLearn(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        return super().forward_packed(
            bags.with_features(bags.features / (1e3 * bags.features.abs().amax())), return_attention
        )


class AcceptsAnyWidth(Sound):
    def prepare(self, bags: PackedBags) -> PackedBags:
        features = bags.features[:, : self.in_dim].to(next(self.parameters()).dtype)
        return bags.with_features(features)


class WrongShape(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        output = super().forward_packed(bags, return_attention)
        output.logits = output.logits.squeeze(1)
        return output


class ClassAttentionOfTheWrongClass(Sound):
    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        output = super().forward_packed(bags, return_attention)
        if output.attention is not None:
            even = torch.cat([torch.full_like(part, 1 / len(part)) for part in bags.unpack(output.attention)])
            output.auxiliary["class_attention"] = even[:, None].expand(-1, self.num_classes)
        return output


class WrongFit(Aggregator):
    """Closed form, and confidently wrong."""

    has_attention = False

    def __init__(self, in_dim: int, num_classes: int) -> None:
        super().__init__(in_dim, num_classes)
        self.head = nn.Linear(in_dim, num_classes)

    def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
        z = segment_mean(bags.features, bags.sizes)
        return BagOutput(self.head(z).float() if z.dtype == torch.bfloat16 else self.head(z), z)

    def fit_closed_form(self, bags: Iterable[Bag], classes: Sequence[str], **options: Any) -> None:
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(10.0 * (torch.arange(self.num_classes) == self.num_classes - 1))


BROKEN: list[tuple[type[Aggregator], str, str]] = [
    (TouchesPadding, "padding", r"of bag 0 padded with nan to 5 instances .* is .* but must be"),
    (DependsOnOrder, "permutation", r"logits of a bag of 2 instances in another order"),
    (MixesBags, "batch", r"logits of a batch of bags of \(4, 1, 7\) instances"),
    (MixesGradients, "batch", r"gradient \(of the sum of the losses\) of .* of a batch"),
    (MixesGradients, "loss", r"against the mean over the bags alone"),
    (AttentionTooLarge, "attention", r"sum over each bag .* is 1\.5 but must be 1 "),
    (NegativeAttention, "attention", r"the least weight is -.* but must be at least 0"),
    (ForgetsAttention, "attention", r"has_attention is True but"),
    (AttentionIsNotFree, "attention", r"logits .* with return_attention=True"),
    (ClassAttentionOfTheWrongClass, "attention", r"against that of the predicted class"),
    (Quadratic, "large_bag", r"largest tensor .* 25000000 elements .*5000, 5000"),
    (QuadraticInBlocks, "large_bag", r"bytes kept for the backward pass .* must be at most 10 times"),
    (DeadParameter, "gradients", r"unused\.weight gets no gradient"),
    (ZeroGradient, "gradients", r"gradient of attention_weights\.weight .* is zero everywhere"),
    (NoisyEvaluation, "evaluation", r"logits of the same bags a second time .* is .* but must be"),
    (RandomButUnused, "evaluation", r"draws random numbers"),
    (ChangesItsInput, "evaluation", r"features of the bags after the forward pass .* is .* but must be"),
    (HiddenNoise, "noiseless_training", r"in training mode with \{'dropout': 0\.0\}"),
    (DropoutThatDoesNothing, "chance", r"dropout=0\.5 changes nothing in training mode"),
    (StateDependsOnSeed, "state_dict", r"noise is .* and "),
    (SeedsItself, "seeds", r"initial weights under seeds 3 and 4 are the same"),
    (TensorLeftBehind, "devices", r"scale is a tensor but neither a parameter nor a buffer"),
    (ForgetsToSave, "save_and_load", r"logits of the saved and loaded model .* is .* but must be"),
    (Float32Only, "dtypes", r"logits of a model after double\(\): dtype is torch\.float32, not float64"),
    (Overflows, "feature_scales", r"bag of 9 huge \(1e4\) instances .* nan but must be finite"),
    (NeedsTwo, "bag_sizes", r"of a bag of 1 instances in evaluation mode.* nan but must be finite"),
    (IgnoresClassWeights, "loss", r"whether its class weighs 1 or 2"),
    (IgnoresSmoothing, "loss", r"with and without label_smoothing=0\.2"),
    (MeanOverWeights, "loss", r"class_weights=.*against the mean over the bags alone"),
    (CannotLearn, "overfits", r"cross-entropy after 300 AdamW steps .* must be below 0\.1"),
    (WrongFit, "overfits", r"cross-entropy after the closed-form fit .* must be at most that of the class frequencies"),
    (AcceptsAnyWidth, "errors", r"features of width 13: accepted but must raise BagError"),
    (WrongShape, "shapes", r"logits of bags of \(4, 1, 6\) instances, num_classes=1: shape is \(3,\) but must be"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "check", "message"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_aggregator_is_caught(broken: type[Aggregator], check: str, message: str) -> None:
    checks = dict(aggregator_checks(broken))
    with pytest.raises(ContractError) as caught:
        checks[check]()
    text = str(caught.value)
    assert text.startswith(broken.__name__) and f"check {check!r}" in text
    assert re.search(message, text), text


def test_a_sound_aggregator_passes() -> None:
    assert check_aggregator(Sound, options={"width": 16}) is None


def test_every_check_has_a_broken_aggregator() -> None:
    """Of the others: layouts and bfloat16 are tested below."""
    assert set(list_checks()) - {check for _, check, _ in BROKEN} == {"layouts", "bfloat16"}


def test_layouts_and_half_precision_are_caught() -> None:
    class OnlyTensors(Sound):
        def forward(self, bags: Any, mask: Tensor | None = None, *, return_attention: bool = False) -> BagOutput:
            listed = isinstance(bags, tuple) and isinstance(bags[0], Bag)
            output = super().forward(bags, mask, return_attention=return_attention)
            return BagOutput(output.logits.flip(0), output.embedding, output.attention) if listed else output

    with pytest.raises(ContractError, match=r"logits of bags of \(3, 1, 5\) instances given as a tuple of Bag"):
        dict(aggregator_checks(OnlyTensors))["layouts"]()

    class HalfLogits(Sound):
        def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
            output = super().forward_packed(bags, return_attention)
            half = torch.is_autocast_enabled("cpu")
            return BagOutput(output.logits.bfloat16() if half else output.logits, output.embedding, output.attention)

    with pytest.raises(ContractError, match=r"autocast to bfloat16: torch\.bfloat16 instead of float32"):
        dict(aggregator_checks(HalfLogits))["bfloat16"]()


def test_all_failures_are_one_error_and_each_is_named() -> None:
    class TwiceBroken(AttentionTooLarge, NoisyEvaluation):
        pass

    with pytest.raises(ContractError) as caught:
        check_aggregator(TwiceBroken, num_classes=(2,), skip=("large_bag", "overfits"))
    text = str(caught.value)
    assert "checks failed" in text.splitlines()[0]
    assert "check 'attention'" in text and "check 'evaluation'" in text
    assert isinstance(caught.value, QGMILError) and isinstance(caught.value, AssertionError)


def test_what_a_model_raises_is_part_of_the_message() -> None:
    class Raises(Sound):
        def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
            raise KeyError("surprise")

    with pytest.raises(ContractError, match=r"Raises .*check 'shapes'.* raised KeyError: 'surprise'"):
        dict(aggregator_checks(Raises))["shapes"]()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda in_dim, num_classes: nn.Linear(in_dim, num_classes), r"built a Linear: it must build a"),
        (lambda in_dim, num_classes: Sound(in_dim, 2), r"built a model of in_dim=12, num_classes=2"),
        (lambda width: Sound(12, 2), r"raised TypeError"),
    ],
)  # fmt: skip
def test_a_factory_that_does_not_build_says_so(model: Callable[..., Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_aggregator(model)


def test_names_factories_and_built_models_are_the_same() -> None:
    def factory(*, in_dim: int, num_classes: int, **options: Any) -> Aggregator:
        return Sound(in_dim, num_classes, **options)

    built = qgmil.create_model("mean", in_dim=3, num_classes=2, width=8)
    for model in ("mean", built, factory, Sound):
        assert [name for name, _ in aggregator_checks(model)] == list(list_checks())
        for name in ("shapes", "noiseless_training", "chance", "save_and_load"):
            dict(aggregator_checks(model))[name]()
    with pytest.raises(ConfigError, match="Sound does not remember its options"):
        check_aggregator(Sound(3, 2))
    with pytest.raises(ConfigError, match="unknown model 'meen'"):
        check_aggregator("meen")
    with pytest.raises(ConfigError, match=r"no checks of that name: nothing; there are shapes, "):
        check_aggregator("mean", skip=["nothing"])


def test_checks_leave_the_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for name, check in aggregator_checks("mean"):
        if name != "large_bag":
            check()
    assert torch.equal(torch.rand(3), expected)


def test_the_predicted_class_is_what_class_attention_is_compared_with() -> None:
    """Not always the first column: an aggregator whose attention is that of the predicted class passes."""

    class ByClass(Sound):
        def forward_packed(self, bags: PackedBags, return_attention: bool) -> BagOutput:
            output = super().forward_packed(bags, return_attention)
            if output.attention is not None:
                even = torch.cat([torch.full_like(part, 1 / len(part)) for part in bags.unpack(output.attention)])
                said = torch.repeat_interleave(output.logits.argmax(dim=1), torch.tensor(bags.sizes))
                columns = [torch.where(said == c, output.attention, even) for c in range(self.num_classes)]
                output.auxiliary["class_attention"] = torch.stack(columns, dim=1)
            return output

    dict(aggregator_checks(ByClass))["attention"]()
