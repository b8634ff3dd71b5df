"""``qgmil attention``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from qgmil.cli.options import Asking, Positive, flat, given
from qgmil.errors import ConfigError
from qgmil.training.config import BagsConfig

app = App(
    help_epilogue="""Each bag is looked into only by the models that never saw it, or any bag of its patient, in
training or validation. Without a manifest it is about the bags of the run itself: its out-of-fold attention.

Examples:

    qgmil attention runs/first -o out/
    qgmil attention runs/qgmil runs/abmil bags.csv -o out/ --no-faithfulness
    qgmil attention bags.csv --scores theirs.h5 --normalise softmax -o out/

Killed or interrupted, the same command goes on: a bag that was measured is not measured again.""",
    help_format="plaintext",
)


@app.default
def attention(
    paths: Annotated[tuple[Path, ...], Parameter(negative=())],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    scores: Annotated[tuple[Path, ...], Parameter(negative=(), consume_multiple=True)] = (),
    normalise: Literal["none", "sum", "softmax"] = "none",
    faithfulness: bool = True,
    stability: bool = True,
    layers: bool = True,
    repeats: Positive = 5,
    positive: Annotated[tuple[int, ...], Parameter(negative=(), consume_multiple=True)] = (),
    seed: int = 0,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    asking: Annotated[Asking | None, flat("Models")] = None,
    data: Annotated[BagsConfig | None, flat("Bags")] = None,
) -> None:
    """Measure where runs look: concentration, faithfulness, stability, agreement with instance truth.

    Parameters
    ----------
    paths
        Run folders, and at most one table of bags (default: that of each run). Several runs are compared in pairs.
    output
        Folder for bags.parquet and .csv, heads.parquet and .csv, summary.csv, comparison.csv, attention.md and figures.
    scores
        Attention from elsewhere, of the same instances: npz, npy, h5 or CSV files, or their folder.
    normalise
        What --scores are: none: weights that sum to 1 a bag; sum: weights on another scale; softmax: logits.
    faithfulness
        Remove or keep the most attended instances and predict again, against random order.
    stability
        Remove 10 % and 50 % of the instances at random and compare.
    layers
        Figures of every layer and head (QG-MIL, transformer).
    repeats
        Random orders and removals a bag.
    positive
        Instance labels that are sought, for agreement with instance truth. Default: all above 0.
    seed
        Of the random orders and the bootstrap.
    overwrite
        Replace a measurement with other settings in the output folder.
    """
    from qgmil.analysis.measure import Plan
    from qgmil.analysis.output import write_measurement
    from qgmil.analysis.records import Journal, by_source
    from qgmil.analysis.sources import fingerprint, measure_all
    from qgmil.analysis.tables import CAPTION, comparison_table, summary_tables
    from qgmil.cli.output import Counter, console, say

    asked = asking or Asking()
    plan = Plan(asked.score, faithfulness, stability, layers, repeats or 5, tuple(positive) or None, seed)
    options = asked.model_dump(exclude={"score"})
    sources, manifests = _sources(paths, scores, normalise, options, given(data))
    journal = Journal(output, fingerprint(sources, manifests, plan), overwrite=overwrite)
    with Counter("bags", sum(len(source.bag_ids) for source in sources)) as count:
        records = measure_all(sources, journal, plan, on_bag=count)
    summary, compared, verdicts = write_measurement(output, by_source(records), seed=seed)
    for table in summary_tables(summary, width=console.width):
        console.print(table)
    console.print(CAPTION + "\n", markup=False)
    for name, text in verdicts.items():
        console.print(f"{name}: {text}\n", markup=False)
    if compared:
        console.print(comparison_table(compared))
    for source in sources:
        _say_left_out(source, say)
    say(f"written: {output}")


def _sources(
    paths: tuple[Path, ...], scores: tuple[Path, ...], normalise: Any, options: dict[str, Any], reading: dict[str, Any]
) -> tuple[list[Any], list[Path]]:
    """Runs and scores, and the tables of bags that they are asked about."""
    from qgmil.analysis.sources import manifest_of, run_source, score_source, source_names
    from qgmil.training.runfolder import is_run

    runs = [path for path in paths if is_run(path)]
    tables = [path for path in paths if not is_run(path)]
    if len(tables) > 1:
        raise ConfigError(f"{tables[0]} and {tables[1]} are no run folders: give run folders and at most one table")
    if not runs and not scores:
        raise ConfigError(f"{tables[0]} is no run folder: give a run, or --scores with attention from elsewhere")
    names = source_names([*runs, *scores])
    manifests = [tables[0] if tables else manifest_of(run) for run in runs]
    found: list[Any] = [
        run_source(run, manifest, name, reading=reading, **options)
        for run, manifest, name in zip(runs, manifests, names, strict=False)
    ]
    if scores:
        if not tables and not runs:
            raise ConfigError("--scores need a table of bags: qgmil attention bags.csv --scores FILE -o OUT")
        table = tables[0] if tables else manifests[0]
        how = BagsConfig(**reading).opening() if not runs else found[0].run.config.model_copy(update=reading).opening()
        found += [
            score_source(path, table, name, normalise, how)
            for path, name in zip(scores, names[len(runs) :], strict=True)
        ]
        manifests.append(table)
    return found, manifests


def _say_left_out(source: Any, say: Any) -> None:
    from qgmil.analysis.sources import RunSource

    if isinstance(source, RunSource) and source.run.note:
        say(f"{source.name}: {source.run.note}")
    if source.left_out:
        why = (
            "each of its models was trained or validated on them or their patient (--new-cohort if they are others)"
            if isinstance(source, RunSource)
            else "they have no scores"
        )
        say(f"{source.name}: {len(source.left_out)} of {len(source.bags)} bags were left out: {why}")
    for bag_id, reason in source.bags.skipped:
        say(f"{source.name}: skipped {bag_id}: {reason}")
