"""The instances of a bag in order of attention, each with the mass it holds and the cumulative mass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from qgmil.attention.scores import InstanceScores
from qgmil.bags.bag import Bag
from qgmil.errors import BagError, ReadError
from qgmil.evaluation.checks import check_count
from qgmil.evaluation.style import FAINT, INK, PALETTE, new_figure, plain, wrapped
from qgmil.images.instances import Images

COLUMNS = 8
#: Inches: from one picture to the next, between two, and the line above each.
STEP, GAP, CAPTION = 1.3, 0.1, 0.2


@dataclass(frozen=True, eq=False)
class GalleryItem:
    """One instance of a gallery.

    Args:
        rank: 1 is the highest score; ties by row.
        row: of the bag.
        instance_id: its name, where the bag has names.
        weight: its score.
        cumulative: sum of the scores from the highest to this one.
        image: RGB, square; None where it cannot be read, and `problem` says why.
        truth: its instance label, where the bag has them.
    """

    rank: int
    row: int
    instance_id: str | None
    weight: float
    cumulative: float
    image: Image.Image | None
    truth: int | None
    problem: str | None = None

    def table_row(self) -> dict[str, Any]:
        """A row for a table, without the picture."""
        names = ("rank", "row", "instance_id", "weight", "cumulative", "truth", "problem")
        return {name: getattr(self, name) for name in names}


def gallery_items(
    bag: Bag, scores: InstanceScores, images: Images | None, *, top: int = 24, bottom: int = 8, size: int = 96
) -> list[GalleryItem]:
    """The highest and lowest instances in order of their scores, no instance twice.

    Args:
        images: where pictures come from (`open_images`); None: no pictures.
        top, bottom: how many from each end.
        size: edge of the pictures in pixels; they are padded to squares, not stretched.

    Raises:
        BagError: other instances than scores.
        ConfigError: counts or a size that cannot be.
    """
    n = len(bag)
    if len(scores.values) != n:
        raise BagError(f"bag {bag.bag_id!r}: {len(scores.values)} scores for {n} instances")
    check_count(top, "top")
    check_count(bottom, "bottom", 0)
    check_count(size, "size", 8)
    order = np.argsort(-scores.values, kind="stable")
    cumulative = np.cumsum(scores.values[order])
    places = [*range(min(top, n)), *range(max(min(top, n), n - bottom), n)]
    return [_item(bag, scores, images, size, int(order[p]), p, float(cumulative[p])) for p in places]


def _item(
    bag: Bag, scores: InstanceScores, images: Images | None, size: int, row: int, place: int, cumulative: float
) -> GalleryItem:
    picture, problem = None, None
    if images is not None:
        try:
            picture = ImageOps.pad(images.picture(row), (size, size), color="white")
        except ReadError as error:
            problem = str(error)
    return GalleryItem(
        rank=place + 1,
        row=row,
        instance_id=None if bag.instance_ids is None else bag.instance_ids[row],
        weight=float(scores.values[row]),
        cumulative=cumulative,
        image=picture,
        truth=None if bag.instance_labels is None else int(bag.instance_labels[row]),
        problem=problem,
    )


def gallery_figure(
    items: Sequence[GalleryItem], scores: InstanceScores, *, title: str = "", positives: Sequence[int] | None = None
) -> Figure:
    """The pictures in rows, under each its rank, its score and the mass up to it; sought instances have a frame.

    Args:
        positives: instance labels that are sought; None: all above 0.

    Raises:
        BagError: no items.
    """
    if not items:
        raise BagError("there are no instances to show")
    broken = next((i for i in range(1, len(items)) if items[i].rank != items[i - 1].rank + 1), len(items))
    parts = [("", items[:broken]), ("the least attended", items[broken:])]
    across = COLUMNS * STEP
    note = f"{scores.description}; rank: score" + (", Σ cumulative mass" if scores.is_mass else "")
    note += "; framed: sought instances" if any(_sought(item, positives) for item in items) else ""
    heading = [*(wrapped(title, across, 10) if title else []), *wrapped(note, across, 10)]
    rows = sum(math.ceil(len(part) / COLUMNS) for _, part in parts)
    total = 0.2 * len(heading) + 0.1 + rows * (STEP + CAPTION) + (0.35 if parts[1][1] else 0)
    fig = new_figure(across, total)
    fig.set_layout_engine("none")  # pictures of one size in columns: every place is known
    fig.text(0, 1, plain("\n".join(heading)), ha="left", va="top", fontsize=10, color=INK, linespacing=1.3)
    y = total - 0.2 * len(heading) - 0.1
    for name, part in parts:
        if name and part:
            y -= 0.35
            fig.text(0, (y + 0.03) / total, name, ha="left", va="bottom", fontsize=10, color=INK)
        for i, item in enumerate(part):
            column = i % COLUMNS
            if column == 0:
                y -= STEP + CAPTION
            edge = STEP - GAP
            ax = fig.add_axes((column * STEP / across, (y + GAP) / total, edge / across, edge / total))
            ax.set_axis_off()
            _draw(ax, item, scores.is_mass, positives)
    return fig


def _draw(ax: Any, item: GalleryItem, is_mass: bool, positives: Sequence[int] | None) -> None:
    if item.image is not None:
        ax.imshow(np.asarray(item.image), interpolation="none")
    else:
        ax.add_patch(Rectangle((0, 0), 1, 1, facecolor="#F2F2F2", edgecolor=FAINT, hatch="//"))
        ax.set(xlim=(0, 1), ylim=(1, 0), aspect="equal")
        ax.text(0.5, 0.5, "no picture", ha="center", va="center", fontsize=8, color=INK)
    if _sought(item, positives):
        frame: dict[str, Any] = {"fill": False, "edgecolor": PALETTE[1], "linewidth": 3}
        ax.add_patch(Rectangle((0.01, 0.01), 0.98, 0.98, transform=ax.transAxes, **frame))
    share = f"  Σ {100 * item.cumulative:.3g}%" if is_mass else ""
    score = f"{100 * item.weight:.2g}%" if is_mass else f"{item.weight:.2g}"
    ax.set_title(f"{item.rank}: {score}{share}", fontsize=7.5, color=INK, pad=3)


def _sought(item: GalleryItem, positives: Sequence[int] | None) -> bool:
    return item.truth is not None and (item.truth > 0 if positives is None else item.truth in positives)
