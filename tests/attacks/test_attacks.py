"""Every hostile file of the table: refused by name, at once, for little memory, and without a look outside."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5pl

from attacks.evil import ATTACKS, Attack
from attacks.orchard import H5_KINDS, make_outside, plant
from attacks.watch import Watch
from qgmil.bags.check.pool import Lost, Pool
from qgmil.bags.readers import read_bag_file, readers
from qgmil.errors import ReadError

for module in ("evil_arrays", "evil_h5", "evil_folders", "evil_tables"):
    importlib.import_module(f"attacks.{module}")

pytest.importorskip("resource", reason="these attacks are made of pipes, links and devices")
CHILD = "attacks.victim:attempt"
CPU_SECONDS = 2.0  # half of it on a quiet machine; caches shared with other tests double it
MEMORY = 64 * 2**20
HANGS = 60.0  # seconds on a machine that is very busy
ADDRESSES = 2**31  # bytes beyond the imports: who asks for more is refused by the system, and says so


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One child for all attacks, which has done everything once so that nothing is imported later."""
    folder = tmp_path_factory.mktemp("warm")
    outside = make_outside(folder / "outside")
    trees = plant(folder / "trees", outside)
    tasks = [
        task(act, folder / "trees" / fruit.path, folder, outside, fruit.options)
        for fruits in trees.values()
        for fruit in fruits
        for act in fruit.acts
        if "labels" not in fruit.options
    ]
    build = task(
        "build",
        folder / "trees" / "plain_tree",
        folder,
        outside,
        {"labels": str(folder / "trees" / "plain_tree" / "labels.csv")},
    )
    with Pool(CHILD, seconds=HANGS, memory=ADDRESSES) as pool:
        list(pool.run([*tasks, build]))
        yield pool


def task(act: str, path: Path | str, root: Path, outside: Path, options: dict[str, Any]) -> dict[str, Any]:
    return {"act": act, "path": str(path), "root": str(root), "outside": str(outside), "options": options}


def answer(pool: Pool, asked: dict[str, Any]) -> dict[str, Any]:
    (said,) = pool.run([asked])
    assert not isinstance(said, Lost), f"{said.kind}: {said.how}"
    return said


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{a.reader}-{a.name}")
def test_attack(pool: Pool, tmp_path: Path, attack: Attack) -> None:
    root, outside = tmp_path / "root", make_outside(tmp_path / "outside")
    root.mkdir()
    path = attack.make(root, outside)
    before = contents(outside)
    options = {k: str(root / v) if k == "labels" else v for k, v in attack.options.items()}
    if attack.act == "read":  # it may be asked for its shape before
        check(attack, root, answer(pool, task("shape", path, root, outside, options)))
    said = answer(pool, task(attack.act, path, root, outside, options))
    check(attack, root, said)
    if attack.says is None:
        assert said["error"] == [], said["message"]
    else:
        assert "QGMILError" in said["error"] and attack.error in said["error"], said
        assert re.search(attack.says, said["message"]), said["message"]
        assert (attack.names or Path(path).name) in said["message"].replace("\udcff", r"\udcff"), said["message"]
        assert len(said["message"]) < 3000
    assert contents(outside) == before, "something outside was made or changed"


def check(attack: Attack, root: Path, said: dict[str, Any]) -> None:
    """What holds however the file is taken: one of our errors if any, at once, for little memory, nothing outside."""
    assert not said["traceback"], said["traceback"]
    assert said["touched"] == []
    assert said["seconds"] < CPU_SECONDS, said
    assert "fit into memory" not in said["message"] or "nested_signs" in attack.name, "it tried to take what is claimed"
    real = sum(f.stat().st_blocks * 512 for f in root.rglob("*") if f.is_file() and not f.is_symlink())
    assert said["grew"] < MEMORY + real, said


def contents(folder: Path) -> dict[str, int]:
    return {f.name: f.lstat().st_mtime_ns for f in folder.iterdir()}


def test_there_are_attacks_on_every_reader() -> None:
    counts = Counter(a.reader for a in ATTACKS if a.says is not None)
    others = {"manifest", "table", "split", "store", "mat", "svm", "image", "yaml", "dataset"}
    assert set(counts) == {*readers(), *others}
    assert sum(counts.values()) >= 24
    assert len({a.name for a in ATTACKS}) == len(ATTACKS)


@pytest.mark.slow
def test_a_million_groups(pool: Pool, tmp_path: Path) -> None:
    from attacks.evil_h5 import many_groups

    outside = make_outside(tmp_path / "outside")
    path = many_groups(tmp_path / "million.h5", 1_000_000)
    for act, options, says in (
        ("read", {}, "more than 2,000 objects|it has none"),
        ("read", {"dataset": "nothing"}, "has no data set 'nothing'|more than 2,000 objects"),
        ("read", {"format": "acmil"}, "holds no slide"),
        ("parts", {"format": "acmil"}, "has 1,000,001 groups"),
    ):
        said = answer(pool, task(act, path, tmp_path, outside, options))
        assert re.search(says, said["message"]), said["message"]
        assert said["seconds"] < CPU_SECONDS and said["grew"] < MEMORY + path.stat().st_size, said


def test_the_watch_sees_what_libraries_open(tmp_path: Path) -> None:
    """Without the guard the same files are followed: what the tests above do not see would be seen."""
    outside = make_outside(tmp_path / "outside")
    watch = Watch(outside)
    if watch.handle < 0:
        pytest.skip("only Linux tells what is opened")
    for kind, opened in (("external_links", "secret.h5"), ("external_storage", "secret.bin"), ("virtual", "secret.h5")):
        path = tmp_path / f"{kind}.h5"
        H5_KINDS[kind](path, outside)
        watch.opened()
        with h5py.File(path) as file:
            assert np.asarray(file["features"]).shape[1] == 6
        assert opened in watch.opened()


@pytest.mark.parametrize("name", ["secret.npy", "secret.h5"])
def test_the_audit_tells_of_a_file_outside(pool: Pool, tmp_path: Path, name: str) -> None:
    outside = make_outside(tmp_path / "outside")
    (tmp_path / "root").mkdir()
    said = answer(pool, task("read", outside / name, tmp_path / "root", outside, {}))
    assert said["error"] == [] and any(name in line for line in said["touched"])


def test_no_plug_in_is_looked_for(tmp_path: Path) -> None:
    """HDF5 opens every library in the folders of plug-ins when it cannot open a file by itself."""
    plugins, path = tmp_path / "plugins", tmp_path / "evil.h5"
    plugins.mkdir()
    watch = Watch(plugins)
    if watch.handle < 0:
        pytest.skip("only Linux tells what is opened")
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    before = [h5pl.get(i) for i in range(h5pl.size())]
    h5pl.prepend(bytes(plugins))
    try:
        with pytest.raises(ReadError, match=r"evil\.h5"):
            read_bag_file(path)
        assert watch.opened() == []
        assert h5pl.get(0) == bytes(plugins) and h5pl.size() == len(before) + 1
        with pytest.raises(OSError):
            h5py.File(path)
        assert watch.opened() != [], "the test would see it"
    finally:
        h5pl.remove(0)
