"""PBC: bags with a known share of immature granulocytes, made inside each part of the cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qgmil.datasets import NamedDataset, load_dataset
from qgmil.datasets.pbc import DIFFERENTIAL, split_cells
from qgmil.errors import ConfigError, ManifestError, ReadError

SUBTYPES = {"neutrophil": ("SNE", "BNE"), "ig": ("MMY", "MY", "PMY")}
COUNTS = {"neutrophil": 400, "lymphocyte": 150, "monocyte": 60, "eosinophil": 60, "basophil": 60, "ig": 90}
OPTIONS = {"prevalence": 0.1, "bags": 40, "sizes": (20, 40)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """820 cells; the only two features of a cell are its row and whether it is immature."""
    root = tmp_path_factory.mktemp("root")
    (root / "pbc").mkdir()
    rows = ["row,cell_id,class,subtype"]
    for kind, count in COUNTS.items():
        subtypes = SUBTYPES.get(kind, (kind[:2].upper(),))
        rows += [f"{len(rows) - 1 + i},{kind}_{i},{kind},{subtypes[i % len(subtypes)]}" for i in range(count)]
    (root / "pbc" / "cells.csv").write_text("\n".join(rows) + "\n")
    features = np.array([[i, "ig_" in row] for i, row in enumerate(rows[1:])], dtype=np.float16)
    np.save(root / "pbc" / "features_x.npy", features)
    return root


@pytest.fixture(scope="module")
def loaded(root: Path) -> NamedDataset:
    return load_dataset("pbc", root, **OPTIONS)


def rows_of(loaded: NamedDataset, ids: tuple[str, ...]) -> list[np.ndarray]:
    bags = loaded.bags.subset(ids)
    return [bags[i].features[:, 0].numpy().astype(int) for i in range(len(bags))]


def test_parts_have_60_20_20_of_the_bags_half_of_them_positive(loaded: NamedDataset) -> None:
    (split,) = loaded.splits
    assert loaded.split_columns == ("split",)
    assert [len(s) for s in split.sides().values()] == [24, 8, 8]
    label = dict(zip(loaded.bags.bag_ids, loaded.bags.labels, strict=True))
    for ids in split.sides().values():
        assert [label[i] for i in ids] == ["negative", "positive"] * (len(ids) // 2)


def test_no_cell_is_in_two_parts_and_every_part_has_its_share_of_every_subtype(loaded: NamedDataset) -> None:
    (split,) = loaded.splits
    cells = {side: set(np.concatenate(rows_of(loaded, ids)).tolist()) for side, ids in split.sides().items()}
    assert not cells["train"] & cells["val"]
    assert not cells["train"] & cells["test"]
    assert not cells["val"] & cells["test"]
    subtypes = np.array(["a"] * 100 + ["b"] * 10 + ["c"] * 3)
    parts = split_cells(subtypes, seed=3)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(113))
    counts = {side: [int((subtypes[rows] == s).sum()) for s in "abc"] for side, rows in parts.items()}
    assert counts == {"train": [60, 6, 2], "val": [20, 2, 0], "test": [20, 2, 1]}


def test_positive_bags_have_the_share_asked_for_and_negative_ones_none(loaded: NamedDataset) -> None:
    for i in range(len(loaded.bags)):
        bag = loaded.bags[i]
        assert bag.instance_labels is not None
        assert bag.instance_labels.tolist() == bag.features[:, 1].int().tolist()
        wanted = round(0.1 * len(bag)) if bag.label == "positive" else 0
        assert int(bag.instance_labels.sum()) == wanted
        rows = bag.features[:, 0].tolist()
        assert len(set(rows)) == len(rows)  # no cell twice in a bag
        assert bag.instance_ids is not None
        assert all(
            name.startswith("ig_") == bool(t) for name, t in zip(bag.instance_ids, bag.instance_labels, strict=True)
        )


def test_even_the_rarest_prevalence_puts_a_cell_into_every_positive_bag(root: Path) -> None:
    loaded = load_dataset("pbc", root, **{**OPTIONS, "prevalence": 0.001})
    truth = [int(loaded.bags[i].instance_labels.sum()) for i in range(40)]  # type: ignore[union-attr]
    assert truth == [0, 1] * 20


def test_sizes_are_the_same_in_both_classes_and_within_the_bounds(loaded: NamedDataset) -> None:
    sizes = [len(loaded.bags[i]) for i in range(40)]
    assert sizes[0::2] == sizes[1::2]
    assert 20 <= min(sizes) < max(sizes) <= 40


def test_the_differential_is_normal(root: Path) -> None:
    loaded = load_dataset("pbc", root, bags=120, sizes=(30, 50), prevalence=0.1)
    names = [n.split("_")[0] for i in range(0, 120, 2) for n in loaded.bags[i].instance_ids or ()]
    for kind, share in DIFFERENTIAL.items():
        assert abs(names.count(kind) / len(names) - share) < 4 * np.sqrt(share * (1 - share) / len(names))


def test_immature_cells_are_not_where_the_bag_ends(loaded: NamedDataset) -> None:
    places = [
        int(i) / len(bag)
        for bag in (loaded.bags[i] for i in range(1, 40, 2))
        for i in bag.instance_labels.nonzero()  # type: ignore[union-attr]
    ]
    assert 0.3 < np.mean(places) < 0.7


def test_the_seed_decides_everything(root: Path, loaded: NamedDataset) -> None:
    again, other = (load_dataset("pbc", root, **OPTIONS, seed=s) for s in (0, 1))
    for i in range(40):
        assert again.bags[i].instance_ids == loaded.bags[i].instance_ids
    assert any(other.bags[i].instance_ids != loaded.bags[i].instance_ids for i in range(40))
    trains = [set(np.concatenate(rows_of(d, d.splits[0].train)).tolist()) for d in (loaded, other)]
    assert trains[0] != trains[1]  # the cells are split anew too


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prevalence": 0.0}, "prevalence=0.0 must be above 0 and below 1"),
        ({"prevalence": 1.5}, "prevalence=1.5 must be above 0"),
        ({"bags": 11}, "bags=11 must be even and at least 10"),
        ({"bags": 4}, "bags=4 must be even and at least 10"),
        ({"sizes": (5, 4)}, r"sizes=\(5, 4\) must be the fewest"),
        ({"sizes": (500, 500)}, r"a bag needs \d+ cells of type neutrophil but the train part has 240"),
    ],
)
def test_values_out_of_range(options: dict[str, object], said: str, root: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_dataset("pbc", root, **options)


def test_tables_and_features_that_do_not_agree(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pbc"
    folder.mkdir()
    text = (root / "pbc" / "cells.csv").read_text()
    (folder / "cells.csv").write_text(text)
    with pytest.raises(ReadError, match=r"has none for features; put one features_ENCODER.npy there"):
        load_dataset("pbc", tmp_path)
    np.save(folder / "features_a.npy", np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(ReadError, match="has 3 rows for the 820 cells"):
        load_dataset("pbc", tmp_path)
    np.save(folder / "features_b.npy", np.zeros((820, 2), dtype=np.float32))
    with pytest.raises(ReadError, match=r"has 'features_a.npy', 'features_b.npy' for features"):
        load_dataset("pbc", tmp_path)
    assert len(load_dataset("pbc", tmp_path, features="features_b.npy", **OPTIONS).bags) == 40
    lines = text.splitlines()
    (folder / "cells.csv").write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(ManifestError, match="row '1' where 0 should be"):
        load_dataset("pbc", tmp_path, features="features_b.npy")
    (folder / "cells.csv").write_text(text.replace(",basophil,", ",platelet,"))
    with pytest.raises(ManifestError, match="there are no cells of type 'basophil'"):
        load_dataset("pbc", tmp_path, features="features_b.npy")
