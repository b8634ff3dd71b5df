"""Columns of the features that give the label of a bag away: they are the same in all its instances."""

from __future__ import annotations

from collections import Counter

import numpy as np

from qgmil.bags import hints
from qgmil.bags.check.facts import Moments
from qgmil.bags.problems import Problem, sorted_labels

FEW_BAGS = 6  # in fewer, a column fits the labels by chance
FEW_OF_A_CLASS = 2
MOST_LABELS = 64  # so many ranges of every feature are kept
MOST_NUMBERS = 16  # a bag has one number, or a few; hundreds of such columns are features of the whole bag
MOST_COLUMNS = 20


class Leaks:
    """What is remembered of the columns that are constant in each of the bags seen so far.

    Bags that cannot tell (of one instance, of one that is repeated, without a label) are passed over. Memory: two
    numbers a column and label, whatever the number of bags.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.constant = np.ones(width, bool)
        self.binary = np.ones(width, bool)
        self.bags: Counter[str] = Counter()
        self.low: dict[str, np.ndarray] = {}
        self.high: dict[str, np.ndarray] = {}
        self.numbers: dict[int, set[float]] | None = None  # the values of columns that no two bags share

    def add(self, label: str | None, bag: Moments) -> None:
        """Take in a bag: its label and the range of each of its features."""
        same = bag.low == bag.high
        if label is None or bag.rows < 2 or same.all():
            return
        if label not in self.low:
            if len(self.low) == MOST_LABELS:  # no classes
                self.constant[:] = False
                return
            self.low[label], self.high[label] = bag.low.copy(), bag.high.copy()
        self.bags[label] += 1
        self.constant &= same
        self.binary &= (bag.low == 0) | (bag.low == 1)
        np.minimum(self.low[label], bag.low, out=self.low[label])
        np.maximum(self.high[label], bag.high, out=self.high[label])
        self._add_numbers(bag.low)

    def _add_numbers(self, values: np.ndarray) -> None:
        if self.numbers is None:
            self.numbers = {int(c): set() for c in np.flatnonzero(self.constant)}
        for column, seen in list(self.numbers.items()):
            value = float(values[column])
            if not self.constant[column] or value in seen or not value.is_integer():
                del self.numbers[column]
            seen.add(value)
        if len(self.numbers) > MOST_NUMBERS and self.bags.total() > 2:
            self.numbers = {}

    def labels(self) -> list[int]:
        """Columns that are the same in all bags of a class, and not the same in all classes."""
        if self.bags.total() < FEW_BAGS or len(self.bags) < 2 or min(self.bags.values()) < FEW_OF_A_CLASS:
            return []
        low, high = np.stack(list(self.low.values())), np.stack(list(self.high.values()))
        tells = self.constant & (low == high).all(axis=0) & (low != low[:1]).any(axis=0)
        return [int(c) for c in np.flatnonzero(tells)]

    def problems(self) -> tuple[list[Problem], list[Problem]]:
        """The problems and the warnings that these columns are."""
        told = self.labels()
        problems = [Problem("leak", None, self._about_labels(told))] if told else []
        numbers = sorted(self.numbers or ()) if self.bags.total() >= FEW_BAGS else []
        if not numbers:
            return problems, []
        are, each = ("is", "its") if len(numbers) == 1 else ("are", "their")
        message = (
            f"{_columns(numbers)} {are} constant in every bag, with a value of {each} own in each: a number of the bag "
            "rather than a feature? If so, take it out"
        )
        return problems, [Problem("leak", None, message)]

    def _about_labels(self, columns: list[int]) -> str:
        one = len(columns) == 1
        message = (
            f"label among the features: {_columns(columns)} {'is' if one else 'are'} constant in every bag and "
            f"{'tells' if one else 'tell'} its label ({self._example(columns[-1])}), so that a model learns nothing "
            "else: take the label out"
        )
        run = self.width - columns[0]
        if not (self.constant & self.binary)[columns[0] :].all():
            return message
        say = f"{hints.option('format', 'dsmil')} and {hints.option('dataset', str(run))}"
        return f"{message}; if these are DSMIL files, read them with {say}"

    def _example(self, column: int) -> str:
        of_label = [f"{self.low[label][column]:g} in class {label!r}" for label in sorted_labels(self.low)]
        return f"column {column} is {', '.join(of_label[:3])}{', ...' if len(of_label) > 3 else ''}"


def _columns(columns: list[int]) -> str:
    more = f" and {len(columns) - MOST_COLUMNS} more" if len(columns) > MOST_COLUMNS else ""
    return f"column{'s' * (len(columns) != 1)} {', '.join(map(str, columns[:MOST_COLUMNS]))}{more}"
