"""Models on disk: ``model.safetensors`` and ``config.json``; no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qgmil.errors import ReadError
from qgmil.files import atomic_path, write_json
from qgmil.models.base import Aggregator, load_strict
from qgmil.models.registry import create_model

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_model(model: Aggregator, folder: str | Path, **extra: Any) -> None:
    """Write weights and configuration atomically; `extra` (class names and so on) goes into the configuration."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    write_json(folder / CONFIG, {**model.config, **extra})
    with atomic_path(folder / WEIGHTS) as partial:  # last: where there are weights, there is a configuration
        save_file(state, partial)


def read_model_config(folder: str | Path) -> dict[str, Any]:
    """The configuration that `save_model` wrote.

    Raises:
        ReadError: no such file, or not such a configuration.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path}: not a saved model ({error})") from None
    if not isinstance(config, dict) or not {"name", "in_dim", "num_classes", "options"} <= set(config):
        raise ReadError(f"{path}: not a model's configuration: it needs name, in_dim, num_classes and options")
    return config


def load_model(folder: str | Path) -> Aggregator:
    """The model in a folder (or run folder), in evaluation mode.

    Raises:
        ReadError: missing or broken files.
        ConfigError: weights that do not fit the configuration.
    """
    config = read_model_config(folder)
    path = Path(folder) / WEIGHTS
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ReadError(f"{path}: cannot read the weights ({error})") from None
    model = create_model(
        config["name"], in_dim=config["in_dim"], num_classes=config["num_classes"], **config["options"]
    )
    load_strict(model, state, str(path))
    return model.eval()
