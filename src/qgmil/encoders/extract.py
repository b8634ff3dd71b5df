"""The features of bags of images, one bag after the other: resumable, atomic a bag, failures recorded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgmil.encoders.base import Encoder, EncoderError
from qgmil.encoders.ledger import FAILED, MANIFEST, UNREADABLE, Report, noted, read_table, write_failures, write_table
from qgmil.encoders.pictures import CellFiles, CellTar, Pictures, Shaping, Tiles
from qgmil.encoders.settings import Extraction, TissueSearch, claim
from qgmil.encoders.work import Work
from qgmil.encoders.writing import fingerprint, made_of, slide_facts, write_bag
from qgmil.errors import BagError, QGMILError, ReadError
from qgmil.images.coordinates import read_coordinates
from qgmil.images.slides import PlainImage, Slide, open_slide
from qgmil.images.tiling import check_scale, cut, preview, slide_mpp
from qgmil.images.tissue import Tissue, find_tissue

PREVIEWS = "previews"


def extract_bags(
    works: Sequence[Work],
    encoder: Encoder,
    made: Extraction,
    output: Path,
    *,
    workers: int = 4,
    batch_size: int = 16,
    slide_mpp: float | None = None,
    coords: Path | None = None,
    previews: bool = True,
    remake: bool = False,
    on_bag: Callable[[int, Work, str], None] | None = None,
) -> Report:
    """Make every bag that is not there yet.

    Args:
        works: the bags.
        encoder: what encodes.
        made: the settings, which the folder keeps.
        output: folder of the results: ``features_ENCODER/BAG.h5``, ``previews/BAG.jpg``, `MANIFEST`, and `FAILED` and
            `UNREADABLE` where there is something to say.
        workers: threads that read pictures.
        batch_size: pictures at a time.
        slide_mpp: microns per pixel of slides, instead of what they say.
        coords: folder of coordinates that another tool made, instead of looking for tissue.
        remake: make a bag anew whose features are of other images, instead of refusing it.
        previews: draw the tissue and tiles of each slide.
        on_bag: told the number of bags done, the bag, and what became of it.

    Raises:
        RunError: the folder holds features of other settings, or a table of somebody else's.
        ManifestError, ReadError: a table or list of failures in it that cannot be read.
        EncoderError: the encoder does not give what it should.
    """
    folder = output / f"features_{encoder.info.name}"
    table = read_table(output / MANIFEST)
    asked = {work.bag_id for work in works}
    known = [f for f in noted(output / FAILED, "reason") if f[0] not in asked]
    report = Report(output / MANIFEST, before=known, unreadable=noted(output / UNREADABLE, "image", "reason"))
    claim(output, folder, made)
    job = _Job(encoder, made, folder, output, report, workers, batch_size, slide_mpp, coords, previews, remake)
    for number, work in enumerate(works, start=1):
        said = job.one(work)
        if on_bag is not None:
            on_bag(number, work, said)
    write_table(report, works, folder, output, table)
    return report


@dataclass(frozen=True, eq=False)
class _Job:
    """What is the same for every bag of an extraction."""

    encoder: Encoder
    made: Extraction
    folder: Path
    output: Path
    report: Report
    workers: int
    batch_size: int
    slide_mpp: float | None
    coords: Path | None
    previews: bool
    remake: bool

    def path(self, work: Work) -> Path:
        """The file of a bag."""
        return self.folder / f"{work.bag_id}.h5"

    def one(self, work: Work) -> str:
        """Make one bag, or note why not; returns what became of it."""
        report = self.report
        start = time.perf_counter()
        try:
            source = fingerprint(work.files)
            if self._is_there(work, source):
                report.kept += 1
                return "is there already"
            report.unreadable = [u for u in report.unreadable if u[0] != work.bag_id]
            pictures = self._open(work)
            try:
                features, rows, lost = encode_all(
                    pictures, self.encoder, workers=self.workers, batch_size=self.batch_size, report=report
                )
            finally:
                pictures.close()
        except EncoderError:
            raise  # every bag would fail alike
        except QGMILError as error:
            report.failed.append((work.bag_id, str(error)))
            write_failures(report, self.output)
            return f"failed: {error}"
        names = None if pictures.names is None else tuple(pictures.names[r] for r in rows)
        corners = pictures.corners[rows] if isinstance(pictures, Tiles) else None
        precision = "32" if self.encoder.autocast is None else str(self.encoder.autocast).removeprefix("torch.")
        write_bag(self.path(work), features, self.made, pictures.facts, names, corners, source, precision)
        report.unreadable += [(work.bag_id, name, reason) for name, reason in lost]
        if lost:
            write_failures(report, self.output)
        report.made += 1
        report.instances += len(rows)
        seconds = time.perf_counter() - start
        report.seconds += seconds
        what = "cells" if pictures.names is not None else "tiles"
        return f"{len(rows):,} {what}, {len(rows) / seconds:.0f}/s" + (f", {len(lost)} unreadable" if lost else "")

    def _is_there(self, work: Work, source: str) -> bool:
        """Whether the bag was made of these very images; of others of that name it is not taken for them."""
        path = self.path(work)
        if not path.is_file():
            return False
        same = made_of(path) == source
        if not same and not self.remake:
            raise BagError(
                f"{path}: was made of other images of that name than {work.files[0]}; name another folder, give the "
                "bag another name in a table, or delete the file to make it anew"
            )
        return same

    def _open(self, work: Work) -> Pictures:
        previews = self.output / PREVIEWS if self.previews else None
        return open_pictures(work, self.made, mpp=self.slide_mpp, coords=self.coords, preview_to=previews)


def open_cells(work: Work, shaping: Shaping) -> Pictures:
    """The pictures of a bag of cells."""
    assert work.names is not None
    if work.members is not None:
        return CellTar(work.files[0], work.members, work.names, shaping)
    return CellFiles(work.files, work.names, shaping)


def open_pictures(
    work: Work, made: Extraction, *, mpp: float | None = None, coords: Path | None = None,
    preview_to: Path | None = None,
) -> Pictures:  # fmt: skip
    """The pictures of a bag; for a slide tissue is found and tiles are cut first.

    Raises:
        ReadError, BagError: nothing can be read, there is no tissue, or microns per pixel are not known.
    """
    if made.grid is None:
        assert made.shaping is not None
        return open_cells(work, made.shaping)
    slide = open_slide(work.files[0])
    try:
        if isinstance(slide, PlainImage) and slide.deep:
            raise ReadError(
                f"{slide.path}: has more than 8 bits a pixel; which grey is white is yours to say: convert it to 8 bits"
            )
        scale = slide_mpp(slide, work.mpp if work.mpp is not None else mpp)
        check_scale(slide, made.grid, scale)
        edge = made.grid.level0(scale)
        if coords is not None:
            corners = read_coordinates(coords, work.bag_id, edge, slide)
        else:
            search = made.tissue or TissueSearch()
            tissue = find_tissue(
                slide, scale, pens=search.pens, min_area=search.min_area, max_hole=search.max_hole,
                everything=search.everything,
            )  # fmt: skip
            try:
                corners = cut(slide, tissue, made.grid, scale)
            except BagError:
                _preview(slide, tissue, np.empty((0, 2), np.int64), edge, preview_to, work.bag_id)
                raise
            _preview(slide, tissue, corners, edge, preview_to, work.bag_id)
        facts = slide_facts(made, slide.size, scale, round(edge))
        return Tiles(slide, corners, round(edge), made.grid.size, facts)
    except BaseException:
        slide.close()
        raise


def _preview(
    slide: Slide, tissue: Tissue, corners: NDArray[np.int64], edge: float, folder: Path | None, name: str
) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        preview(slide, tissue, corners, edge).save(folder / f"{name}.jpg", quality=85)


def encode_all(
    pictures: Pictures, encoder: Encoder, *, workers: int, batch_size: int, report: Report | None = None
) -> tuple[Tensor, NDArray[np.int64], list[tuple[str, str]]]:
    """Features ``(n, D)`` of the pictures that can be read, their rows, and name and reason of the others.

    Raises:
        ReadError: a tile of a slide cannot be read, or no picture of the bag.
    """
    rows: list[int] = []
    lost: list[tuple[str, str]] = []
    done: list[Tensor] = []
    clock = time.perf_counter
    with closing(_read(pictures, encoder, workers, batch_size)) as batches:  # no thread reads on after an error
        while True:
            before = clock()
            batch = next(batches, None)
            between = clock()
            if batch is not None:
                good = [(row, found) for row, found in batch if isinstance(found, np.ndarray)]
                lost += [
                    (_name(pictures, row), str(found)) for row, found in batch if not isinstance(found, np.ndarray)
                ]
                if good:
                    done.append(encoder.encode(np.stack([found for _, found in good])))
                    rows += [row for row, _ in good]
            if report is not None:
                report.reading += between - before
                report.encoding += clock() - between
            if batch is None:
                break
    if not rows:
        raise ReadError(lost[0][1] if lost else "the bag has no pictures")
    return torch.cat(done), np.array(rows, dtype=np.int64), lost


def _name(pictures: Pictures, row: int) -> str:
    return str(row) if pictures.names is None else pictures.names[row]


def _read(
    pictures: Pictures, encoder: Encoder, workers: int, batch_size: int
) -> Generator[list[tuple[int, NDArray[np.uint8] | ReadError]], None, None]:
    """Pictures as arrays in batches, read ahead by threads (decoding and resizing let go of Python's lock)."""

    def read(row: int) -> tuple[int, NDArray[np.uint8] | ReadError]:
        try:
            return row, encoder.picture(pictures.picture(row))
        except ReadError as error:
            if pictures.names is None:  # a slide that is broken in the middle is broken
                raise
            return row, error

    def batch(start: int) -> list[tuple[int, NDArray[np.uint8] | ReadError]]:
        return [read(row) for row in range(start, min(start + batch_size, len(pictures)))]

    pool = ThreadPoolExecutor(max(1, workers))
    waiting: deque[Future[list[tuple[int, NDArray[np.uint8] | ReadError]]]] = deque()
    try:
        for start in range(0, len(pictures), batch_size):
            waiting.append(pool.submit(batch, start))
            if len(waiting) > max(1, workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
