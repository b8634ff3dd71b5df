"""``qgmil models``."""

from __future__ import annotations


def models(name: str | None = None, /) -> None:
    """List the aggregators, or the options of one and the recipe of its original training.

    Parameters
    ----------
    name
        An aggregator, to see its options (set them with --options.NAME VALUE in qgmil train).
    """
    from rich.table import Table

    from qgmil.cli.output import console
    from qgmil.models.registry import create_model, find_entry, model_entries, model_options

    if name is None:
        table = Table("model", "what it is", "parameters", title="Aggregators (1,024 features, 2 classes)")
        for key, entry in model_entries().items():
            size = create_model(key, in_dim=1024, num_classes=2).num_parameters()
            table.add_row(key, entry.summary, f"{size:,}")
        console.print(table)
        return
    entry = find_entry(name)
    table = Table("option", "default", title=f"{name}: {entry.summary}")
    for option, default in model_options(name).items():
        table.add_row(option, str(default))
    console.print(table)
    if entry.cls.published_recipe:
        recipe = ", ".join(f"{field} {value}" for field, value in entry.cls.published_recipe.items())
        console.print(f"published recipe (qgmil train --recipe published): {recipe}", markup=False)
    console.print(entry.cls.__doc__ or "", markup=False)
