"""Figures draw the numbers they should, survive odd input and reach the disk whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from qgmil.errors import ConfigError, MetricError
from qgmil.evaluation.figures import confusion_figure, history_figure, reliability_figure, roc_figure, save_figure
from qgmil.evaluation.style import PALETTE, line_style


def texts(fig: Figure) -> str:
    fig.draw_without_rendering()
    return "\n".join(t.get_text() for t in fig.findobj(lambda a: hasattr(a, "get_text")))


def predictions(n: int = 50, c: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(c), n), rng.integers(0, c, n)


def test_reliability() -> None:
    p, y = predictions()
    assert "ECE" in texts(reliability_figure(p, y))
    both = texts(reliability_figure({"before": p, "after": p}, y, n_bins=4, title="Fold 1"))
    assert "before, ECE" in both and "after, ECE" in both and "Fold 1" in both
    with pytest.raises(MetricError):
        reliability_figure({}, y)


def test_confusion() -> None:
    drawn = texts(confusion_figure([[3, 1], [0, 0]], ["normal", "tumour"]))
    assert "3\n75%" in drawn and "normal (4)" in drawn and "tumour (0)" in drawn
    assert "predicted class" in drawn and "true class" in drawn
    for wrong in ([[1, 2]], [[1, -1], [0, 2]], [1, 2]):
        with pytest.raises(MetricError):
            confusion_figure(wrong, ["a", "b"])
    with pytest.raises(ConfigError):
        confusion_figure([[1, 0], [0, 1]], ["a"])


def test_roc() -> None:
    p, y = predictions()
    drawn = texts(roc_figure(p, np.minimum(y, 1), ["a", "b", "rare"]))
    assert "a: AUROC" in drawn and "rare: no bags of this class" in drawn
    p, y = predictions(c=2)
    fig = roc_figure(p, y, ["normal", "tumour"])
    assert "ROC, tumour against normal" in texts(fig) and len(fig.axes[0].lines) == 2
    perfect = roc_figure([[0.9, 0.1], [0.1, 0.9]], [0, 1], ["a", "b"])
    assert "AUROC 1.000 (n = 1)" in texts(perfect)


def test_many_classes_have_their_legend_beside_and_their_own_lines() -> None:
    p, y = predictions(200, 12)
    fig = roc_figure(p, y, [f"class {k}" for k in range(12)])
    assert len(fig.legends) == 1
    assert len({tuple(line_style(k).values()) for k in range(4 * len(PALETTE))}) == 4 * len(PALETTE)


def test_history() -> None:
    scores = ["0.1", "0.7", "", None, 0.6]
    rows = [
        {"epoch": str(e), "train_loss": str(1 / (e + 1)), "val_loss": "", "val_macro_f1": f}
        for e, f in enumerate(scores)
    ]
    fig = history_figure(rows)
    assert "validation macro F1, best 0.700 at 1" in texts(fig) and len(fig.axes) == 2
    assert len(history_figure([{"epoch": 0, "train_loss": 1.0}]).axes) == 1
    for wrong, says in (([], "no rows"), ([{"epoch": 0, "lr": 1}], "lr"), ([{"train_loss": 1}], "epoch")):
        with pytest.raises(MetricError, match=says):
            history_figure(wrong)
    with pytest.raises(MetricError, match="row 0, val_loss: 'x' is not a number"):
        history_figure([{"epoch": 0, "val_loss": "x"}])


def test_names_that_matplotlib_would_misread() -> None:
    p, y = predictions(n=30)
    fig = roc_figure(p, y, ["_other", r"$\nonsense{$", "b"])
    assert "_other: AUROC" in "\n".join(t.get_text() for t in fig.axes[0].get_legend().get_texts())
    fig.draw_without_rendering()
    confusion_figure(np.eye(3), ["_other", r"$\nonsense{$", "b"]).draw_without_rendering()


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_save(tmp_path: Path, kind: str) -> None:
    fig = confusion_figure([[3, 1], [0, 2]], ["a", "b"])
    path = save_figure(fig, tmp_path / "new" / f"figure.{kind}")
    assert path.stat().st_size > 1000 and [p.name for p in path.parent.iterdir()] == [f"figure.{kind}"]
    if kind != "svg":
        first = path.read_bytes()
        assert save_figure(confusion_figure([[3, 1], [0, 2]], ["a", "b"]), path).read_bytes() == first


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    fig = confusion_figure([[3, 1], [0, 2]], ["a", "b"])

    def broken(target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(fig, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        save_figure(fig, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match=r"\.png, \.pdf, \.svg"):
        save_figure(fig, tmp_path / "figure.bmp")


def test_pyplot_is_never_imported_and_numbers_need_no_matplotlib() -> None:
    code = (
        "import sys, qgmil.evaluation, qgmil.attention\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import qgmil.evaluation.figures as f, qgmil.attention.figures\n"
        "f.confusion_figure([[1, 0], [0, 1]], ['a', 'b']).draw_without_rendering()\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
