"""The run's page: self-contained, and hostile names are text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cohort import SMALL, make_cohort
from qgmil.report.data import load_result
from qgmil.report.page import write_report
from qgmil.report.tables import comparison_table, number, spread
from qgmil.training.config import TrainConfig
from qgmil.training.run import train_run


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    manifest = make_cohort(tmp_path_factory.mktemp("data"))
    text = manifest.read_text().replace("P0", "<script>alert(1)</script>[bold]0").replace("tumour", "<b>t</b>[red]")
    manifest.write_text(text)
    config = TrainConfig.build({**SMALL, "epochs": 1, "lr": 1e-6, "folds": 2})
    return train_run(manifest, tmp_path_factory.mktemp("runs") / "a<i>run", config)


def test_hostile_names_are_text(hostile: Path) -> None:
    page = write_report(hostile).read_text()
    assert "<script" not in page and "<b>t" not in page and "<i>run" not in page
    assert "&lt;script&gt;" in page and "a&lt;i&gt;run" in page


def test_nothing_is_fetched(hostile: Path) -> None:
    page = write_report(hostile).read_text()
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert all(re.search(r'alt="[^"]{20,}"', tag) for tag in re.findall(r"<img[^>]*>", page))


def test_the_page_shows_the_numbers_of_the_run(hostile: Path) -> None:
    page, result = write_report(hostile).read_text(), load_result(hostile)
    for name in ("macro_f1", "auroc", "ece", "nll"):
        assert spread(result.score(name)) in page
    interval = result.interval("macro_f1")
    assert interval is not None and f"{interval[0]:.3f} to {interval[1]:.3f}" in page


def test_table_of_a_hostile_run_prints(hostile: Path) -> None:
    from rich.console import Console

    console = Console(width=80, record=True)
    console.print(comparison_table([hostile]))
    assert "qgmil" in console.export_text()


def test_undefined_is_said() -> None:
    assert number(None) == "undefined" and number(0.12345) == "0.123"
