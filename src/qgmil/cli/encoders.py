"""``qgmil encoders``."""

from __future__ import annotations


def encoders() -> None:
    """The encoders that qgmil extract knows by name: input, width, licence, and whether they can be loaded here.

    Any other is named as timm:MODEL, hf:REPOSITORY or hf:FOLDER (transformers), or as a file that ends with .onnx.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from qgmil.cli.output import console
    from qgmil.encoders.registry import DEFAULT, ENCODERS, lacking

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
