"""Witness: made bags whose instance truth, sizes and signal are what was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qgmil.bags.dataset import open_bags
from qgmil.cli import main
from qgmil.datasets import NamedDataset, find_dataset, load_dataset
from qgmil.datasets.registry import parse_options
from qgmil.datasets.witness import witness_count, witness_means
from qgmil.errors import ConfigError

OPTIONS = {"classes": 3, "bags_per_class": 20, "sizes": (10, 30), "prevalence": 0.2, "width": 6, "separation": 5.0}


@pytest.fixture(scope="module")
def loaded() -> NamedDataset:
    return load_dataset("witness", **OPTIONS)


def everything(loaded: NamedDataset) -> list[np.ndarray]:
    return [loaded.bags[i].features.numpy() for i in range(len(loaded.bags))]


def test_parts_have_60_20_20_of_the_bags_of_each_class(loaded: NamedDataset) -> None:
    (split,) = loaded.splits
    label = dict(zip(loaded.bags.bag_ids, loaded.bags.labels, strict=True))
    counts = {side: [[label[i] for i in ids].count(c) for c in "012"] for side, ids in split.sides().items()}
    assert counts == {"train": [12] * 3, "val": [4] * 3, "test": [4] * 3}
    assert loaded.info.classes == loaded.bags.classes == ("0", "1", "2")
    assert loaded.info.bags == len(loaded.bags) == 60


def test_witnesses_are_the_share_asked_for_and_only_in_positive_classes(loaded: NamedDataset) -> None:
    for i in range(len(loaded.bags)):
        bag = loaded.bags[i]
        wanted = 0 if bag.label == "0" else round(0.2 * len(bag))
        assert int(bag.instance_labels.sum()) == wanted  # type: ignore[union-attr]
    assert [witness_count(n, p) for n, p in ((10, 0.001), (10, 0.34), (2, 0.9), (50, 0.5))] == [1, 3, 2, 25]


def test_witnesses_are_around_the_mean_of_their_class_and_everything_else_around_zero(loaded: NamedDataset) -> None:
    means = witness_means(3, 6, 5.0, seed=0)
    np.testing.assert_allclose(means @ means.T, 25 * np.eye(2), atol=1e-12)
    groups: dict[tuple[str, int], list[np.ndarray]] = {}
    for i in range(len(loaded.bags)):
        bag = loaded.bags[i]
        for is_witness in (0, 1):
            rows = bag.features.numpy()[bag.instance_labels.numpy() == is_witness]  # type: ignore[union-attr]
            groups.setdefault((str(bag.label), is_witness), []).append(rows)
    for (label, is_witness), parts in groups.items():
        x = np.concatenate(parts)
        if not len(x):
            assert (label, is_witness) == ("0", 1)
            continue
        centre = means[int(label) - 1] if is_witness else np.zeros(6)
        assert np.abs(x.mean(axis=0) - centre).max() < 5 / np.sqrt(len(x))
        assert abs(x.std() - np.sqrt(1 + (centre**2).mean() - centre.mean() ** 2)) < 0.2


def test_sizes_and_places_say_nothing(loaded: NamedDataset) -> None:
    sizes = [len(x) for x in everything(loaded)]
    assert sizes[0::3] == sizes[1::3] == sizes[2::3]
    assert 10 <= min(sizes) < max(sizes) <= 30
    bags = [loaded.bags[i] for i in range(60) if loaded.bags[i].label != "0"]
    places = [int(j) / (len(b) - 1) for b in bags for j in b.instance_labels.nonzero()]  # type: ignore[union-attr]
    assert 0.4 < np.mean(places) < 0.6


def test_shuffling_moves_labels_within_their_part_and_nothing_else(loaded: NamedDataset) -> None:
    shuffled = load_dataset("witness", **OPTIONS, shuffled=True)
    for a, b in zip(everything(loaded), everything(shuffled), strict=True):
        np.testing.assert_array_equal(a, b)
    before, after = np.array(loaded.bags.labels), np.array(shuffled.bags.labels)
    for part in (slice(0, 36), slice(36, 48), slice(48, 60)):
        assert sorted(before[part]) == sorted(after[part])
    assert 0.15 < np.mean(before == after) < 0.55  # a third by chance
    truth = [int(shuffled.bags[i].instance_labels.sum()) > 0 for i in range(60)]  # type: ignore[union-attr]
    assert truth == [label != "0" for label in before]
    assert "nothing can be learnt" in shuffled.notes[0]


def test_the_seed_decides_everything(loaded: NamedDataset) -> None:
    again, other = (load_dataset("witness", **OPTIONS, seed=s) for s in (0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(everything(loaded), everything(again), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(everything(loaded), everything(other), strict=True))


def test_it_is_listed_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_dataset("witness") is not None
    with pytest.raises(SystemExit) as stop:
        main(["datasets", "witness", "-o", str(tmp_path / "w.csv"), "--options.bags-per-class", "5",
              "--options.sizes", "4,6", "--options.shuffled", "true"])  # fmt: skip
    assert not stop.value.code
    said = capsys.readouterr()
    assert "prevalence=0.2" in said.out
    assert "wrote 10 bags" in said.err
    bags = open_bags(tmp_path / "w.csv")
    assert len(bags) == 10
    assert bags[0].width == 16
    assert bags[0].instance_labels is not None


def test_options_typed_as_text() -> None:
    typed = parse_options("witness", {"shuffled": "False", "sizes": "3,4", "separation": "2"})
    assert typed == {"shuffled": False, "sizes": (3, 4), "separation": 2.0}
    with pytest.raises(ConfigError, match="shuffled is 'maybe'; expected something like False"):
        parse_options("witness", {"shuffled": "maybe"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prevalence": 0.0}, "prevalence=0.0 must be above 0 and below 1"),
        ({"classes": 1}, "classes=1 must be at least 2"),
        ({"classes": 9, "width": 7}, "width=7 at least classes - 1"),
        ({"bags_per_class": 4}, "bags_per_class=4 must be at least 5"),
        ({"sizes": (1, 4)}, r"sizes=\(1, 4\) must be the fewest"),
        ({"separation": -1.0}, "separation=-1.0 must be a number of at least 0"),
    ],
)
def test_values_out_of_range(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_dataset("witness", **options)
