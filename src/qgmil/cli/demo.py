"""``qgmil demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

MODELS = ("qgmil", "abmil_gated", "linear_probe")


def demo(
    output: Annotated[Path, Parameter(alias="-o")] = Path("demo-run"),
    /,
    *,
    folds: int = 5,
    repeats: int = 2,
    epochs: int = 20,
) -> None:
    """Train and compare QG-MIL and gated ABMIL on UCSB breast-cancer histology (58 images, real).

    A linear probe stands beside them as a control. All see the same folds and the same recipe. The data come inside
    the package mil; there are no patient ids, so the split is by image. Run again, it shows what is there;
    interrupted, it continues.

    Parameters
    ----------
    output
        Folder for the runs and the figure.
    folds
        Cross-validation folds.
    repeats
        How often to draw new folds and train with a new seed.
    epochs
        Most epochs a model.
    """
    from qgmil.attention.figures import mass_curve_figure
    from qgmil.cli.output import console, say
    from qgmil.datasets.mil_tables import mil_table
    from qgmil.evaluation.figures import save_figure
    from qgmil.report.data import load_result
    from qgmil.report.tables import comparison_table

    table = mil_table("ucsb")
    say("UCSB breast cancer: 58 images of benign (0) and malignant (1) tissue, 708 features a patch")
    values = {"folds": folds, "seeds": repeats, "resplit": True, "epochs": epochs}
    runs = [output / model for model in MODELS]
    for model, run in zip(MODELS, runs, strict=True):
        _train(table, run, {**values, "model": model})
    curves = {r.model: r.mass_curve for r in map(load_result, runs)}
    figure = mass_curve_figure(
        {model: curve["mass"] for model, curve in curves.items() if curve},
        grid=next(curve["share"] for curve in curves.values() if curve),
        title="UCSB breast cancer: where the attention goes",
    )
    picture = save_figure(figure, output / "attention_mass.png")
    console.print(comparison_table(runs))
    say(f"pages: {', '.join(str(run / 'report.html') for run in runs)}   picture: {picture}")


def _train(table: Path, run: Path, values: dict[str, Any]) -> None:
    """Train, continue, or leave a run that is there."""
    from qgmil.cli.output import RichProgress, say
    from qgmil.report.page import write_report
    from qgmil.training.config import TrainConfig
    from qgmil.training.run import resume_run, train_run
    from qgmil.training.runfolder import is_finished

    if is_finished(run):
        say(f"{run} is trained already; delete {run.parent} to train again")
    else:
        say(f"training {values['model']}: {values['folds']} folds, {values['seeds']} times")
        with RichProgress() as progress:
            if (run / "config.yaml").is_file():
                resume_run(run, progress)
            else:
                train_run(table, run, TrainConfig.build(values, "demo"), progress)
    write_report(run)
