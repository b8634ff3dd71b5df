"""Where the models of a run look in a bag: instance scores of those that never saw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qgmil.attention.scores import InstanceScores, instance_scores, mean_scores
from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset, collate
from qgmil.errors import BagError
from qgmil.evaluation.calibration import apply_temperature, expand_binary
from qgmil.training.device import choose_device
from qgmil.training.members import Member, Run, seen_matrix


@dataclass(frozen=True, eq=False)
class BagExplanation:
    """What the models of a run say of one bag and how they score its instances.

    Args:
        bag: the bag itself, all its instances.
        label, patient: as the manifest has them; the label may be None.
        classes: of the run.
        probabilities: ``(C,)``, mean over members; `calibrated` the same, each at its own temperature.
        members: the models that were asked.
        member_scores: scores of each of them.
        scores: their mean.
    """

    bag: Bag
    label: str | None
    patient: str
    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]
    calibrated: NDArray[np.float64]
    members: tuple[Member, ...]
    member_probabilities: NDArray[np.float64]
    member_scores: tuple[InstanceScores, ...]
    scores: InstanceScores

    @property
    def predicted(self) -> int:
        """Class of the highest mean probability."""
        return int(self.probabilities.argmax())

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is the label; None without one that the run knows."""
        return None if self.label not in self.classes else self.classes[self.predicted] == self.label

    @property
    def headline(self) -> str:
        """The bag, what is predicted and what is true, on one line."""
        truth = "" if self.label is None else f", labelled {self.label}"
        said = f"{self.classes[self.predicted]} ({self.probabilities.max():.2f})"
        return f"{self.bag.bag_id}: predicted {said}{truth}"


def members_for(
    run: Run, bags: BagDataset, *, include_seen: bool = False, new_cohort: bool = False
) -> list[tuple[Member, ...]]:
    """For each bag, the members of a run that never saw it or its patient; all of them with `include_seen`."""
    may = ~seen_matrix(run, bags, new_cohort or include_seen)
    return [tuple(m for m, ok in zip(run.members, column, strict=True) if ok) for column in may.T]


def explain_bag(
    run: Run,
    bags: BagDataset,
    bag_id: str,
    *,
    score: str = "attention",
    target: int | None = None,
    include_seen: bool = False,
    new_cohort: bool = False,
    device: str | None = None,
) -> BagExplanation:
    """Predict one bag and score its instances, by the members of a run that never saw it or its patient.

    Args:
        score: as for `qgmil.attention.instance_scores`.
        target: class index for scores that want one; None: the class that the members together predict.
        include_seen: ask every member, also those that were trained on the bag.
        new_cohort: equal names are other bags and patients than the run's.
        device: where to run; None: as the run was configured.

    Raises:
        BagError: no such bag, or every member has seen it.
        ConfigError: a score that the run's aggregator does not have.
    """
    if bag_id not in bags.bag_ids:
        close = ", ".join(repr(b) for b in bags.bag_ids[:5])
        raise BagError(f"there is no bag {bag_id!r} among the {len(bags)} bags (the first are {close})")
    one = bags.subset([bag_id])
    members = members_for(run, one, include_seen=include_seen, new_cohort=new_cohort)[0]
    if not members:
        raise BagError(
            f"bag {bag_id!r} or its patient shaped every model of this run; --include-seen shows it all the same, "
            "--new-cohort if it is another bag of the same name"
        )
    return _explain(run, one[0], one.groups[0], members, score, target, choose_device(device or run.config.device))


def _explain(
    run: Run,
    bag: Bag,
    patient: str,
    members: Sequence[Member],
    score: str,
    target: int | None,
    device: str,
) -> BagExplanation:
    logits = np.concatenate([_logits(member, bag, device) for member in members])
    plain = apply_temperature(logits, 1.0)
    calibrated = np.stack(
        [apply_temperature(row[None], m.temperature)[0] for row, m in zip(logits, members, strict=True)]
    )
    wanted = int(plain.mean(axis=0).argmax()) if target is None else target
    settings: dict[str, Any] = {"classes": run.classes, "target": wanted, "device": device}
    scores = tuple(instance_scores(member.model, bag, score, **settings) for member in members)
    return BagExplanation(
        bag=bag,
        label=bag.label,
        patient=patient,
        classes=run.classes,
        probabilities=plain.mean(axis=0),
        calibrated=calibrated.mean(axis=0),
        members=tuple(members),
        member_probabilities=plain,
        member_scores=scores,
        scores=mean_scores(scores),
    )


def _logits(member: Member, bag: Bag, device: str) -> NDArray[np.float64]:
    """``(1, C)``, in float32: what is looked into is the model as it is saved."""
    model = member.model.eval().to(device)
    with torch.inference_mode():
        out = model(collate([bag]).to(device))
    return expand_binary(out.logits.double().cpu().numpy())
