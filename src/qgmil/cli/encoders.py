"""``qgmil encoders``."""

from __future__ import annotations


def encoders(name: str | None = None, /) -> None:
    """The encoders that qgmil extract knows by name: input, width, licence, and whether they can be loaded here.

    Any other is named as timm:MODEL, hf:REPOSITORY or hf:FOLDER (transformers), or as a file that ends with .onnx.

    Parameters
    ----------
    name
        Say all that is known of this one: normalisation, where its weights come from, what is taken of its tokens.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from qgmil.cli.output import console
    from qgmil.encoders.registry import DEFAULT, ENCODERS, lacking

    if name is not None:
        for key, value in known(name).items():
            console.print(f"{key:<14} {value}", markup=False)
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("encoder", "px", "width", "licence", "here"):
        table.add_column(name, justify="right" if name in ("px", "width") else "left", no_wrap=name != "here")
    for info in ENCODERS.values():
        missing = lacking(info)
        here = (
            "ready"
            if info.name == DEFAULT
            else "from a file (--weights)"
            if info.family == "dinobloom"
            else "from the hub"
        )
        here += ", after registration" if info.gated else ""
        table.add_row(
            info.name,
            str(info.input_size),
            str(info.width),
            Text(info.licence),
            Text(f"needs {', '.join(missing)}" if missing else here),
        )
    console.print(table)
    console.print(
        f"{DEFAULT} is the default. Others: timm:MODEL, hf:REPOSITORY, hf:FOLDER, FILE.onnx",
        markup=False,
    )


def known(name: str) -> dict[str, str]:
    """What the registry says of an encoder, in words."""
    from qgmil.encoders.registry import find_encoder, lacking

    info = find_encoder(name).info
    missing = lacking(info)
    taken = {
        "pooled": "what the model gives",
        "cls": "the class token",
        "cls+mean": "class token, then mean of patches",
    }
    return {
        "encoder": info.name,
        "weights": info.source.removeprefix("hf-hub:") + (" (register with its owner first)" if info.gated else ""),
        "licence": info.licence,
        "input": f"{info.input_size} x {info.input_size} pixels",
        "normalisation": f"mean {', '.join(f'{v:g}' for v in info.mean)}; sd {', '.join(f'{v:g}' for v in info.std)}",
        "width": str(info.width or "known by its file"),
        "features": taken[info.pooling],
        "packages": f"needs {', '.join(missing)}" if missing else "installed",
    }
