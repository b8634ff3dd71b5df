"""The tables of docs/results.md: train and compare aggregators on manifests, resumably.

    python benchmarks/results.py COHORT/bags.csv [...] [-o runs/results] [--seeds 3]

Every aggregator gets the same patient folds and the same recipe (the defaults of `qgmil train`). Killed and started
again, it trains only what is missing. Prints Markdown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, run

from qgmil.cli.output import RichProgress
from qgmil.report.data import RunResult, Score, load_result
from qgmil.report.tables import spread
from qgmil.training.config import TrainConfig
from qgmil.training.run import resume_run, train_run
from qgmil.training.runfolder import is_finished


def results(
    manifests: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("runs/results"),
    models: tuple[str, ...] = ("qgmil", "abmil_gated", "linear_probe"),
    folds: int = 5,
    seeds: int = 3,
    resplit: bool = True,
    name: str = "",
) -> None:
    """Train what is missing and print one table a manifest.

    Parameters
    ----------
    manifests
        Tables of bags; the folder's name is the cohort's.
    output
        Folder for the runs.
    models
        Aggregators.
    folds
        Folds by patient.
    seeds
        Seeds.
    resplit
        New folds for every seed.
    name
        Suffix of the run folders, for trying another recipe.
    """
    for manifest in manifests:
        cohort = manifest.resolve().parent.name if manifest.stem == "bags" else manifest.stem
        found = []
        for model in models:
            folder = output / f"{cohort}-{model}{name}"
            values = {"model": model, "folds": folds, "seeds": seeds, "resplit": resplit}
            if not is_finished(folder):
                with RichProgress() as progress:
                    if (folder / "config.yaml").is_file():
                        resume_run(folder, progress)
                    else:
                        train_run(manifest, folder, TrainConfig.build(values), progress)
            found.append(load_result(folder))
        print(markdown(cohort, found), flush=True)


def markdown(cohort: str, found: list[RunResult]) -> str:
    """One cohort's table."""
    bags = found[0].metrics["pooled"]["n_bags"]
    lines = [f"\n**{cohort}**: {bags} bags, {found[0].cells} models an aggregator", ""]
    columns = ("aggregator", "macro F1", "pooled macro F1", "95 % interval", "AUROC", "ECE (pooled)", "NLL (pooled)")
    columns = (*columns, "top-10 % mass", "time")
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for result in found:
        low, high = result.interval("macro_f1") or (float("nan"),) * 2
        top = result.attention("top_10pct")
        pooled = [spread(result.pooled(n) or Score(None)) for n in ("macro_f1", "ece", "nll")]
        cells = [result.model, spread(result.score("macro_f1")), pooled[0], f"{low:.2f} to {high:.2f}"]
        cells += [spread(result.score("auroc")), *pooled[1:], "none" if top is None else spread(top)]
        lines.append(f"| {' | '.join([*cells, f'{result.seconds:.0f} s'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(results)
