"""The largest batch that bags can give, without reading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qgmil.bags.bag import Bag
from qgmil.bags.dataset import BagDataset
from qgmil.bags.readers import bag_files
from qgmil.bags.store.reading import StoredRecord
from qgmil.errors import QGMILError

#: Fewest files whose headers are read: the largest on disk. Others cannot be much larger, compressed as they may be.
HEADERS = 16


@dataclass(frozen=True)
class Batch:
    """Names and sizes of the bags of a batch, the largest first."""

    bag_ids: tuple[str, ...]
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        if not self.bag_ids[0]:  # bags that nobody has named
            return f"{len(self.sizes)} bag{'s' * (len(self.sizes) > 1)} of {max(self.sizes):,} instances"
        named = f"bag {self.bag_ids[0]!r} ({self.sizes[0]:,} instances)"
        more = len(self.sizes) - 1
        return named + (f" and {more} more ({sum(self.sizes):,} instances in all)" if more else "")

    @classmethod
    def of(cls, bag_ids: Sequence[str], sizes: Sequence[int]) -> Batch:
        """In order of size."""
        pairs = sorted(zip(sizes, bag_ids, strict=True), key=lambda pair: -pair[0])
        return cls(tuple(name for _, name in pairs), tuple(size for size, _ in pairs))


def largest_batch(bags: BagDataset, batch_size: int, sample: int | None = None) -> Batch | None:
    """The batch of the largest bags, as far as that is known without reading them; None where it is not.

    Sizes of bags in memory and in a packed store are known. Of files, the largest on disk are opened for their headers,
    however many there are: one look at each file's size, and at most `HEADERS` (or `batch_size`) headers.
    """
    known = [(i, bags.instances(i)) for i, item in enumerate(bags.items) if isinstance(item, Bag | StoredRecord)]
    files = [(i, _bytes(bags, i)) for i, item in enumerate(bags.items) if not isinstance(item, Bag | StoredRecord)]
    files.sort(key=lambda pair: -pair[1])
    for i, _ in files[: max(HEADERS, batch_size)]:
        try:
            known.append((i, bags.instances(i)))
        except (QGMILError, OSError):  # said when the bag is read
            continue
    known = sorted(((i, n) for i, n in known if n), key=lambda pair: -pair[1])[:batch_size]
    if not known:
        return None
    ids = bags.bag_ids
    return Batch.of([ids[i] for i, _ in known], [n if sample is None else min(n, sample) for _, n in known])


def all_sizes(bags: BagDataset) -> list[int]:
    """Instances of every bag, by the headers of all files.

    Raises:
        ReadError: a file that cannot be read.
    """
    return [bags.instances(i) for i in range(len(bags))]


def _bytes(bags: BagDataset, index: int) -> int:
    item = bags.items[index]
    total = 0
    for path in () if isinstance(item, Bag) else item.files:
        try:
            total += sum(file.stat().st_size for file in bag_files(path))
        except (QGMILError, OSError):
            continue
    return total
