"""How features were made of images: what `qgmil extract` notes beside them, and who carries it along."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qgmil.bags.bag import Bag
from qgmil.bags.manifest import BagRecord
from qgmil.errors import ReadError
from qgmil.files import write_text

#: The name of the note.
EXTRACTED = "extract.json"
MAX_BYTES = 2**20  # a real one has a thousand


def carry_settings(items: Iterable[Bag | BagRecord], folder: Path) -> None:
    """Keep the note with what was made of bags, where all their files lie in one folder that has one: for new images.

    Links are not followed: a folder from elsewhere could name any file.

    Raises:
        ReadError: there is one and it cannot be read.
    """
    folders = {file.parent for item in items if isinstance(item, BagRecord) for file in item.files}
    said = folders.pop() / EXTRACTED if len(folders) == 1 else None
    if said is None or said.is_symlink() or not said.is_file():
        return
    try:
        if (size := said.stat().st_size) > MAX_BYTES:
            raise ReadError(f"{said}: has {size:,} bytes, it is not from qgmil extract; move it away")
        text = said.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ReadError(f"{said}: cannot be read ({error}); make it readable, or move it away") from None
    write_text(folder / EXTRACTED, text)
