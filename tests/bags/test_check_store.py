"""`check_bags` on a packed store: checksums first, then everything that is said of any bags."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from qgmil.bags.check import CheckReport, check_bags
from qgmil.bags.store.pack import pack_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Twelve bags of 5, 6 ... instances; s2 and s3, of two patients, share four of them; s0 has a tile twice."""
    rng = np.random.default_rng(0)
    lines = ["bag_id,patient_id,label,features,fold"]
    values = [rng.normal(size=(5 + i, 32)).astype(np.float16) for i in range(12)]
    values[3][:4] = values[2][:4]
    for i, features in enumerate(values):
        places = np.arange(2 * len(features)).reshape(-1, 2) * 512
        places[1] = places[0] if i == 0 else places[1]
        with h5py.File(tmp_path / f"s{i}.h5", "w") as file:
            file["features"], file["coords"] = features, places
            file["coords"].attrs["patch_size_level0"] = 512
        lines.append(f"s{i},P{i},{'xy'[i % 2]},s{i}.h5,{i % 3}")
    (tmp_path / "bags.csv").write_text("\n".join(lines) + "\n")
    pack_store(tmp_path / "bags.csv", tmp_path / "store")
    return tmp_path / "store"


def same_but_source(report: CheckReport) -> dict[str, object]:
    said = report.as_dict()
    return {k: v for k, v in said.items() if k not in ("source", "problems", "warnings")} | {
        "warnings": [(w["kind"], w["message"]) for w in said["warnings"]]
    }


def test_a_store_is_reported_as_the_files_that_were_packed(store: Path) -> None:
    steps: list[tuple[int, int]] = []
    packed = check_bags(store, progress=lambda done, total: steps.append((done, total)))
    files = check_bags(store.parent / "bags.csv")
    assert packed.ok and same_but_source(packed) == same_but_source(files)
    assert {w.kind for w in packed.warnings} == {"shared", "tiles"} and packed.tile_sizes == {512.0: 12}
    assert steps == [(i, 24) for i in range(1, 25)]  # verified, then looked at


def test_no_child_is_started_for_a_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgmil.bags.check.pool.subprocess.Popen", None)
    assert check_bags(store, isolate=True).readable == 12


def test_a_flipped_bit_is_found_in_its_bag(store: Path) -> None:
    path = store / "features.bin"
    data = bytearray(path.read_bytes())
    data[(5 + 6 + 7) * 32 * 2 + 10] ^= 1  # the fourth bag
    path.write_bytes(data)
    report = check_bags(store)
    assert [(p.kind, p.bag_id) for p in report.problems] == [("broken", "s3")]
    assert "checksum" in report.problems[0].message and report.bags == 12


def test_a_bag_that_is_no_number_any_more_is_named(store: Path) -> None:
    path = store / "features.bin"
    data = bytearray(path.read_bytes())
    data[:2] = np.float16("nan").tobytes()
    path.write_bytes(data)
    report = check_bags(store)
    assert [(p.kind, p.bag_id) for p in report.problems] == [("broken", "s0"), ("nan", "s0")]
    assert report.readable == 11


def test_a_store_that_cannot_be_opened_is_one_problem(store: Path) -> None:
    with (store / "features.bin").open("r+b") as file:
        file.truncate(100)
    report = check_bags(store)
    assert [p.kind for p in report.problems] == ["broken"] and "features.bin" in report.problems[0].message
    assert report.bags == 0
