"""The critical-difference diagram of Demsar (2006): average ranks on a line, bars over what does not differ."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qgmil.benchmark.overall import Overall
from qgmil.evaluation.comparison import rank_groups
from qgmil.evaluation.style import FAINT, INK, PALETTE, new_figure, plain
from qgmil.evaluation.text import p_value, shorten_all

NAME = 34  # characters of a model's name
STEP = 0.32  # inches between two names, which share no line
HEAD = 1.05  # inches above the axis


def critical_difference_figure(overall: Overall) -> Figure | None:
    """Average ranks, 1 at the left; models under one bar do not differ at 0.05 by Nemenyi's test.

    None where Friedman's test is undefined: fewer than three ranked models, or than two data sets on which all are
    complete. Where Friedman's test does not reject, the title says so.
    """
    test, difference = overall.friedman, overall.critical_difference
    if test is None or difference is None:
        return None
    standings = [s for s in overall.standings if s.ranked]
    ranks = list(test.average_ranks)
    k = len(ranks)
    groups = rank_groups(ranks, difference)
    bars = 0.2 * len(groups)
    half = (k + 1) // 2
    height = HEAD + 0.25 + bars + STEP * half
    fig = new_figure(9.0, height)
    ax = fig.subplots()
    names = [plain(name) for name in shorten_all([s.model for s in standings], NAME)]
    ax.set(xlim=(1 - 0.42 * (k - 1), k + 0.42 * (k - 1)), ylim=(-(0.25 + bars + STEP * half), HEAD - 0.1))
    ax.axis("off")
    _axis(ax, k, difference)
    for number, group in enumerate(groups):
        y = -0.16 - 0.2 * number
        pad = 0.006 * (k - 1)
        ax.plot(
            [ranks[group[0]] - pad, ranks[group[-1]] + pad], [y, y], color=INK, linewidth=4.5, solid_capstyle="butt"
        )
    reach = 0.03 * (k - 1)
    for i, (name, value, standing) in enumerate(zip(names, ranks, standings, strict=True)):
        left = i < half
        row = i if left else k - 1 - i  # the outermost names stand highest, so that no line crosses a name
        y = -(0.25 + bars + STEP * row + STEP / 2)
        end = 1 - reach if left else k + reach
        colour = PALETTE[0] if standing.family else FAINT if standing.control else INK
        ax.plot([value, value, end], [0, y, y], color=colour, linewidth=1.2, zorder=1)
        label = f"{name}  {value:.2f}" if left else f"{value:.2f}  {name}"
        ax.text(
            end - reach / 3 if left else end + reach / 3, y, label,
            ha="right" if left else "left", va="center", fontsize=9.5, color=colour,
            fontweight="bold" if standing.model == overall.reference else "normal",
        )  # fmt: skip
    _title(ax, overall)
    return fig


def _axis(ax: Axes, k: int, difference: float) -> None:
    ax.plot([1, k], [0, 0], color=INK, linewidth=1.3)
    for tick in range(1, k + 1):
        ax.plot([tick, tick], [0, 0.07], color=INK, linewidth=1.3)
        ax.text(tick, 0.1, str(tick), ha="center", va="bottom", fontsize=9, color=INK)
    start, y = 1.0, 0.47
    ax.plot([start, start + difference], [y, y], color=INK, linewidth=1.6)
    for end in (start, start + difference):
        ax.plot([end, end], [y - 0.05, y + 0.05], color=INK, linewidth=1.6)
    ax.text(start + difference / 2, y + 0.06, f"CD = {difference:.2f}", ha="center", va="bottom", fontsize=9, color=INK)


def _title(ax: Axes, overall: Overall) -> None:
    test = overall.friedman
    assert test is not None
    p = test.f_p if test.f_p is not None else test.chi2_p
    small = p is not None and p < 0.001
    text = f"Average rank over {test.n} data sets (1 is best); Friedman p {'< 0.001' if small else '= ' + p_value(p)}"
    if p is not None and p >= 0.05:
        text += ": ranks not shown to differ"
    ax.set_title(text, fontsize=11, fontweight="bold", color=INK, pad=6)
