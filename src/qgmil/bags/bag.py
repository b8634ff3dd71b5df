"""`Bag` and `PackedBags`: the two types that everything passes on (no padding anywhere)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from qgmil.bags import hints
from qgmil.bags.ids import take_ids
from qgmil.errors import BagError

COORD_UNITS = ("px", "um", "grid", None)
TILE_FACTS = ("tile_size", "mpp", "magnification", "tile_mpp")


@dataclass(frozen=True, eq=False)
class Bag:
    """One slide, patient or smear: N instances and one label.

    Args:
        features: instance features ``(N, D)``, floating point, N >= 1.
        label: the bag's class as the user wrote it (text), or None when unknown.
        bag_id: unique name; always text ("0012" stays "0012").
        patient_id: the patient whose bags must stay on one side of a split; None means the bag itself.
        coords: position ``(N, 2)`` of each instance's top-left corner in `coord_unit`, or None.
        coord_unit: "px" (level-0 pixels), "um" (microns), "grid" (column and row in the grid of tiles), or None when
            the file does not say: the numbers are then as they stand in the file. Overlays refuse all but "px".
        tile_size: edge length of a tile in the unit of the coordinates (level-0 pixels where there are none), where
            the file knows it.
        mpp: microns per level-0 pixel, where the file knows it.
        magnification: objective magnification at which the tiles were cut (20 is "20x"), where the file knows it.
        tile_mpp: microns per pixel of the tiles as the encoder saw them, where the file knows it.
        instance_labels: ``(N,)`` integer truth of each instance, or None. Never an input to a model.
        instance_ids: N names of the instances (cells, tiles), or None.

    Raises:
        BagError: no instances, not a matrix, not floating point, or rows that do not agree.
    """

    features: Tensor
    label: str | None = None
    bag_id: str = "bag"
    patient_id: str | None = None
    coords: Tensor | None = None
    coord_unit: str | None = None
    tile_size: float | None = None
    mpp: float | None = None
    magnification: float | None = None
    tile_mpp: float | None = None
    instance_labels: Tensor | None = None
    instance_ids: Sequence[str] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.features.shape)
        if self.features.ndim != 2:
            raise BagError(f"bag {self.bag_id!r}: features must be a matrix (instances, width), got shape {shape}")
        if not self.features.is_floating_point():
            raise BagError(
                f"bag {self.bag_id!r}: features are {self.features.dtype}; convert them to a floating-point type"
            )
        if shape[0] == 0 or shape[1] == 0:
            raise BagError(
                f"bag {self.bag_id!r} is empty: features have shape {shape}; remove it, or {hints.skip('empty')}"
            )
        if self.coord_unit not in COORD_UNITS:
            raise BagError(f"bag {self.bag_id!r}: coord_unit is {self.coord_unit!r}; it must be one of {COORD_UNITS}")
        for name in ("coords", "instance_labels", "instance_ids"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != shape[0]:
                raise BagError(f"bag {self.bag_id!r}: {len(rows)} rows of {name} for {shape[0]} instances")

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def width(self) -> int:
        """Number of features of an instance."""
        return self.features.shape[1]

    @property
    def group(self) -> str:
        """The unit that a split must not divide: the patient, or the bag where no patient is known."""
        return self.patient_id if self.patient_id is not None else self.bag_id

    def check_finite(self) -> None:
        """Raise `BagError` naming the first instance and column that is NaN or infinite."""
        if all_finite(self.features):
            return
        finite = torch.isfinite(self.features)
        row, column = (int(i) for i in (~finite).nonzero()[0])
        value = float(self.features[row, column])
        bad = int((~finite).any(dim=1).sum())
        raise BagError(
            f"bag {self.bag_id!r}: feature {column} of instance {row} is {value} "
            f"({bad} of {len(self)} instances have such values); extract the features again or remove the bag"
        )

    def take(self, rows: Tensor) -> Bag:
        """The bag of the given instance rows ``(K,)`` (integer), in that order."""

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows]

        ids = self.instance_ids
        return replace(
            self,
            features=self.features[rows],
            coords=pick(self.coords),
            instance_labels=pick(self.instance_labels),
            instance_ids=None if ids is None else take_ids(ids, rows),
        )


def all_finite(features: Tensor) -> bool:
    """Whether no number is NaN or infinite."""
    low, high = features.aminmax()  # NaN if any number is; a twentieth of the time of isfinite
    return math.isfinite(low) and math.isfinite(high)


def merge_bags(bags: Sequence[Bag], bag_id: str) -> Bag:
    """One bag of all instances of several (a patient's slides), in order.

    Coordinates of different slides share no frame, so the merged bag has none unless there is one part. What is known
    of the tiles (size in level-0 pixels, microns per pixel, magnification) stays where all parts agree on it.

    Raises:
        BagError: different widths, labels or patients.
    """
    if len(bags) == 1:
        return replace(bags[0], bag_id=bag_id)
    first = bags[0]
    for other in bags[1:]:
        for name in ("width", "label", "patient_id"):
            a, b = getattr(first, name), getattr(other, name)
            if a != b:
                raise BagError(f"bag {bag_id!r}: {first.bag_id!r} has {name} {a!r} but {other.bag_id!r} has {b!r}")
    labels = [b.instance_labels for b in bags]
    ids = [b.instance_ids for b in bags]
    agreed = {name: getattr(first, name) for name in TILE_FACTS if len({getattr(b, name) for b in bags}) == 1}
    if any(b.coord_unit in ("um", "grid") for b in bags):  # without coordinates, a size can only be one in pixels
        agreed.pop("tile_size", None)
    return Bag(
        features=torch.cat([b.features for b in bags]),
        label=first.label,
        bag_id=bag_id,
        patient_id=first.patient_id,
        **agreed,
        instance_labels=torch.cat([x for x in labels if x is not None]) if all(x is not None for x in labels) else None,
        instance_ids=tuple(i for x in ids if x is not None for i in x) if all(x is not None for x in ids) else None,
    )


@dataclass(frozen=True, eq=False)
class PackedBags:
    """A batch of bags laid end to end: ``features (T, D)`` and the size of each bag.

    Args:
        features: all instances of the batch ``(T, D)``.
        sizes: instances of each bag, on the host, so that no kernel has to wait for the device.
        labels: ``(B,)`` class indices (long), or None.
        bag_ids: the names of the bags, in order.

    Raises:
        BagError: a bag of size zero, or sizes that do not add up to T.
    """

    features: Tensor
    sizes: tuple[int, ...]
    labels: Tensor | None = None
    bag_ids: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.bag_ids:
            object.__setattr__(self, "bag_ids", tuple(str(i) for i in range(len(self.sizes))))
        if not self.sizes:
            raise BagError("a batch needs at least one bag")
        if len(self.bag_ids) != len(self.sizes):
            raise BagError(f"{len(self.bag_ids)} bag ids for {len(self.sizes)} bags")
        for bag_id, size in zip(self.bag_ids, self.sizes, strict=True):
            if size < 1:
                raise BagError(f"bag {bag_id!r} is empty: remove it, or {hints.skip('empty')}")
        if self.features.ndim != 2 or sum(self.sizes) != self.features.shape[0]:
            raise BagError(
                f"packed features have shape {tuple(self.features.shape)} but the bag sizes add up to {sum(self.sizes)}"
            )

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def offsets(self) -> Tensor:
        """``(B + 1,)`` int32 on the features' device: bag b is rows offsets[b] to offsets[b + 1]."""
        sizes = torch.tensor((0, *self.sizes), dtype=torch.int32)
        return sizes.cumsum(0, dtype=torch.int32).to(self.features.device)

    @classmethod
    def from_bags(cls, bags: Sequence[Bag], labels: Tensor | None = None) -> PackedBags:
        """Pack bags of one feature width.

        Raises:
            BagError: no bags, or bags of different widths (both are named).
        """
        if not bags:
            raise BagError("a batch needs at least one bag")
        for bag in bags[1:]:
            if bag.width != bags[0].width:
                raise BagError(
                    f"bag {bag.bag_id!r} has {bag.width} features an instance but bag {bags[0].bag_id!r} has "
                    f"{bags[0].width}: all bags must come from the same encoder"
                )
        features = bags[0].features if len(bags) == 1 else torch.cat([b.features for b in bags])
        return cls(features, tuple(len(b) for b in bags), labels, tuple(b.bag_id for b in bags))

    def with_features(self, features: Tensor) -> PackedBags:
        """The same bags with other features ``(T, E)``."""
        return replace(self, features=features)

    def unpack(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split a per-instance tensor ``(T, ...)`` into one per bag (views)."""
        return rows.split(self.sizes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBags:
        """Move features and labels to a device."""
        labels = self.labels
        return replace(
            self,
            features=self.features.to(device, non_blocking=non_blocking),
            labels=None if labels is None else labels.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> PackedBags:
        """Page-locked copies, for asynchronous transfer to a GPU (called by the DataLoader)."""
        labels = self.labels
        return replace(
            self, features=self.features.pin_memory(), labels=None if labels is None else labels.pin_memory()
        )
