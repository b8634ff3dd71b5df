"""The loading script compares like with like, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from loading import main, make_cohort, our_batches, plain_batches

from qgmil.bags.dataset import open_bags
from qgmil.bags.store.pack import pack_store


@pytest.mark.parametrize("sample", [None, 3])
def test_every_source_gives_each_bag_once(tmp_path: Path, sample: int | None) -> None:
    manifest = make_cohort(tmp_path, bags=4, instances=7, width=16)
    store = pack_store(manifest, tmp_path / "store").path
    loaded = {
        "plain": list(plain_batches(open_bags(manifest), 0, sample)),
        "files": list(our_batches(open_bags(manifest), 0, sample, 1)),
        "store": list(our_batches(open_bags(store), 0, sample, 1)),
    }
    rows = 7 if sample is None else sample
    for name, batches in loaded.items():
        assert [b.sizes for b in batches] == [(rows,)] * 4, name
        assert sorted(int(b.labels) for b in batches if b.labels is not None) == [0, 0, 1, 1]
        assert all(b.features.dtype == torch.float16 for b in batches)
    for a, b in zip(loaded["files"], loaded["store"], strict=True):
        assert a.bag_ids == b.bag_ids and torch.equal(a.features, b.features)
    if sample is None:
        whole = {name: sorted(b.features.float().sum().item() for b in found) for name, found in loaded.items()}
        assert whole["plain"] == whole["store"]


def test_the_figures_are_ratios_of_one_run(tmp_path: Path) -> None:
    options = {"generated_bags": 4, "instances": 20, "width": 16, "rounds": 1, "workers": (0,), "temporary": tmp_path}
    main([tmp_path / "absent.csv"], model="mean", json_file=tmp_path / "out.json", **options)  # type: ignore[arg-type]
    rows = {row["source"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(rows) == ["memory", "store", "h5 files", "plain h5py, workers 0"]
    store, memory = rows["store"], rows["memory"]
    assert store["training_times_memory"] == pytest.approx(store["training"]["seconds"] / memory["training"]["seconds"])
    assert memory["training_times_memory"] == memory["loading_times_memory"] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
