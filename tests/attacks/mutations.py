"""Damaged files by number: which tree, which file of it and what is done to it follows from the seed alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from attacks.mutator import mutate
from attacks.orchard import Fruit, load, regrow
from attacks.victim import attempt

CHILD = "attacks.mutations:try_one"
CPU_SECONDS = 5.0  # far above what the smallest files need on the slowest machine
MEMORY = 200 * 2**20  # three copies of what a file may unpack to without being asked for more (`FREE_BYTES`)


class Damaged(NamedTuple):
    """A file of a tree, damaged."""

    fruit: Fruit
    file: str
    content: bytes


def damaged(trees: dict[str, list[Fruit]], pristine: Path, reader: str, seed: int) -> Damaged:
    """The damaged file of that number."""
    draw = random.Random(f"{reader} {seed}")
    fruit = draw.choice(trees[reader])
    file = draw.choice(fruit.files)
    others = [f for other in trees[reader] for f in other.files if Path(f).suffix == Path(file).suffix and f != file]
    splice = [(pristine / f).read_bytes() for f in draw.sample(others, min(2, len(others)))]
    return Damaged(fruit, file, mutate((pristine / file).read_bytes(), splice, draw.getrandbits(64)))


planted: dict[str, dict[str, list[Fruit]]] = {}


def try_one(task: dict[str, Any]) -> dict[str, Any]:
    """Damage a file, try everything on it, mend it again.

    Args:
        task: "base" (a folder with pristine trees, what was planted, and the folder outside), "reader", "seed".

    Returns:
        "refused", the number of attempts that ended in an error of ours; "wrong", what should not have happened.
    """
    base = Path(task["base"])
    pristine, work = base / "pristine", base / "work"
    if task["base"] not in planted:  # a child before this one may have left a damaged file
        planted[task["base"]] = load(base / "planted.json")
        regrow(pristine, work)
    fruit, file, content = damaged(planted[task["base"]], pristine, task["reader"], task["seed"])
    (work / file).write_bytes(content)
    wrong: list[str] = []
    refused = 0
    for act in fruit.acts:
        options = {k: str(work / v) if k == "labels" else v for k, v in fruit.options.items()}
        job = {"act": act, "path": str(work / fruit.path), "options": options}
        said = attempt({**job, "root": str(work), "outside": str(base / "outside")})
        wrong += [f"{act}: {what}" for what in problems(said, str(work))]
        refused += bool(said["error"])
    (work / file).write_bytes((pristine / file).read_bytes())
    return {"refused": refused, "acts": len(fruit.acts), "wrong": wrong, "file": file}


def problems(said: dict[str, Any], root: str) -> list[str]:
    """What is wrong with how a damaged file was taken."""
    found = []
    if said["traceback"]:
        found.append(f"an exception that is not ours: {said['traceback']}")
    elif said["error"] and root not in said["message"] and not said["message"].startswith("bag '"):
        found.append(f"the message names no file (and no bag of a table): {said['message']}")
    if said["touched"]:
        found.append(f"opened or changed {said['touched'][:5]}")
    if said["seconds"] > CPU_SECONDS:
        found.append(f"took {said['seconds']:.1f} s")
    if said["grew"] > MEMORY:
        found.append(f"took {said['grew']:,} bytes")
    return found
