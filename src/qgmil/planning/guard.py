"""Training that would run out of memory is refused before its first step, and running out names the bags."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import traceback
from collections.abc import Callable, Iterator

import torch

from qgmil.bags.bag import PackedBags
from qgmil.bags.dataset import BagDataset
from qgmil.errors import ConfigError
from qgmil.models.base import Aggregator
from qgmil.models.registry import create_model
from qgmil.planning.available import available_memory
from qgmil.planning.batches import Batch, largest_batch
from qgmil.planning.heap import map_large_blocks
from qgmil.planning.memory import Estimate, estimate
from qgmil.planning.remedies import Option, Remedy, find_remedies

logger = logging.getLogger(__name__)

#: Batches of at most `SMALL` instances are not traced where, beside the weights, their gradients and moments, `AMPLE`
#: bytes are available: even eager attention with 8 heads that keeps six float32 maps takes less than 4 GB then.
SMALL, AMPLE = 4096, 8 * 1024**3
#: Share of the available memory above which the user is told, and large blocks are mapped.
TIGHT = 0.8
#: What an allocator says when there is nothing left.
SIGNS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "ALLOC_FAILED")


def check_memory(
    model: Aggregator,
    train: BagDataset,
    val: BagDataset | None,
    *,
    batch_size: int,
    sample: int | None,
    eval_sample: int | None,
    precision: str,
    device: str,
) -> None:
    """Compare what the largest batches will take with what is available.

    Args:
        model: as it will be trained; stays as it is.
        train, val: bags; only headers of their largest files are read.
        batch_size, sample, eval_sample: as in training.
        precision: Lightning's name.
        device: where to train.

    Raises:
        ConfigError: they do not fit. The message names the bag, its size, the prediction, what is available, and what
            would fit.
    """
    available = available_memory(device)
    if available is None:
        return
    held = 0
    if device == "cpu":
        held = sum(bags.bytes_on_disk() for bags in (train, val) if bags is not None and bags.keeps_in_memory)
    for bags, most, training in ((train, sample, True), (val, eval_sample, False)):
        batch = None if bags is None else largest_batch(bags, batch_size, most)
        if batch is not None and not _surely_fits(model, batch, available - held):
            _check(model, batch, available, held, training, precision, device)


def _surely_fits(model: Aggregator, batch: Batch, free: int) -> bool:
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return sum(batch.sizes) <= SMALL and free - 4 * weights >= AMPLE


def _check(
    model: Aggregator, batch: Batch, available: int, held: int, training: bool, precision: str, device: str
) -> None:
    free = available - held
    found = _estimate(json.dumps(model.config), model.checkpointing, batch.sizes, training, precision, device)
    if found.bytes <= TIGHT * free:
        return
    if device == "cpu" and map_large_blocks():
        logger.debug("memory is tight: large blocks are mapped")
    what = "training" if training else "validation"
    if found.tensors <= free:
        logger.info(
            "memory is tight: %s on %s takes about %s of the %s available; if it runs out, %s",
            what, batch, size(found.tensors), size(free), _typed_remedies(training, len(batch.sizes)),
        )  # fmt: skip
        return
    sample_option = "sample" if training else "eval_sample"
    fresh = _uncompiled(model)
    fit, short = find_remedies(
        fresh,
        batch.sizes,
        free,
        training=training,
        precision=precision,
        device=device,
        sample_option=sample_option,
    )
    data = f" (after {size(held)} for the bags that are kept in memory)" if held else ""
    raise ConfigError(
        f"{what} will not fit into memory: its largest batch, {batch}, takes about {size(found.tensors)} and {device} "
        f"has {size(max(0, free))} available{data}; {offers(fit, short)}; to try it all the same, "
        "--no-memory-check (memory_check=False in Python)"
    )


def offers(fit: list[Remedy], short: list[Remedy]) -> str:
    """What fits and what does not, in words."""
    said = ["what fits: " + "; or ".join(f"{r}: {size(r.bytes)}" for r in fit) if fit else "nothing that is known fits"]
    if short:
        said.append("not enough alone: " + ", ".join(f"{r}: {size(r.bytes)}" for r in short))
    return "; ".join(said)


def size(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


@functools.lru_cache(maxsize=64)
def _estimate(
    config: str, checkpointing: bool, sizes: tuple[int, ...], training: bool, precision: str, device: str
) -> Estimate:
    """Kept, because every fold and seed of a run asks the same."""
    model = _built(config, checkpointing)
    return estimate(model, sizes, training=training, precision=precision, device=device)


def _uncompiled(model: Aggregator) -> Aggregator:
    return _built(json.dumps(model.config), model.checkpointing)


def _built(config: str, checkpointing: bool) -> Aggregator:
    """The model again, without compiled parts, which cannot be traced; the random numbers of training are untouched."""
    values = json.loads(config)
    with torch.random.fork_rng(devices=[]):
        model = create_model(
            values["name"], in_dim=values["in_dim"], num_classes=values["num_classes"], **values["options"]
        )
    model.checkpointing = checkpointing
    return model


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch, numpy or Python had nothing left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextlib.contextmanager
def explained_memory_errors(batch: PackedBags | Callable[[], PackedBags | None], *, training: bool) -> Iterator[None]:
    """Turns running out of memory into a `ConfigError` with the bags of the batch, their sizes and what to do.

    Args:
        batch: that is worked on; or what gives it, or None between batches.
        training: whether the remedies are those of training.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold all the tensors of the step
        raise ConfigError(_ran_out(error, batch if isinstance(batch, PackedBags) else batch(), training)) from None


def _ran_out(error: BaseException, batch: PackedBags | None, training: bool) -> str:
    doing = "training" if training else "predicting"
    if batch is None:
        where, count = "between batches, where bags are read", 2
    else:
        where, count = f"on {Batch.of(batch.bag_ids, batch.sizes)}", len(batch)
    largest = None if batch is None else max(batch.sizes)
    plan = f"; qgmil plan --instances {largest} says how much each takes" if largest else ""
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return f"{doing} ran out of memory {where}: {_typed_remedies(training, count, largest)}{plan} [{first}]"


def _typed_remedies(training: bool, bags: int, largest: int | None = None) -> str:
    """What can be tried; not traced, because there may be no memory left for it."""
    half = max(1, largest // 2) if largest else "K"
    options: dict[str, str | int | bool] = {"batch_size": 1} if bags > 1 else {}
    options |= {"sample" if training else "eval_sample": half}
    options |= {"checkpointing": True} if training else {}
    options |= {"precision": "bf16"}
    return "try " + ", ".join(str(Option(name, value)) for name, value in options.items())
