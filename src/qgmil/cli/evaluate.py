"""``qgmil evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(
    help_epilogue="""Each bag is predicted only by the models that never saw it, or any bag of its patient, in
training or validation. On the run's own manifest that gives the out-of-fold result again; on another cohort it is
the mean of all models.""",
    help_format="plaintext",
)


@app.default
def evaluate(
    run: Path,
    manifest: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    include_seen: Annotated[bool, Parameter(negative=())] = False,
    features: str | None = None,
    label: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None,
    batch_size: int | None = None,
) -> None:
    """Evaluate a run on labelled bags.

    Parameters
    ----------
    run
        Run folder made by qgmil train.
    manifest
        Table of labelled bags.
    output
        Folder for metrics.json and predictions.csv; must not hold them already.
    include_seen
        Also predict bags with models that saw them. The figures are then optimistic.
    features
        Manifest column with the feature files, if it has another name than in training.
    label
        Manifest column with the class, if it has another name than in training.
    device
        Where to run. Default: as the run was configured.
    batch_size
        Bags at a time. Default: as in training.
    """
    from qgmil.bags.dataset import open_bags
    from qgmil.cli.output import Counter, console, messages
    from qgmil.errors import RunError
    from qgmil.files import write_csv, write_json
    from qgmil.report.tables import evaluation_table
    from qgmil.training.members import evaluate_run, load_run

    if output is not None and any((output / name).exists() for name in ("metrics.json", "predictions.csv")):
        raise RunError(f"{output} holds an evaluation already: choose another folder with --output")
    loaded = load_run(run)
    given = {k: v for k, v in (("features", features), ("label", label)) if v is not None}
    bags = open_bags(manifest, **{**loaded.config.opening(), **given}, skip=loaded.config.skip)
    settings = {k: v for k, v in (("device", device), ("batch_size", batch_size)) if v is not None}
    with Counter("bags", len(bags) * len(loaded.members)) as count:
        result = evaluate_run(loaded, bags, include_seen=include_seen, on_bags=count, **settings)
    rows = result.pop("rows")
    console.print(evaluation_table(result, str(run)))
    if result["left_out"]:
        messages.print(
            f"{len(result['left_out'])} of {len(bags)} bags were left out: every model of the run was trained or "
            "validated on them or their patient"
        )
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
            write_csv(output / "predictions.csv", rows)
            write_json(output / "metrics.json", result)
        except OSError as error:
            raise RunError(f"{output}: cannot write the evaluation ({error.strerror or error})") from None
        messages.print(f"written: {output / 'metrics.json'}, {output / 'predictions.csv'}", soft_wrap=True)
