"""``qgmil train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from pydantic import BaseModel

from qgmil.errors import ConfigError
from qgmil.training.config import DataConfig, FitConfig, ModelConfig, SplitConfig, TrainConfig, read_yaml

app = App(
    help_epilogue="""Splits are by patient: training, validation (chooses the epoch and the temperature) and
test (looked at once). Examples:

    qgmil train bags.csv --model qgmil -o runs/qgmil
    qgmil train bags.csv --model abmil_gated --folds 5 --seeds 3
    qgmil train bags.csv -c recipe.yaml --lr 3e-4 --options.gate elementwise
    qgmil train --resume runs/qgmil""",
    help_format="plaintext",
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
    from qgmil.training.fit import Interrupted
    from qgmil.training.run import Silent, resume_run, train_run

    flags = _given(data, split, model, fit)
    if resume is not None:
        if manifest is not None or output is not None or config is not None or flags:
            raise ConfigError("--resume takes the run's own configuration: give only the run folder")
    elif manifest is None:
        raise ConfigError("give a table of bags (qgmil train bags.csv), or --resume RUN")
    folder = resume
    try:
        with Silent() if quiet else RichProgress() as progress:
            if resume is not None:
                resume_run(resume, progress)
            else:
                assert manifest is not None
                settings = TrainConfig.build({**({} if config is None else read_yaml(config)), **flags}, "options")
                folder = output or Path("runs") / f"{manifest.stem}-{settings.model}"
                train_run(manifest, folder, settings, progress)
    except Interrupted:
        print(f"interrupted; continue with: qgmil train --resume {folder}")
        raise
    assert folder is not None
    finish_run(folder, quiet=quiet)


def _given(*sections: BaseModel | None) -> dict[str, Any]:
    """The options that were typed, so that a YAML file's values are not overwritten by defaults."""
    values: dict[str, Any] = {}
    for section in sections:
        if section is not None:
            values |= {name: getattr(section, name) for name in section.model_fields_set}
    if "options" in values:
        values["options"] = {k.replace("-", "_"): _number(v) for k, v in values["options"].items()}
    return values


def _number(text: Any) -> Any:
    """``--options.width 256`` arrives as text."""
    if not isinstance(text, str):
        return text
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named and text != "none":
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
