"""``qgmil finetune``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from pydantic import BaseModel, ConfigDict, Field

from qgmil.cli.options import Positive, flat
from qgmil.errors import ConfigError

app = App(
    name="finetune",
    help="Train the small encoder end to end with an aggregator on images of cells, in cross-validation; resumable.",
    help_epilogue=(
        "Examples:\n\n"
        "    qgmil finetune cells/ -o runs/tuned --input-size 96\n"
        "    qgmil finetune cells/ -o runs/frozen --input-size 96 --frozen\n"
        "    qgmil extract cells/ -o features --cells --input-size 96 --weights runs/tuned/fold0/encoder.pth\n\n"
        "With --frozen the encoder stays as it is and everything else is the same: the comparison that shows what\n"
        "tuning it is worth. An encoder has seen the training and validation bags of its fold: features that it makes\n"
        "of them are no evidence on these bags."
    ),
)


class Recipe(BaseModel):
    """How encoder and aggregator are trained together."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cells: Annotated[int, Parameter(name="--cells-per-step")] = Field(24, description="Cells of each bag in a step.")
    epochs: int = Field(12, description="At most.")
    batch_size: int = Field(4, description="Bags in a step.")
    lr: float = Field(3e-4, description="Of the aggregator.")
    encoder_lr: float = Field(1e-5, description="Of the encoder.")
    frozen: Annotated[bool, Parameter(negative=())] = Field(
        False, description="Leave the encoder as it is: the control."
    )
    seed: int = Field(0, description="Of splits, weights, order and sampling.")


class Looking(BaseModel):
    """How cells are shown to the encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    input_size: int = Field(96, description="Edge of the square that the encoder sees; small ones train quickly.")
    centre: Positive = Field(None, description="Take the middle square of this many pixels.")
    fit: Literal["pad", "crop", "stretch"] = Field("pad", description="Images that are no squares.")


@app.default
def finetune(
    sources: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    model: str = "qgmil",
    options: dict[str, Any] | None = None,
    folds: Annotated[int, Parameter(validator=Number(gte=2))] = 5,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    recipe: Annotated[Recipe | None, flat("Training")] = None,
    looking: Annotated[Looking | None, flat("Cells")] = None,
    quiet: Annotated[bool, Parameter(alias="-q", negative=())] = False,
) -> None:
    """Train the small encoder end to end with an aggregator on images of cells, in cross-validation; resumable.

    Parameters
    ----------
    sources
        Images of labelled cells: <class>/<patient>/<cell>, or a table with columns image, bag_id, label.
    output
        Folder: of each fold the encoder (encoder.pth, for qgmil extract --weights), the aggregator, history.csv and
        predictions.csv of the test bags; metrics.json over all folds.
    model
        The aggregator.
    options
        Of the aggregator, as --options.width 128.
    folds
        Of the cross-validation by patient.
    device
        Where to train.
    quiet
        No progress, only errors.
    """
    import dataclasses
    from functools import partial

    from qgmil.bags.splits import kfold
    from qgmil.encoders.base import sized
    from qgmil.encoders.finetune import FinetuneConfig
    from qgmil.encoders.folds import METRICS, claim, summary, train_fold
    from qgmil.encoders.pictures import Shaping
    from qgmil.encoders.registry import DEFAULT, ENCODERS
    from qgmil.encoders.work import find_cells
    from qgmil.files import write_json
    from qgmil.models.registry import create_model
    from qgmil.planning.device import choose_device
    from qgmil.training.config import ModelConfig

    recipe, looking = recipe or Recipe(), looking or Looking()
    works = [w for w in find_cells(sources) if w.label is not None]
    if not works:
        raise ConfigError(f"{sources[0]}: no cells have a class; they lie in <class>/<patient>/<cell>, or in a table")
    values = recipe.model_dump()
    config = FinetuneConfig(freeze=values.pop("frozen"), **values)
    classes = sorted({str(w.label) for w in works})
    given = ModelConfig(options=dict(options or {})).options
    asked = {
        "model": model, "options": given, "folds": folds, "classes": classes,
        **looking.model_dump(), **asdict(config),
    }  # fmt: skip
    create_model(model, in_dim=1280, num_classes=len(classes), **given)  # names what is wrong before anything is made
    info, shaping = sized(ENCODERS[DEFAULT], looking.input_size), Shaping(looking.fit, looking.centre)
    groups = [w.patient_id or w.bag_id for w in works]
    splits = kfold([w.bag_id for w in works], [w.label for w in works], groups, k=folds, seed=config.seed)
    by_id = {w.bag_id: w for w in works}
    claim(output, asked)
    for number, split in enumerate(splits):
        folder = output / f"fold{number}"
        if not (folder / METRICS).is_file():
            parts = [[by_id[i] for i in part] for part in (split.train, split.val, split.test)]
            fold = dataclasses.replace(config, seed=config.seed + number)
            told = None if quiet else partial(_say, folder.name)
            train_fold(folder, parts, classes, fold, model, given, info, shaping, choose_device(device), told)
    said = summary(output, folds, classes)
    write_json(output / METRICS, said)
    if not quiet:
        from qgmil.cli.output import console

        console.print(
            f"macro F1 {said['macro_f1_mean']:.3f} ± {said['macro_f1_sd']:.3f}, AUROC "
            f"{said['auroc_mean']:.3f} ± {said['auroc_sd']:.3f} over {folds} folds; pooled macro F1 "
            f"{said['pooled']['macro_f1']:.3f}; encoder {'frozen' if config.freeze else 'tuned'}: {output}",
            markup=False,
        )


def _say(fold: str, done: int, most: int, row: dict[str, Any]) -> None:
    from qgmil.cli.output import say

    losses = f"train loss {row['train_loss']:.3f}, validation loss {row['val_loss']:.3f}"
    say(f"{fold} epoch {done}/{most}: {losses}, macro F1 {row['val_macro_f1']:.3f}")
