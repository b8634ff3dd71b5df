"""The page in a browser: no errors, the map moves and fades, hostile names are text, phones and paper can read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import Browser
from cohort import write_tiles
from commandline import run
from qgmil.bags.dataset import open_bags
from qgmil.training.explain import explain_bag
from qgmil.training.members import load_run

HOSTILE = "</script><img src=x onerror=alert(1)>'\"<b>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on slides of 4 x 3 tiles, with pictures of them, one bag and its tiles named as an attack."""
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    rows = ["bag_id,label,features"]
    (folder / "images").mkdir()
    for i in range(12):
        x = rng.normal(size=(12, 6)).astype(np.float32) + 2 * (i % 2)
        write_tiles(folder / f"s{i}.h5", x, [f"{HOSTILE}{k}" for k in range(12)], columns=4)
        name = f"s{i}" if i else '"' + HOSTILE.replace('"', '""').replace("/", "") + '"'
        rows.append(f"{name},{'<i>tumour' if i % 2 else 'benign'},s{i}.h5")
        Image.fromarray(rng.integers(100, 255, (60, 80, 3), dtype=np.uint8)).save(folder / "images" / f"s{i}.png")
    (folder / "bags.csv").write_text("\n".join(rows) + "\n")
    options = ["--folds", 2, "--epochs", 2, "--model", "abmil", "--options.width", 8, "-q"]
    assert run("train", folder / "bags.csv", "-o", folder / "run", *options) == 0
    return folder


@pytest.fixture(scope="module")
def page(made: Path) -> Path:
    placing = ["--coord-unit", "px", "--tile-size", 20, "--mpp", 0.5]
    shown = ["--show", "s3", HOSTILE.replace("/", ""), "--slides", made / "images", "-o", made / "page.html"]
    assert run("report", made / "run", *shown, *placing) == 0
    return made / "page.html"


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        found.open(page)
        found.until("document.querySelectorAll('.viewer[data-ready]').length === 2")
        yield found


def pixel(browser: Browser, x: float, y: float) -> list[int]:
    """The colour of the first viewer's canvas at a share of the slide."""
    return browser.run(
        f"""(() => {{ const v = qgmilViewers[0], c = v.drawer.canvas, i = v.world.getItemAt(0);
        const p = i.imageToViewerElementCoordinates(new OpenSeadragon.Point({x} * 1400, {y} * 1050));
        const k = c.width / v.element.clientWidth;
        return Array.from(c.getContext('2d').getImageData(p.x * k, p.y * k, 1, 1).data).slice(0, 3); }})()"""
    )


def test_it_loads_without_a_complaint(browser: Browser) -> None:
    assert browser.messages == []


def test_the_slider_fades_the_map(browser: Browser) -> None:
    def slide(value: int) -> list[int]:
        browser.run(
            f"""(() => {{ const s = document.querySelector('[data-act=opacity]'); s.value = {value};
            s.dispatchEvent(new Event('input')); }})()"""
        )
        browser.until(f"qgmilViewers[0].world.getItemAt(1).getOpacity() === {value / 100}")
        browser.run("new Promise(done => setTimeout(done, 300))")
        return pixel(browser, 0.13, 0.16)

    gone, half, full = slide(0), slide(50), slide(100)
    assert gone != full
    for a, b, c in zip(gone, half, full, strict=True):
        assert abs(b - (a + c) / 2) <= 3


def test_the_buttons_zoom(browser: Browser) -> None:
    zoom = "qgmilViewers[0].viewport.getZoom(false)"
    before = browser.run(zoom)
    browser.run("document.querySelector('[data-act=in]').click()")
    assert browser.run(zoom) == pytest.approx(1.5 * before)
    browser.run("document.querySelector('[data-act=home]').click()")
    assert browser.run(zoom) == pytest.approx(before)


def test_pointing_at_a_tile_says_its_weight_and_rank(browser: Browser, made: Path) -> None:
    browser.run("new Promise(done => setTimeout(done, 700))")
    values = explain_bag(load_run(made / "run"), open_bags(made / "bags.csv", labels=False), "s3").scores.values
    tile = 6  # third column, second row
    said = browser.run(
        """(() => { const v = qgmilViewers[0], e = v.element, r = e.getBoundingClientRect();
        const p = v.world.getItemAt(0).imageToViewerElementCoordinates(new OpenSeadragon.Point(50 * 17.5, 30 * 17.5));
        e.dispatchEvent(new PointerEvent('pointermove', {clientX: r.left + p.x, clientY: r.top + p.y, bubbles: true}));
        return document.querySelector('output').textContent; })()"""
    )
    found = re.fullmatch(r"tile (\d+): attention ([\d.e-]+), rank (\d+) of 12", said)
    assert found, said
    assert int(found[1]) == tile
    assert float(found[2]) == pytest.approx(values[tile], rel=5e-3)
    assert int(found[3]) == 1 + (values > values[tile]).sum()


def test_hostile_names_are_text(browser: Browser, page: Path) -> None:
    name = HOSTILE.replace("/", "")
    titles = browser.run("Array.from(document.querySelectorAll('h3')).map(e => e.textContent)")
    assert any(t.startswith(name) for t in titles)
    assert browser.run("document.querySelectorAll('img[src=\"x\"], b, i').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 3
    ours = page.read_text().split("//! openseadragon")[0]
    assert re.findall(r'(?:src|href)="(?!data:)[^"]', ours) == []


def test_every_image_has_words(browser: Browser) -> None:
    assert browser.run("Array.from(document.images).every(i => i.alt.length > 3)")
    assert browser.run("document.querySelectorAll('.gallery img').length") == 12  # one has no slide
    sections = browser.run("Array.from(document.querySelectorAll('h2')).map(e => e.textContent)")
    for wanted in ("Test metrics", "Is the attention faithful?", "Per class", "Where it looks", "What was run"):
        assert wanted in sections


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, dark: bool, tmp_path: Path) -> None:
    browser.emulate(390, 844, mobile=True, dark=dark)
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    browser.screenshot(tmp_path / "phone.png")
    assert Image.open(tmp_path / "phone.png").size == (390, 844)


def test_paper_has_the_map_and_no_controls(browser: Browser) -> None:
    browser.call("Emulation.setEmulatedMedia", media="print")
    shown = browser.run(
        "['.viewer', '.controls', '.still'].map(s => getComputedStyle(document.querySelector(s)).display)"
    )
    assert shown == ["none", "none", "block"]
    browser.call("Emulation.setEmulatedMedia", media="")
    # reading pixels back is this test's own doing
    assert [m for m in browser.messages if "willReadFrequently" not in m] == []
