"""``qgmil train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from qgmil.cli.options import given
from qgmil.errors import ConfigError
from qgmil.training.config import DataConfig, FitConfig, ModelConfig, SplitConfig, TrainConfig, read_yaml

app = App(
    help_epilogue="""Splits are by patient: training, validation (chooses the epoch and the temperature) and
test (looked at once). Examples:

    qgmil train bags.csv --model qgmil -o runs/qgmil
    qgmil train bags.csv --model abmil_gated --folds 5 --seeds 3
    qgmil train bags.csv --model abmil_gated --recipe published
    qgmil train bags.csv -c recipe.yaml --lr 3e-4 --options.gate elementwise
    qgmil train --resume runs/qgmil""",
    help_format="plaintext",
    default_parameter=Parameter(consume_multiple=True),  # --skip missing empty, --split-file a.csv b.csv
)


def _flat(group: str) -> Parameter:
    return Parameter(name="*", group=group)


@app.default
def train(
    manifest: Path | None = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    config: Annotated[Path | None, Parameter(alias="-c")] = None,
    resume: Path | None = None,
    quiet: Annotated[bool, Parameter(alias="-q", negative=())] = False,
    data: Annotated[DataConfig | None, _flat("Bags")] = None,
    split: Annotated[SplitConfig | None, _flat("Split")] = None,
    model: Annotated[ModelConfig | None, _flat("Model")] = None,
    fit: Annotated[FitConfig | None, _flat("Training")] = None,
) -> None:
    """Train an aggregator on your bags.

    Parameters
    ----------
    manifest
        Table of bags (CSV or parquet): bag_id, label, a column with feature files (relative to the table), and
        optionally patient_id. Or a long table: label, bag, one column a feature.
    output
        Run folder to make. Default: runs/MANIFEST-MODEL.
    config
        YAML file with any of the options below, written with underscores; flags win over it.
    resume
        Continue this run where it stopped; takes no other options.
    quiet
        No progress, only errors.
    """
    from qgmil.cli.output import RichProgress, finish_run
    from qgmil.training.run import Silent, resume_run, train_run

    flags = given(data, split, model, fit)
    if resume is not None:
        if manifest is not None or output is not None or config is not None or flags:
            raise ConfigError("--resume takes the run's own configuration: give only the run folder")
    elif manifest is None:
        raise ConfigError("give a table of bags (qgmil train bags.csv), or --resume RUN")
    with Silent() if quiet else RichProgress() as progress:
        if resume is not None:
            folder = resume_run(resume, progress)
        else:
            assert manifest is not None
            settings = _merged({} if config is None else read_yaml(config), flags)
            folder = output or Path("runs") / f"{manifest.stem}-{settings.model}"
            train_run(manifest, folder, settings, progress)
    finish_run(folder, quiet=quiet)


def _merged(file: dict[str, Any], flags: dict[str, Any]) -> TrainConfig:
    """Flags over the file, the aggregator's options one by one."""
    values = {**file, **flags}
    if isinstance(file.get("options"), dict) and "options" in flags:
        values["options"] = {**file["options"], **flags["options"]}
    return TrainConfig.build(values, "options")
