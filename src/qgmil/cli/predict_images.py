"""``qgmil predict`` on slides and cells: what comes before the features, and what is drawn after."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from qgmil.cli.extract import Cells, Encoding, Tiling, check_kind, plan, run
from qgmil.errors import ConfigError, QGMILError

#: What a table of slides or cells has, and a table of feature files has not.
COLUMNS = frozenset({"slide", "slide_path", "image", "cell"})


def are_images(sources: Sequence[Path], cells: Cells | None) -> bool:
    """Whether these are slides or cells: by the option, the endings of files, and the columns of a table."""
    from qgmil.bags.manifest import FILE_COLUMNS
    from qgmil.bags.readers import feature_suffixes
    from qgmil.bags.tabular import TABLE_SUFFIXES, read_text_table
    from qgmil.images.slides import SUFFIXES

    if cells is not None and cells.cells:
        return True
    kinds = {_kind(source, feature_suffixes(), SUFFIXES) for source in sources}
    if kinds == {"features", "slides"}:
        raise ConfigError("slides and files of features are predicted one kind at a time: give them to two commands")
    first = sources[0]
    if first.suffix.lower() in TABLE_SUFFIXES and len(sources) == 1 and first.is_file():
        columns = set(read_text_table(first).columns)
        return bool(columns & COLUMNS) and not columns & set(FILE_COLUMNS)
    return "slides" in kinds


def _kind(source: Path, features: Collection[str], slides: Collection[str]) -> str:
    """What a file is by its ending, and a folder by what is in it."""
    from qgmil.images.slides import files_under

    if source.is_dir():
        found = {p.suffix.lower() for p in files_under(source)}
        return "features" if found & set(features) else "slides" if found & set(slides) else "unknown"
    end = source.suffix.lower()
    return "slides" if end in slides else "features" if end in features else "unknown"


def encode(
    folder: Path,
    sources: Sequence[Path],
    output: Path,
    encoding: Encoding,
    tiling: Tiling,
    cells: Cells,
    *,
    overwrite: bool,
) -> tuple[Path, dict[str, Path], bool]:
    """A table of the images' features, made as the run's own were, the slides by bag, and whether all could be made.

    They lie in the folder ``OUTPUT_bags``; what is there already is not made again.

    Raises:
        ConfigError: nobody says how the run's features were made, or options say something else.
        QGMILError: nothing could be encoded.
    """
    from qgmil.bags.made import EXTRACTED
    from qgmil.bags.manifest import BagRecord, Manifest
    from qgmil.encoders.ledger import FAILED
    from qgmil.encoders.load import load_encoder
    from qgmil.encoders.settings import read_settings
    from qgmil.encoders.work import find_cells, find_slides

    check_kind(tiling, cells)
    made = read_settings(folder / EXTRACTED) if (folder / EXTRACTED).is_file() else None
    if made is None and "encoder" not in encoding.model_fields_set:
        raise ConfigError(
            f"{folder} does not say how its features were made (they are not from qgmil extract): say it, as "
            "--encoder NAME --tile PIXELS --mpp MICRONS; it must be what the features were made with"
        )
    asked = encoding.model_dump(include={"weights", "device", "precision", "input_size", "resize"})
    if made is not None:
        _agree(folder, made, encoding, tiling, cells)
        asked |= {"input_size": made.input_size, "resize": made.resize}
    typed = made is None or "encoder" in encoding.model_fields_set
    encoder = load_encoder(encoding.encoder if typed or made is None else made.encoder, **asked)
    if made is None:
        made = plan(encoder, encoding.encoder, tiling, cells)
    elif encoder.weights != made.weights:
        raise ConfigError(
            f"{folder}: its features were made with other weights of {made.encoder} (SHA-256 {made.weights[:12]}..., "
            f"not {encoder.weights[:12]}...): name them with --weights, or the ONNX file with --encoder"
        )
    if made.grid is not None:
        made = replace(made, tissue=None if tiling.coords is not None else _search(made.tissue, tiling))
    works = find_cells(sources) if made.kind == "cells" else find_slides(sources)
    bags = output.with_name(f"{output.stem}_bags")
    report = run(works, encoder, made, bags, encoding, tiling, quiet=False, remake=overwrite)
    files = {w.bag_id: bags / f"features_{encoder.info.name}" / f"{w.bag_id}.h5" for w in works}
    failed = {name for name, _ in report.failed}
    done = [w for w in works if w.bag_id not in failed]
    if not done:
        raise QGMILError(f"no bag could be made of the images: {bags / FAILED} says why")
    table = bags / "asked.csv"  # with patients, so that what shaped the run is known by them
    Manifest(tuple(BagRecord(w.bag_id, w.label, w.patient_id, (files[w.bag_id],)) for w in done)).to_csv(table)
    return table, {w.bag_id: w.files[0] for w in done if w.names is None}, not failed


def _agree(folder: Path, made: Any, encoding: Encoding, tiling: Tiling, cells: Cells) -> None:
    """Refuse options that contradict what the run's features were made with (where tissue lies is free)."""
    from qgmil.encoders.registry import ENCODERS

    if (made.kind == "cells") != cells.cells:
        raise ConfigError(
            f"{folder}: was trained on {made.kind}: {'add' if made.kind == 'cells' else 'leave out'} --cells"
        )
    own = {
        **({"encoder": made.encoder} if encoding.encoder in ENCODERS else {}),  # files may move: their hash counts
        "input_size": made.input_size, "resize": made.resize,
        **({} if made.grid is None else {
            "tile": made.grid.size, "mpp": made.grid.mpp, "magnification": made.grid.magnification,
            "overlap": made.grid.overlap, "min_tissue": made.grid.min_tissue,
        }),
        **({} if made.shaping is None else {"fit": made.shaping.fit, "centre": made.shaping.centre}),
    }  # fmt: skip
    for section in (encoding, tiling, cells):
        for name in section.model_fields_set:
            if name in own and getattr(section, name) != own[name]:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {getattr(section, name)}: the features of {folder} were made with "
                    f"{own[name]}; leave it out"
                )


def _search(search: Any, tiling: Tiling) -> Any:
    """How tissue is looked for on new slides: as in training, but for what was typed."""
    from qgmil.encoders.settings import TissueSearch

    typed: dict[str, Any] = {
        n: getattr(tiling, n) for n in ("pens", "min_area", "max_hole") if n in tiling.model_fields_set
    }
    if "tissue" in tiling.model_fields_set:
        typed["everything"] = tiling.tissue == "all"
    return replace(search or TissueSearch(), **typed)


def draw(
    loaded: Any, found: Any, slides: Mapping[str, Path], output: Path, device: str | None, *, overwrite: bool
) -> None:
    """The attention of each slide on it, into ``OUTPUT_overlays``."""
    from qgmil.attention.overlay import make_overlay, place_tiles
    from qgmil.attention.overlay_picture import save_overlay
    from qgmil.cli.output import say
    from qgmil.images.slides import open_slide
    from qgmil.training.explain import explain_bag

    folder = output.with_name(f"{output.stem}_overlays")
    drawn = 0
    for bag_id in (b for b in found.bag_ids if b in slides):
        target = folder / f"{bag_id}.png"
        if target.exists() and not overwrite:
            say(f"{target} exists already and is kept; --overwrite draws it anew")
            continue
        try:
            said = explain_bag(loaded, found, bag_id, include_seen=True, device=device)
        except ConfigError as error:  # an aggregator without attention
            say(f"no overlays: {error}")
            return
        with closing(open_slide(slides[bag_id])) as slide:
            made = make_overlay(place_tiles(said.bag), said.scores, slide)
            folder.mkdir(parents=True, exist_ok=True)
            save_overlay(made, target, opacity=0.5, title=said.headline)
        drawn += 1
    if drawn:
        say(f"{drawn} overlays: {folder}")
