"""Does attention to clusters of keys (`key_clusters`) hold what exact attention reaches, and what does it cost?

    python benchmarks/clusters.py COHORT/bags.csv [...] [--clusters 32] [--seeds 1] [-o runs/clusters]
    python benchmarks/clusters.py --cost 100000 --clusters 512

Trains QG-MIL with exact and with clustered attention on the same patient folds and prints macro F1, AUROC and the mass
of the top 10 % of the attention, as Markdown; resumable. With --cost, times a forward pass and a training step of both
on one bag of that size (the exact training step of 100,000 instances takes many minutes on two cores: --no-train
leaves it out).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter, run

from qgmil import create_model
from qgmil.cli.output import RichProgress
from qgmil.report.data import Score, load_result
from qgmil.report.tables import spread
from qgmil.training.config import TrainConfig
from qgmil.training.device import autocast, choose_device, choose_precision
from qgmil.training.run import resume_run, train_run
from qgmil.training.runfolder import is_finished


def clusters(
    manifests: Annotated[list[Path] | None, Parameter(negative=())] = None,
    /,
    *,
    clusters: int = 32,
    folds: int = 5,
    seeds: int = 1,
    output: Annotated[Path, Parameter(alias="-o")] = Path("runs/clusters"),
    cost: int | None = None,
    train: bool = True,
) -> None:
    """Train what is missing and print a table; or measure cost.

    Parameters
    ----------
    manifests
        Tables of bags.
    clusters
        Most keys of a bag.
    folds, seeds
        Patient folds and seeds.
    output
        Folder for the runs.
    cost
        Instances of the bag to time instead.
    train
        Also time a training step.
    """
    if cost is not None:
        measure(cost, clusters, train)
    if not manifests:
        return
    print("| cohort | keys | macro F1 | AUROC | top-10 % mass |\n| --- | --- | --- | --- | --- |")
    for manifest in manifests:
        cohort = manifest.resolve().parent.name if manifest.stem == "bags" else manifest.stem
        for name, options in (("exact", {}), (str(clusters), {"key_clusters": clusters})):
            folder = output / f"{cohort}-{name}"
            if not is_finished(folder):
                with RichProgress() as progress:
                    if (folder / "config.yaml").is_file():
                        resume_run(folder, progress)
                    else:
                        values = {"model": "qgmil", "options": options, "folds": folds, "seeds": seeds}
                        config = TrainConfig.build({**values, "resplit": seeds > 1})
                        train_run(manifest, folder, config, progress)
            result = load_result(folder)
            mass = result.attention("top_10pct") or Score(None)
            cells = [spread(score) for score in (result.score("macro_f1"), result.score("auroc"), mass)]
            print(f"| {cohort} | {name} | {' | '.join(cells)} |", flush=True)


def measure(instances: int, clusters: int, train: bool) -> None:
    """Seconds of a forward pass and a training step, exact over clustered."""
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    torch.manual_seed(0)
    bag = torch.randn(instances, 1024, device=device)
    models = {k: create_model("qgmil", in_dim=1024, num_classes=2, key_clusters=k).to(device) for k in (None, clusters)}
    for what in ("forward", "train") if train else ("forward",):
        seconds = {k: _seconds(model, bag, what == "train", precision, device) for k, model in models.items()}
        ratio = seconds[None] / seconds[clusters]
        print(
            f"{what} of {instances:,} instances ({precision}): exact {seconds[None]:.1f} s, {clusters} clusters "
            f"{seconds[clusters]:.1f} s: {ratio:.1f} times"
        )


def _seconds(model: torch.nn.Module, bag: torch.Tensor, train: bool, precision: str, device: str) -> float:
    model.train(train)
    started = time.perf_counter()
    with torch.set_grad_enabled(train), autocast(precision, device):
        logits = model(bag).logits
    if train:
        logits.float().sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    run(clusters)
