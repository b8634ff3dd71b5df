"""Everything that decides a run. One flat table, for YAML files and command-line flags alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qgmil.errors import ConfigError
from qgmil.training.recipes import with_published

Rate = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BagsConfig(_Section):
    """How a table of bags is read."""

    id: str = Field("bag_id", description="Manifest column with the bag's name.")
    features: str | None = Field(None, description="Manifest column with the feature files. Found by name if absent.")
    label: str = Field("label", description="Manifest column with the class.")
    patient: str = Field(
        "patient_id", description="Manifest column with the patient; none: every bag is a patient of its own."
    )
    format: str | None = Field(None, description="Layout of the feature files. Recognised if absent.")
    dataset: str | None = Field(None, description="Name of the data set inside h5 files. Found if absent.")
    bag_per: Literal["bag", "patient"] = Field("bag", description="One bag a row, or merge each patient's files.")

    def opening(self) -> dict[str, Any]:
        """Arguments of `open_bags` that any table of this cohort needs."""
        return {
            "bag_id": self.id,
            "features": self.features,
            "label": self.label,
            "patient_id": None if self.patient == "none" else self.patient,
            "format": self.format,
            "dataset": self.dataset,
            "bag_per": self.bag_per,
        }


class DataConfig(BagsConfig):
    """Which bags."""

    skip: tuple[Literal["empty", "unlabelled", "missing"], ...] = Field(
        (), description="Kinds of bags to leave out (recorded in the run) instead of stopping."
    )


class SplitConfig(_Section):
    """Who trains, who validates, who tests. Always by patient."""

    folds: int | None = Field(None, ge=2, description="Cross-validation folds. Absent: one hold-out split.")
    test: float = Field(0.2, gt=0, lt=1, description="Share of the bags to test on (hold-out).")
    val: float = Field(
        0.2, gt=0, lt=1, description="Share of the bags to validate on (with folds: of each training part)."
    )
    split_column: tuple[str, ...] = Field(
        (), description="Manifest column(s) with train/val/test or fold numbers, instead of a drawn split."
    )
    split_file: tuple[Path, ...] = Field(
        (), description="Split files, or a folder of them, instead of a drawn split: CLAM's or Patho-Bench's."
    )
    seed: int = Field(0, ge=0, description="First seed.")
    seeds: int = Field(1, ge=1, description="How many seeds to train, on the same splits.")
    resplit: bool = Field(False, description="Draw new splits for every seed (repeated cross-validation).")


class ModelConfig(_Section):
    """Which aggregator."""

    model: str = Field("qgmil", description="Aggregator; `qgmil models` lists them.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="The aggregator's own options, as --options.width 256."
    )
    scaling: Literal["standard", "none"] = Field(
        "standard", description="Standardise features with the training instances' mean and spread."
    )

    @field_validator("options", mode="before")
    @classmethod
    def _plain_options(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            raise ValueError("options is a table of name: value")
        plain = {str(name).replace("-", "_"): _number(value) for name, value in options.items()}
        for name in ("name", "in_dim", "num_classes", "standardize"):
            if name in plain:
                raise ValueError(f"{name} is no option of a model here: it follows from the bags and from scaling")
        return plain


class FitConfig(_Section):
    """How to train. The same recipe for every aggregator, unless its own is asked for."""

    recipe: Literal["common", "published"] = Field(
        "common",
        description="published: the aggregator's original training decides what is not given; `qgmil models NAME`.",
    )
    epochs: int = Field(20, ge=1, description="Most epochs.")
    batch_size: int = Field(4, ge=1, description="Bags a step.")
    optimizer: Literal["adamw", "adam", "radam", "lookahead_radam", "sgd"] = Field("adamw", description="Optimiser.")
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    betas: tuple[Rate, Rate] = Field(
        (0.9, 0.999), description="Decay of the moments of the gradient; the first is the momentum of sgd."
    )
    weight_decay: float = Field(
        1e-2, ge=0, description="Decoupled, not on norms and biases (adamw, radam); L2 on all weights (adam, sgd)."
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Learning rate after the warm-up.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps that warm up.")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 switches clipping off.")
    class_weights: Literal["none", "balanced"] = Field("none", description="Weight the loss by inverse frequency.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Label smoothing of the bag loss.")
    sample: int | None = Field(None, ge=1, description="Most instances a bag in training, drawn anew every epoch.")
    eval_sample: int | None = Field(None, ge=1, description="Most instances a bag in evaluation. Absent: all of them.")
    monitor: Literal["val_loss", "val_macro_f1", "val_auroc"] = Field(
        "val_loss", description="Validation metric that chooses the epoch."
    )
    min_epochs: int = Field(10, ge=1, description="Epochs before which none is chosen and training does not stop.")
    patience: int = Field(10, ge=1, description="Epochs without improvement before stopping.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to train.")
    devices: int | Literal["auto"] = Field(
        1, description="GPUs (or processes on the CPU) that share each step's bags. auto: all GPUs."
    )
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        "auto", description="Arithmetic. auto: bfloat16 on GPUs that have it, else float32."
    )
    checkpointing: bool = Field(
        False, description="Recompute blocks in the backward pass: less memory for large bags, more time."
    )
    compile: Literal["no", "default", "reduce-overhead"] = Field(
        "no", description="torch.compile of the parts that work row by row. reduce-overhead: CUDA graphs."
    )
    memory_check: bool = Field(
        True, description="Refuse to train where the largest batch would not fit into memory, instead of trying it."
    )
    workers: int = Field(0, ge=0, description="Processes that read bags. 0: read in this one.")
    in_memory: Literal["auto", "yes", "no"] = Field("auto", description="Keep bags in memory (auto: under 2 GB).")
    checkpoint_seconds: float = Field(60.0, ge=0, description="Save for --resume at most this often.")

    @field_validator("devices", mode="before")
    @classmethod
    def _some_devices(cls, value: Any) -> Any:
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if number != "auto" and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError("a whole number of at least 1, or auto")
        return number


class TrainConfig(DataConfig, SplitConfig, ModelConfig, FitConfig):
    """The whole configuration of `qgmil train`.

    With the published recipe, the fields that are not given take the values of the model's original training; they are
    fields like all others from then on.
    """

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("recipe") == "published":
            return with_published(values, str(values.get("model", cls.model_fields["model"].default)))
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.folds and self.split_column:
            raise ValueError("folds and split_column exclude each other: the column already decides the split")
        if self.split_file and (self.folds or self.split_column):
            other = "folds" if self.folds else "split_column"
            raise ValueError(f"{other} and split_file exclude each other: the file already decides the split")
        return self

    @classmethod
    def build(cls, values: Mapping[str, Any], source: str = "configuration") -> Self:
        """Validate values.

        Raises:
            ConfigError: unknown fields or values out of range, each with its name; a published recipe where the
                model has none.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(f"{source}: {describe(error, list(cls.model_fields))}") from None

    @classmethod
    def read(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a YAML file; overrides win.

        Raises:
            ConfigError: unreadable, not a table, or invalid values.
        """
        return cls.build({**read_yaml(path), **overrides}, str(path))

    def to_yaml(self) -> str:
        """The configuration as YAML, every field written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds one table.

    Raises:
        ConfigError: unreadable or something else.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file (a configuration, in YAML)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a table of name: value, not a {type(values).__name__}")
    for name in values:
        if not isinstance(name, str):  # YAML reads on, yes and no as truth values
            raise ConfigError(f"{path}: {name!r} is no option's name")
    return values


def _number(value: Any) -> Any:
    """A number or truth value that arrives as text: from the command line, or 1e-6 in YAML."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def describe(error: ValidationError, known: list[str]) -> str:
    """A validation error in words: field, value, what is allowed."""
    parts = []
    for item in error.errors():
        name = ".".join(str(x) for x in item["loc"])
        if item["type"] == "extra_forbidden":
            parts.append(f"there is no option {name!r}; the options are {', '.join(known)}")
        elif name:
            parts.append(f"{name} = {item['input']!r}: {item['msg']}")
        else:
            parts.append(item["msg"].removeprefix("Value error, "))
    return "; ".join(parts)
