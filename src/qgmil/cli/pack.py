"""``qgmil pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from qgmil.training.config import DataConfig


def pack(
    manifest: Path,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    dtype: Literal["float16", "bfloat16", "float32"] | None = None,
    labels: bool = True,
    force: Annotated[bool, Parameter(negative=())] = False,
    data: Annotated[DataConfig | None, Parameter(name="*", group="Bags")] = None,
) -> None:
    """Pack bags into one store that opens at once and reads at the speed of memory.

    A store goes wherever a manifest does: qgmil train STORE, evaluate, predict, check. It holds features, coordinates,
    ids, labels, patients and all other columns of the manifest; qgmil check STORE reads it all against its checksums.

    Parameters
    ----------
    manifest
        Table of bags, long table of instances, or another store; a folder of feature files with --no-labels.
    output
        Folder to make. It appears when it is whole.
    dtype
        Type of the stored features. Default: what the files have.
    labels
        The bags have labels. --no-labels: not all, for prediction.
    force
        Replace a store that is there.
    """
    from qgmil.bags.store.pack import pack_store
    from qgmil.cli.output import Counter, say

    options = data or DataConfig()
    with Counter("bags", 0) as count:

        def progress(done: int, total: int) -> None:
            count.bars.update(count.task, completed=done, total=total)

        try:
            packed = pack_store(
                manifest,
                output,
                dtype=dtype,
                force=force,
                skip=options.skip,
                labels=labels,
                progress=progress,
                **options.opening(),
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: {output} was not packed, and nothing is left of it") from None
    header, error = packed.header, packed.rounding
    if packed.cleaned:
        say("what an earlier, interrupted packing had left was removed")
    for bag_id, reason in packed.skipped:
        say(f"skipped {bag_id}: {reason}")
    size = sum(member.size for member in header.members.values()) / 1e6
    shape = f"{header.instances:,} instances x {header.width:,}"
    say(f"{header.bags} bags, {shape}, {size:,.1f} MB in {header.to_json()['dtype']} ({packed.reason})")
    if error.bag_id is not None:
        say(f"largest rounding error: {error.error:.3g} (a value of {error.value:.6g} in bag {error.bag_id!r})")
    say(f"store: {output}   train on it: qgmil train {output}")
