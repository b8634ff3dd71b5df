"""``qgmil plan``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from qgmil.cli.options import Device, Positive
from qgmil.errors import ConfigError
from qgmil.training.config import DataConfig, ModelConfig

if TYPE_CHECKING:
    from rich.table import Table

    from qgmil.planning.plan import Phase, Plan


def plan(
    manifest: Path | None = None,
    /,
    *,
    instances: Positive = None,
    in_dim: Positive = None,
    classes: Positive = None,
    batch_size: Positive = None,
    sample: Positive = None,
    device: Device = None,
    precision: Literal["auto", "32", "bf16", "16"] = "auto",
    checkpointing: Annotated[bool, Parameter(negative=())] = False,
    time: bool = True,
    model: Annotated[ModelConfig | None, Parameter(name="*", group="Model")] = None,
    data: Annotated[DataConfig | None, Parameter(name="*", group="Bags")] = None,
) -> int:
    """Predict the peak memory and the time of training and inference. Exit code 1 if training does not fit.

    Memory is traced on the model at its real size, without computing; time is scaled from some small steps.

        qgmil plan --instances 50000 --model qgmil
        qgmil plan bags.csv --batch-size 1 --precision bf16

    Parameters
    ----------
    manifest
        Table of bags: plans for the largest of them, and for an epoch over all.
    instances
        Instances of each bag, instead of a manifest.
    in_dim
        Features of an instance. Default: those of the manifest, else 1024.
    classes
        Classes. Default: those of the manifest, else 2.
    batch_size
        Bags a step. Default: 4 with a manifest, as in training, else 1.
    sample
        Most instances a bag in training.
    device
        Where it will run. Default: as training would choose.
    precision
        Arithmetic. auto: as training would choose.
    checkpointing
        Recompute blocks in the backward pass.
    time
        Also time some small steps on the device, for some seconds.
    """
    from qgmil.cli.output import console, say
    from qgmil.planning.plan import make_plan

    if (manifest is None) == (instances is None):
        raise ConfigError("give either a table of bags (qgmil plan bags.csv) or --instances N")
    model, data = model or ModelConfig(), data or DataConfig()
    bags = None
    if manifest is not None:
        from qgmil.bags.dataset import open_bags
        from qgmil.training.run import IN_MEMORY_BYTES

        bags = open_bags(manifest, **data.opening(), skip=data.skip)
        bags = bags.in_memory() if bags.bytes_on_disk() <= IN_MEMORY_BYTES else bags
    found = make_plan(
        model.model,
        bags if bags is not None else (instances or 1,) * (batch_size or 1),
        in_dim=in_dim,
        num_classes=classes,
        batch_size=batch_size,
        sample=sample,
        options=model.options,
        standardize=model.scaling == "standard",
        checkpointing=checkpointing,
        precision=precision,
        device=device or "auto",
        time=time,
    )
    console.print(_table(found))
    remedies = _remedies(found)
    if remedies.row_count:
        console.print(remedies)
    for line in found.notes:
        say(line)
    return 0 if found.fits else 1


def _table(found: Plan) -> Table:
    """Memory and time, training beside inference."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from qgmil.planning.guard import size

    first = found.phases[0].estimate
    table = Table(
        box=SIMPLE_HEAD, title=f"{found.model} on {first.device}, {first.precision}: {escape(str(found.batch))}"
    )
    table.add_column("")
    for phase in found.phases:
        table.add_column(phase.name, justify="right")

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values, style="bold" if name == "peak memory" else None)

    def each(name: str, value: Callable[[Phase], str]) -> None:
        row(name, *(value(phase) for phase in found.phases))

    each("weights", lambda p: size(p.estimate.parameters))
    each("optimiser", lambda p: size(p.estimate.optimizer))
    each("features of the batch", lambda p: size(p.estimate.features))
    each("activations and gradients", lambda p: size(p.estimate.activations))
    each("lost to the heap", lambda p: size(p.estimate.bytes - p.estimate.tensors))
    each("peak memory", lambda p: size(p.estimate.bytes))
    if found.held:
        each("bags kept in memory", lambda _: size(found.held))
    if found.process:
        each("the process itself", lambda _: size(found.process))
    each("available", lambda _: "unknown" if found.available is None else size(found.available))
    each("verdict", lambda p: p.verdict(found.free))
    each("arithmetic of a step", lambda p: f"{p.estimate.flops / 1e9:,.0f} GFLOP")
    if found.phases[0].seconds is not None:
        each("time of a step", lambda p: seconds(p.seconds))
    if found.phases[0].epoch is not None:
        each("time over all bags", lambda p: seconds(p.epoch))
    return table


def _remedies(found: Plan) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from qgmil.planning.guard import size

    table = Table("remedy", "for", "peak memory", "", box=SIMPLE_HEAD, title="What would fit")
    for phase in found.phases:
        for remedies, word in ((phase.fit, "fits"), (phase.short, "not enough alone")):
            for remedy in remedies:
                table.add_row(remedy.typed, phase.name, size(remedy.bytes), word)
    return table


def seconds(value: float | None) -> str:
    """A time with two digits, in the unit that suits it."""
    if value is None:
        return "unknown"
    for limit, unit, name in ((1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min")):
        if value < limit:
            return f"{value / unit:.2g} {name}" if value / unit < 100 else f"{value / unit:.0f} {name}"
    return f"{value / 3600:.2g} h" if value < 360_000 else f"{value / 3600:.0f} h"
