"""Damaged files of every kind: read or refused by name, and never a crash, a hang, or a look outside.

A few of each by default; as many as wanted, of one reader or of all, with

    QGMIL_MUTATIONS=10000 python -m pytest -m slow tests/attacks/test_mutations.py -s [-k h5]
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from attacks.mutations import CHILD, damaged
from attacks.orchard import load, make_outside, plant, save
from qgmil.bags.check.pool import Lost, Pool
from qgmil.bags.readers import readers

pytest.importorskip("resource", reason="memory and time are measured as POSIX does")
FEW = int(os.environ.get("QGMIL_MUTATIONS_FEW", "60"))
MANY = int(os.environ.get("QGMIL_MUTATIONS", "10000"))
FIRST = int(os.environ.get("QGMIL_FIRST_SEED", "0"))
KINDS = (*sorted(readers()), "store", "table", "parquet", "split", "mat", "svm", "image")
SECONDS = 60.0  # for one file, on a machine that is busy
ADDRESSES = 4 * 2**30


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orchard")
    outside = make_outside(folder / "outside")
    save(plant(folder / "pristine", outside), folder / "planted.json")
    return folder


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(CHILD, seconds=SECONDS, memory=ADDRESSES) as pool:
        yield pool


def run(pool: Pool, base: Path, kind: str, count: int) -> Counter[str]:
    """Try `count` damaged files of a kind."""
    started = time.perf_counter()
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    late: list[int] = []
    task = {"base": str(base), "reader": kind}
    tasks = ({**task, "seed": seed} for seed in range(FIRST, FIRST + count))
    for seed, answer in enumerate(pool.run(tasks), start=FIRST):
        if isinstance(answer, Lost) and answer.kind == "hangs":
            late.append(seed)
            continue
        if isinstance(answer, Lost):
            wrong = [f"{answer.kind}: {answer.how}"]
        else:
            wrong = answer["wrong"]
            outcomes["refused" if answer["refused"] else "read"] += 1
        if wrong:
            bad.append(f"seed {seed}: {keep(base, kind, seed)}: " + "\n    ".join(wrong))
    for seed, answer in zip(late, pool.run({**task, "seed": seed} for seed in late), strict=True):
        # A machine that is very busy may not have got to it; what hangs twice, hangs.
        if isinstance(answer, Lost) or answer["wrong"]:
            bad.append(f"seed {seed}: {keep(base, kind, seed)}: hangs, then {answer}")
        else:
            outcomes["late"] += 1
    print(f"{kind}: {count} files, {dict(outcomes)}, {time.perf_counter() - started:.0f} s", flush=True)
    assert not bad, f"{len(bad)} of {count} damaged files of {kind}:\n" + "\n".join(bad[:20])
    return outcomes


def keep(base: Path, kind: str, seed: int) -> Path:
    """Write the damaged file where it can be looked at after the test."""
    found = damaged(load(base / "planted.json"), base / "pristine", kind, seed)
    path = base / "kept" / f"{kind}-{seed}" / found.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(found.content)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_damaged_files(pool: Pool, base: Path, kind: str) -> None:
    outcomes = run(pool, base, kind, FEW)
    assert outcomes["refused"] >= FEW // 10, "damage that breaks nothing tests nothing"


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(pool: Pool, base: Path, kind: str) -> None:
    run(pool, base, kind, MANY)


def test_the_same_seed_is_the_same_damage(base: Path) -> None:
    trees = load(base / "planted.json")
    for kind in KINDS:
        files = [damaged(trees, base / "pristine", kind, seed) for seed in range(5)]
        assert files == [damaged(trees, base / "pristine", kind, seed) for seed in range(5)]
        assert len({f.content for f in files}) == 5
