"""Who takes part in the speed figures, on which bags, and how much arithmetic it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from eager_reference import EagerQGMIL, pad
from measure import Step, peak_of, seconds_of
from torch import Tensor, nn

from qgmil import PackedBags, create_model, list_models
from qgmil.models.base import Aggregator
from qgmil.models.output import BagOutput
from qgmil.models.registry import model_options
from qgmil.training.device import autocast, choose_precision

IN_DIM, CLASSES = 1024, 2
OURS, ONE_BY_ONE, EAGER, LAYER, TRANSMIL = "qgmil", "qgmil, one by one", "eager", "encoder layer", "transmil"

#: Contenders whose row-wise parts are compiled, and the mode of `torch.compile`. On CPUs there are no CUDA graphs.
COMPILED = {"qgmil, compiled": "default", "qgmil, CUDA graphs": "reduce-overhead"}

#: 64 bags of single cells, their sizes skewed as those of blood smears are (DeepAPL's 82 patients have 59 to 821 cells,
#: half of them 123 to 157): four of five drawn from a log-normal around 130 with a spread of 0.16, the others from one
#: around 290 with 0.5, clipped to 60 and 800; numpy's default generator, seed 4.
# fmt: off
HAEMATOLOGY = (
    183, 132, 143, 316, 170, 127, 132, 532, 135, 146, 143, 108, 113, 85, 124, 161, 108, 158, 124, 128, 129, 131,
    113, 800, 129, 143, 147, 115, 148, 114, 126, 137, 129, 127, 135, 118, 117, 125, 151, 127, 176, 134, 496, 121,
    169, 432, 121, 113, 160, 152, 144, 317, 163, 148, 106, 147, 133, 127, 146, 130, 81, 166, 153, 127,
)
# fmt: on


@dataclass(frozen=True)
class Case:
    """One step to measure.

    Args:
        contender: one of `contenders()` or `COMPILED`, or "qgmil, one by one" (a forward, or a step, for each bag).
        sizes: instances of each bag of the batch.
        mode: "forward" (inference mode) or "train" (forward and loss, then backward; dropout as released).
        dtype: "float32", or "bfloat16" for the autocast that training uses.
        device: "cpu" or "cuda".
        threads: of torch; None leaves them alone.
    """

    contender: str
    sizes: tuple[int, ...]
    mode: str
    dtype: str
    device: str = "cpu"
    threads: int | None = None


def contenders() -> tuple[str, ...]:
    """Those that a single bag is measured on; TransMIL where the registry has it."""
    return (OURS, EAGER, LAYER, *([TRANSMIL] if TRANSMIL in list_models() else []))


class EncoderLayer(nn.Module):
    """The peer off the shelf: ``nn.TransformerEncoderLayer`` of QG-MIL's sizes, mean pooling and a linear head.

    Its fused inference path is switched off because it makes the whole N x N map, and its dropout on attention weights
    (which QG-MIL has not) because it would do so in training: this is the layer at its best on a large bag.
    """

    def __init__(self) -> None:
        super().__init__()
        options = model_options(OURS)
        width, dropout = options["width"], options["dropout"]
        torch.backends.mha.set_fastpath_enabled(False)
        self.input_proj = nn.Linear(IN_DIM, width)
        self.layer = nn.TransformerEncoderLayer(
            width, options["num_heads"], options["ffn_dim"], dropout, batch_first=True, norm_first=True
        )
        self.layer.self_attn.dropout = 0.0
        self.head = nn.Linear(width, CLASSES)

    def forward(self, bags: PackedBags) -> BagOutput:
        """One bag ``(1, N, D)``."""
        embedding = self.layer(self.input_proj(bags.features[None])).mean(dim=1)
        return BagOutput(self.head(embedding), embedding)


def prepare(case: Case) -> Step:
    """The step, with model, features and labels made and nothing else done yet."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    features = torch.randn(sum(case.sizes), IN_DIM, device=case.device)
    labels = torch.arange(len(case.sizes), device=case.device) % CLASSES
    bags = PackedBags(features, case.sizes, labels)
    model, parts = _inputs(case, bags)
    precision = choose_precision("bf16" if case.dtype == "bfloat16" else "32", case.device)

    def forward() -> None:
        with torch.inference_mode(), autocast(precision, case.device):
            for inputs, _ in parts:
                model(*inputs)

    def train() -> None:
        for inputs, target in parts:
            with autocast(precision, case.device):  # as in training, the backward pass is outside
                loss = _loss(model, model(*inputs), target)
            loss.backward()
        model.zero_grad(set_to_none=True)

    model.train(case.mode == "train")
    return train if case.mode == "train" else forward


def _inputs(case: Case, bags: PackedBags) -> tuple[nn.Module, list[tuple[tuple[PackedBags | Tensor, ...], Tensor]]]:
    """The model, and for each of its passes the arguments and the labels."""
    assert bags.labels is not None
    if case.contender == LAYER:
        return EncoderLayer().to(case.device), [((bags,), bags.labels)]
    name = TRANSMIL if case.contender == TRANSMIL else OURS
    model = create_model(name, in_dim=IN_DIM, num_classes=CLASSES).to(case.device)
    if case.contender in COMPILED:
        model.compile_parts(COMPILED[case.contender])
    if case.contender == EAGER:
        return EagerQGMIL(model), [(pad(bags), bags.labels)]
    if case.contender == ONE_BY_ONE:
        each = zip(bags.unpack(bags.features), bags.labels.split(1), strict=True)
        return model, [((PackedBags(rows, (len(rows),)),), label) for rows, label in each]
    return model, [((bags,), bags.labels)]


def _loss(model: nn.Module, out: BagOutput, labels: Tensor) -> Tensor:
    if isinstance(model, Aggregator):
        return model.loss(out, labels)
    return F.cross_entropy(out.logits.float(), labels)


def memory_of(case: Case) -> dict[str, float]:
    """Peak memory of the step over model and features, and its seconds; to be called in a fresh process.

    A step on tiny bags goes first: what libraries set up once for a process is nobody's working memory.
    """
    prepare(replace(case, sizes=(8,) * len(case.sizes)))()
    return peak_of(prepare(case), case.device)


def warm_seconds(case: Case) -> float:
    """Seconds of one step after one that does not count."""
    step = prepare(case)
    step()
    return seconds_of(step, case.device)


def needed_flops(sizes: tuple[int, ...], mode: str) -> float:
    """Floating-point operations that QG-MIL needs for one step: matrix products only, without padding.

    Forward: a linear layer on T instances ``2 T in out``; attention ``4 N^2 H d`` for each bag of N; the weighted sum
    of the pooling ``2 T width``; the head on B bags. Backward: twice that, without the gradient of the features, which
    nobody asks for (``2 T in_dim width`` less); attention 2.5 times its forward, because no fused kernel keeps the map
    and one of its two products is made again. Norms, activations and softmax count nothing.
    """
    options = model_options(OURS)
    width, heads, hidden = options["width"], options["num_heads"], options["ffn_dim"]
    head_dim = options["head_dim"] or width // heads
    total, bags = sum(sizes), len(sizes)
    first = 2.0 * total * IN_DIM * width
    block = width * (4 * heads * head_dim + heads) + 3 * width * hidden  # q and its headwise gate, k, v, o; SwiGLU
    pooling = 2 * width * (width // 2) + width // 2 + width  # V, U, w, the weighted sum
    head = width * (width // 2) + (width // 2) * CLASSES
    linear = first + 2.0 * total * (options["num_layers"] * block + pooling) + 2.0 * bags * head
    attention = options["num_layers"] * sum(4.0 * n * n * heads * head_dim for n in sizes)
    if mode == "forward":
        return linear + attention
    return linear + attention + (2 * linear - first) + 2.5 * attention
