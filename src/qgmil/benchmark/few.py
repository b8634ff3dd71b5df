"""Training on few patients: a smaller training part, the others as they are."""

from __future__ import annotations

from collections.abc import Mapping

from qgmil.bags.splits import Split
from qgmil.bags.stratify import generator
from qgmil.errors import SplitError


def keep_patients(
    split: Split, labels: Mapping[str, str | None], groups: Mapping[str, str], patients: int, *, seed: int, fold: int
) -> Split:
    """The split with at most `patients` patients to train on; validation and test stay as they are.

    Patients are drawn at random, in turn for each class (the one with the fewest patients so far first), so that all
    classes of the training part remain and none is favoured.

    Raises:
        SplitError: the classes of the training part do not fit into so few patients.
    """
    classes: dict[str, set[str]] = {}
    for bag in split.train:
        classes.setdefault(groups[bag], set()).add(str(labels[bag]))
    if len(classes) <= patients:
        return split
    order = generator(seed, 4, fold).permutation(sorted(classes)).tolist()
    wanted = sorted(set().union(*classes.values()))
    kept: list[str] = []
    while len(kept) < patients:
        have = {c: sum(c in classes[p] for p in kept) for c in wanted}
        left = [p for p in order if p not in kept]
        for label in sorted(wanted, key=lambda c: (have[c], c)):
            found = next((p for p in left if label in classes[p]), None)
            if found is not None:
                kept.append(found)
                break
    missing = set(wanted) - set().union(*(classes[p] for p in kept))
    if missing:
        raise SplitError(
            f"split {split.name!r}: {patients} training patients cannot cover the classes (there is none of "
            f"{', '.join(sorted(missing))}); allow more with train_patients"
        )
    chosen = set(kept)
    return Split(tuple(b for b in split.train if groups[b] in chosen), split.val, split.test, split.name)
