"""The command line: one thin file a verb, imported only when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App

from qgmil import __version__
from qgmil.errors import QGMILError

app = App(
    name="qgmil",
    version=__version__,
    help=(
        "Train, compare and look into multiple instance learning aggregators on bags of features.\n\n"
        "Start with your own table of bags (columns bag_id, label, features and, if you have it, patient_id):\n\n"
        "  qgmil check bags.csv\n"
        "  qgmil train bags.csv --folds 5 -o runs/first\n"
        "  qgmil predict runs/first new_bags.csv -o predictions.csv"
    ),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main says how to go on
)
for _verb, _help in {
    "extract": "Make bags of features from slides or images of cells; resumable.",
    "finetune": "Train the small encoder end to end with an aggregator on images of cells; resumable.",
    "encoders": "The encoders that qgmil extract knows: input, width, licence, and whether they load here.",
    "manifest": "Write the table of bags for a folder of feature files and a table of labels.",
    "check": "Read every bag once; say what is there and everything that is wrong.",
    "pack": "Pack the bags of a manifest into one memory-mapped store.",
    "train": "Train an aggregator with an honest split; hold-out, folds, seeds; resumable.",
    "evaluate": "Metrics of a run on bags that its models have not seen.",
    "predict": "Predictions of a run for a manifest or bare feature files.",
    "compare": "One table of several runs.",
    "attention": "Measure where a run looks: concentration, faithfulness, agreement with truth; compare runs.",
    "overlay": "Draw the attention of a bag on its slide, or export it to QuPath.",
    "gallery": "Cells or tiles of a bag in order of attention.",
    "report": "One self-contained page of a run: metrics, calibration, attention, pictures.",
    "benchmark": "Aggregators over data sets, folds and seeds, with statistics; resumable, on one machine or many.",
    "ablate": "One-factor ablations of QG-MIL, and what each of its components does alone; resumable.",
    "verify": "Train every aggregator on made bags of known truth and check that it learns what can be learnt.",
    "plan": "Memory and time that training and inference will take, before they run.",
    "datasets": "The named public data sets: bags, classes, licence, and whether they are on this machine.",
    "models": "The aggregators and their options.",
    "demo": "QG-MIL, gated ABMIL and a linear probe on real breast-cancer histology, in some minutes.",
}.items():
    _entry = (
        "app"
        if _verb
        in (
            "train",
            "evaluate",
            "benchmark",
            "ablate",
            "verify",
            "attention",
            "overlay",
            "gallery",
            "report",
            "extract",
            "finetune",
        )
        else _verb
    )
    app.command(f"qgmil.cli.{_verb}:{_entry}", name=_verb, help=_help)

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors that users can cause are one line on standard error, not a traceback."""
    code = 0
    try:
        result = app(arguments, result_action="return_value")
        code = result if isinstance(result, int) else 0
    except QGMILError as error:
        print(f"qgmil: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt as stop:
        print(f"qgmil: {str(stop) or 'interrupted'}", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that went away
        print(f"qgmil: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)
