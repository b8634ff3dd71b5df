"""Whether the colours of images give the class away: the first suspect where stains, scanners or sites differ."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qgmil.bags.manifest import BagRecord
from qgmil.bags.problems import Problem
from qgmil.bags.readers.base import guarded, listing
from qgmil.errors import ConfigError, QGMILError, ReadError
from qgmil.images.instances import SUFFIXES, Tar, decode, image_members, is_slide
from qgmil.images.slides import open_slide
from qgmil.images.tissue import coloured

COLUMNS = ("images", "slide", "image")
#: Pictures of a bag that are looked at, evenly spaced over it, and the longest edge of a slide that is.
SAMPLE, EDGE = 64, 512
FOLDS, REPEATS, SHUFFLES = 5, 5, 40
#: Colours that rank bags better than this, and better than shuffled labels as a rule do, are warned of.
SUSPECT = 0.6


@dataclass(frozen=True)
class Colours:
    """What colours alone say of the class.

    Args:
        means: of red, green and blue, 0 to 255, over the bags of each class: mean and sd.
        auroc_mean: of a logistic regression on the means of the three, cross-validated by patient (macro over classes);
            None where a class has too few patients.
        auroc: the same of means and spreads.
        chance: the 95th percentile of that under shuffled labels.
        bags: how many were looked at.
        unread: bags whose images could not be read, with the reason.
    """

    means: dict[str, tuple[tuple[float, float], ...]]
    auroc_mean: float | None
    auroc: float | None
    chance: float | None
    bags: int
    unread: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        classes = {label: [{"mean": m, "sd": s} for m, s in rgb] for label, rgb in self.means.items()}
        return {
            "bags": self.bags,
            "auroc_mean": self.auroc_mean,
            "auroc": self.auroc,
            "auroc_shuffled_95": self.chance,
            "rgb": classes,
        }

    def warnings(self) -> list[Problem]:
        """What deserves a look."""
        found = [Problem("images", bag, f"bag {bag!r}: {reason}") for bag, reason in self.unread]
        if self.auroc is not None and self.chance is not None and self.auroc > max(SUSPECT, self.chance):
            message = (
                f"mean colour and its spread alone rank bags with an AUROC of {self.auroc:.2f} (mean colour "
                f"{self.auroc_mean:.2f}; cross-validated by patient; shuffled labels reach {self.chance:.2f} in one of "
                "twenty tries): stain, scanner or site may "
                "differ between the classes; compare with the control (linear_probe on colours), and test elsewhere"
            )
            found.append(Problem("colour", None, message))
        return found


def check_colours(
    records: Sequence[BagRecord],
    folder: Path,
    column: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Colours:
    """Look at the images of labelled bags.

    Args:
        records: the bags; their extra columns name a folder, tar or slide each.
        folder: what relative names are relative to.
        column: which column; None: the first of `COLUMNS` that is there.
        progress: called with (bags done, bags in all).

    Raises:
        ConfigError: no such column, or one picture for several bags.
    """
    column = _column(records, column)
    usable = [r for r in records if r.label is not None and r.extra.get(column)]
    names = [r.extra[column] for r in usable]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise ConfigError(f"column {column}: several bags name {twice}; the colours of each need images of its own")
    rows, kept, unread = [], [], []
    for done, record in enumerate(usable, start=1):
        try:
            rows.append(bag_colours(folder / record.extra[column]))
            kept.append(record)
        except QGMILError as error:
            unread.append((record.bag_id, str(error)))
        if progress is not None:
            progress(done, len(usable))
    colours = np.array(rows, dtype=np.float64).reshape(-1, 6)
    labels = np.array([r.label for r in kept])
    groups = np.array([r.group for r in kept])
    means = {
        str(label): tuple(
            zip(*(f(colours[labels == label, :3], axis=0).tolist() for f in (np.mean, np.std)), strict=True)
        )
        for label in np.unique(labels)
    }
    auroc = cross_validated(colours, labels, groups)
    chance = None
    if auroc is not None:
        shuffled = [cross_validated(colours, _shuffled(labels, groups, s), groups, repeats=1) for s in range(SHUFFLES)]
        chance = float(np.percentile([s for s in shuffled if s is not None] or [1.0], 95))
    return Colours(means, cross_validated(colours[:, :3], labels, groups), auroc, chance, len(kept), tuple(unread))


def _column(records: Sequence[BagRecord], column: str | None) -> str:
    have = list(dict.fromkeys(name for r in records for name in r.extra))
    found = column if column in have else next((c for c in COLUMNS if c in have), None) if column is None else None
    if found is None:
        wanted = f"no column {column!r}" if column is not None else f"no column {', '.join(COLUMNS)}"
        raise ConfigError(f"the table has {wanted} that names the images of each bag; it has {listing(have)}")
    return found


def bag_colours(where: Path) -> NDArray[np.float64]:
    """Mean and sd of red, green and blue ``(6,)``, 0 to 255, over a sample of the images, of a slide over its tissue.

    Raises:
        ReadError: nothing there, or nothing that can be read.
    """
    if where.is_dir():
        files = sorted(p for p in where.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        pixels, lost = [], ""
        for path in _sample(files):
            try:
                pixels.append(_pixels(decode(path, path.stat().st_size, partial(Image.open, path))))
            except ReadError as error:
                lost = str(error)
        if files and not pixels:
            raise ReadError(lost)
    elif not where.is_file():
        raise ReadError(f"{where}: no such file or folder of images")
    elif is_slide(where):
        pixels = [_tissue(where)]
    else:
        with guarded(where, "a tar"), tarfile.open(where) as tar:
            wanted = {m.name for m in _sample(list(image_members(where, tar)))}
        pixels = [_pixels(image) for image in Tar.pictures(where, wanted)]
    if not pixels:
        raise ReadError(f"{where}: has no images")
    every = np.concatenate(pixels).astype(np.float64)
    return np.concatenate([every.mean(axis=0), every.std(axis=0)])


def _sample(items: Sequence[Any]) -> list[Any]:
    count = min(len(items), SAMPLE)
    return [items[i * len(items) // count] for i in range(count)]


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    image.thumbnail((64, 64))
    return np.asarray(image).reshape(-1, 3)


def _tissue(path: Path) -> NDArray[np.uint8]:
    with closing(open_slide(path)) as slide:
        down = max(1.0, max(slide.size) / EDGE)
        size = (max(1, round(slide.size[0] / down)), max(1, round(slide.size[1] / down)))
        rgb = np.asarray(slide.region(0, 0, *slide.size, size))
    mask, _ = coloured(rgb)
    return rgb[mask] if mask.any() else rgb.reshape(-1, 3)


def cross_validated(
    colours: NDArray[np.float64], labels: NDArray[Any], groups: NDArray[Any], repeats: int = REPEATS
) -> float | None:
    """AUROC (macro, one against the rest) of pooled out-of-fold predictions, averaged over `repeats` splits by patient.

    None where a class has fewer patients than folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = np.unique(labels)
    if len(classes) < 2 or min(len(set(groups[labels == c])) for c in classes) < FOLDS:
        return None
    scores = []
    for seed in range(repeats):
        said = np.full((len(labels), len(classes)), np.nan)
        for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(colours, labels, groups):
            if len(set(labels[train])) < len(classes):
                return None
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
                colours[train], labels[train]
            )
            said[test] = model.predict_proba(colours[test])
        scores.append(float(np.mean([roc_auc_score(labels == c, said[:, i]) for i, c in enumerate(classes)])))
    return float(np.mean(scores))


def _shuffled(labels: NDArray[Any], groups: NDArray[Any], seed: int) -> NDArray[Any]:
    """Labels exchanged between patients, so that those of one patient still go together."""
    names, first, which = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return labels[first[order][which]]
