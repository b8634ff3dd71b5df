"""``qgmil evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from qgmil.cli.options import Device, Positive, given
from qgmil.training.config import DataConfig

app = App(
    help_epilogue="""Each bag is predicted only by the models that never saw it, or any bag of its patient, in
training or validation. On the run's own manifest that gives the out-of-fold result again; on another cohort it is
the mean of all models. Options for the bags are as in training unless given.""",
    help_format="plaintext",
)


@app.default
def evaluate(
    run: Path,
    manifest: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    new_cohort: Annotated[bool, Parameter(negative=())] = False,
    include_seen: Annotated[bool, Parameter(negative=())] = False,
    device: Device = None,
    batch_size: Positive = None,
    data: Annotated[DataConfig | None, Parameter(name="*", group="Bags")] = None,
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
    new_cohort
        Bags and patients named as in training are others: leave none out.
    include_seen
        Also predict bags with models that saw them. The figures are then optimistic.
    device
        Where to run. Default: as the run was configured.
    batch_size
        Bags at a time. Default: as in training.
    """
    from qgmil.bags.dataset import open_bags
    from qgmil.cli.output import Counter, console, say
    from qgmil.errors import RunError
    from qgmil.files import write_csv, write_json
    from qgmil.report.tables import evaluation_table
    from qgmil.training.members import evaluate_run, load_run

    if output is not None and any((output / name).exists() for name in ("metrics.json", "predictions.csv")):
        raise RunError(f"{output} holds an evaluation already: choose another folder with --output")
    loaded = load_run(run)
    used = loaded.config.model_copy(update=given(data))
    bags = open_bags(manifest, **used.opening(), skip=used.skip)
    settings = {k: v for k, v in (("device", device), ("batch_size", batch_size)) if v is not None}
    with Counter("bags", len(bags) * len(loaded.members)) as count:
        result = evaluate_run(loaded, bags, include_seen=include_seen, new_cohort=new_cohort, on_bags=count, **settings)
    rows = result.pop("rows")
    console.print(evaluation_table(result, str(run)))
    if loaded.note:
        say(loaded.note)
    if result["left_out"]:
        say(
            f"{len(result['left_out'])} of {len(bags)} bags were left out: by name, every model of the run was trained "
            "or validated on them or their patient (--new-cohort if these are others)"
        )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_csv(output / "predictions.csv", rows)
        write_json(output / "metrics.json", result)
        say(f"written: {output / 'metrics.json'}, {output / 'predictions.csv'}")
