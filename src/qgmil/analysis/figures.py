"""Figures of the attention of a cohort. All return a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from qgmil.analysis.records import Record
from qgmil.errors import MetricError
from qgmil.evaluation.style import FAINT, INK, PALETTE, legend, new_figure, plain, style_axes

MARKERS = "os^Dvp*h"
HEAD_FIGURES = {
    "row_entropy": "entropy of a row (1 = uniform)",
    "sink": "most received / uniform",
    "max_logit": "largest QK logit",
    "gate_mean": "mean gate",
}


def entropy_figure(sources: Mapping[str, Sequence[Record]], *, title: str = "Entropy and bag size") -> Figure:
    """Normalised entropy of each bag's attention against its size; wrong predictions are drawn hollow.

    Args:
        sources: {name: records of its bags}.

    Raises:
        MetricError: no records.
    """
    if not any(sources.values()):
        raise MetricError("no bags to draw the entropy of")
    fig = new_figure(6.6, 4.4)
    ax = fig.subplots()
    sizes: list[int] = []
    for number, (name, records) in enumerate(sources.items()):
        colour = PALETTE[number % len(PALETTE)]
        x = np.array([r.row["n_instances"] for r in records])
        y = np.array([r.row["entropy"] for r in records])
        wrong = np.array([r.row["correct"] is False for r in records])
        look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "s": 26, "linewidths": 1.1}
        ax.scatter(x[~wrong], y[~wrong], color=colour, label=plain(name), alpha=0.75, **look)
        ax.scatter(x[wrong], y[wrong], facecolors="none", edgecolors=colour, **look)
        sizes += x.tolist()
    style_axes(ax, title=title, xlabel="instances in the bag", ylabel="normalised entropy of attention (1 = uniform)")
    if min(sizes) < max(sizes):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(top=1.02)
    if any(r.row["correct"] is False for records in sources.values() for r in records):
        hollow: dict[str, Any] = {"marker": "o", "facecolors": "none", "edgecolors": FAINT, "s": 26}
        ax.scatter([], [], label="predicted wrongly", **hollow)
    legend(ax, len(sources) + 1, "lower left")
    return fig


def head_figure(sources: Mapping[str, Sequence[Record]], *, title: str = "Inside the transformer") -> Figure:
    """Figures of every layer and head, over bags: the median with the 10th to 90th percentile.

    Args:
        sources: {name: records}; those without heads are left out.

    Raises:
        MetricError: no record has figures of heads.
    """
    held = {name: [h for r in records for h in r.heads] for name, records in sources.items()}
    held = {name: heads for name, heads in held.items() if heads}
    if not held:
        raise MetricError("no aggregator here has heads to draw")
    named = [k for k in HEAD_FIGURES if any(h.get(k) is not None for heads in held.values() for h in heads)]
    fig = new_figure(max(6.0, 3.1 * len(named)), 3.4)
    axes = np.atleast_1d(fig.subplots(1, len(named)))
    for ax, figure in zip(axes, named, strict=True):
        offset = 0
        ticks: list[tuple[float, str]] = []
        for number, (name, heads) in enumerate(held.items()):
            places = sorted({(h["layer"], h["head"]) for h in heads})
            values = [
                [h[figure] for h in heads if (h["layer"], h["head"]) == p and h.get(figure) is not None] for p in places
            ]
            x = [offset + i for i, v in enumerate(values) if v]
            middle = np.array([np.median(v) for v in values if v])
            if len(middle):
                low = np.array([np.quantile(v, 0.1) for v in values if v])
                high = np.array([np.quantile(v, 0.9) for v in values if v])
                colour = PALETTE[number % len(PALETTE)]
                ax.errorbar(
                    x,
                    middle,
                    yerr=[middle - low, high - middle],
                    fmt=MARKERS[number % len(MARKERS)],
                    color=colour,
                    markersize=5,
                    capsize=2,
                    label=plain(name),
                )
            ticks += [(offset + i, f"{layer + 1}.{head + 1}") for i, (layer, head) in enumerate(places)]
            offset += len(places) + 1
        style_axes(ax, title="", xlabel="layer.head", ylabel=HEAD_FIGURES[figure])
        ax.set_xticks([t for t, _ in ticks], [n for _, n in ticks], fontsize=8 if len(ticks) <= 8 else 6)
        if figure == "sink":
            ax.axhline(1.0, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    fig.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    if len(held) > 1:
        legend(axes[0], len(held), "best")
    return fig


def faithfulness_figure(sources: Mapping[str, Sequence[Record]], *, title: str = "Faithfulness") -> Figure:
    """Mean deletion and insertion curves of each source, and (dashed, in its colour) of random order.

    Raises:
        MetricError: faithfulness was not measured.
    """
    held = {name: [r.faithfulness for r in records if r.faithfulness] for name, records in sources.items()}
    held = {name: curves for name, curves in held.items() if curves}
    if not held:
        raise MetricError("faithfulness was not measured for any bag")
    fig = new_figure(9.6, 4.2)
    axes = fig.subplots(1, 2, sharey=True)
    panels = (
        (axes[0], "deletion", "Deletion: lower than random is faithful", "share of instances removed"),
        (axes[1], "insertion", "Insertion: higher than random is faithful", "share of instances kept"),
    )
    for ax, kind, name, label in panels:
        for number, (source, curves) in enumerate(held.items()):
            shares = curves[0]["shares"]
            x = np.arange(len(shares))
            colour = PALETTE[number % len(PALETTE)]
            chance = np.mean([np.mean(c[f"random_{kind}"], axis=0) for c in curves], axis=0)
            ax.plot(x, chance, color=colour, linestyle=(0, (3, 2)), linewidth=1.3)
            mean = np.mean([c[kind] for c in curves], axis=0)
            look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "markersize": 5, "linewidth": 2}
            ax.plot(x, mean, color=colour, label=plain(source), **look)
        style_axes(ax, title=name, xlabel=label, ylabel="probability of the predicted class" if ax is axes[0] else "")
        ax.set_xticks(x, [f"{100 * s:g}%" for s in shares])
    axes[0].set_ylim(top=1.02)  # after both are drawn: it ends the search for the lower end, which they share
    axes[0].plot([], [], color=FAINT, linestyle=(0, (3, 2)), linewidth=1.3, label="the same, random order")
    legend(axes[0], len(held) + 1, "lower left")
    fig.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    return fig
