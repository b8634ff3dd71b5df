"""A store opened with the options of a manifest: which columns are the label and the patient."""

from __future__ import annotations

from collections.abc import Sequence

from qgmil.bags import hints
from qgmil.bags.problems import Problem, bad_label, clean_label, missing_column
from qgmil.bags.store.reading import Store, StoredRecord
from qgmil.errors import ConfigError

USUAL = {"label": "label", "bag_id": "bag_id", "patient_id": "patient_id"}


def stored_records(
    store: Store,
    *,
    features: str | None = None,
    label: str = "label",
    bag_id: str = "bag_id",
    patient_id: str | None = "patient_id",
    dataset: str | None = None,
    labels: bool = True,
) -> tuple[tuple[StoredRecord, ...], list[Problem]]:
    """The bags of a store, and the labels that cannot be used as problems; options as for `open_bags`.

    A column's usual name and the name that it had in the manifest both mean what was packed; any other name means one
    of the manifest's other columns, which the store keeps.

    Raises:
        ManifestError: no such column.
        ConfigError: features of another column or data set than those that were packed, or other ids.
    """
    for name, value in (("features", features), ("dataset", dataset)):
        packed = store.index.columns.get(name)
        if value is not None and value != packed:
            was = f"its own {name}" if packed is None else hints.option(name, packed)
            raise ConfigError(
                f"{store.path}: was packed with {was}, so {hints.option(name, value)} cannot be opened from it; "
                "leave the option out, or pack another store with it"
            )
    if bag_id not in (USUAL["bag_id"], store.index.columns.get("bag_id")):
        raise ConfigError(
            f"{store.path}: its bags were named when they were packed; leave out {hints.option('bag_id', bag_id)}"
        )
    named, problems = _labels(store, label, labels)
    patients: Sequence[str | None] = [None] * len(store)
    if patient_id is not None:
        patients = _column(store, "patient_id", patient_id, store.index.patient_ids, labels)
    return store.records(named, [p or None for p in patients]), problems


def _labels(store: Store, label: str, required: bool) -> tuple[Sequence[str | None], list[Problem]]:
    found = _column(store, "label", label, store.index.labels, required)
    if found is store.index.labels:
        return found, []
    cleaned = [None if v is None else clean_label(v) for v in found]
    problems = [
        Problem("label", bag, f"the label {value!r} of bag {bag!r} cannot be used, {reason}; pack it again on one line")
        for bag, value in zip(store.index.bag_ids, cleaned, strict=True)
        if (reason := bad_label(value))
    ]
    return cleaned, problems


def _column(store: Store, option: str, name: str, packed: list[str | None], required: bool) -> list[str | None]:
    """A column by name; where it is not `required`, one that is not there has no values."""
    index = store.index
    if name in (USUAL[option], index.columns.get(option)):
        return packed
    if name in index.extra:
        return index.extra[name]
    if not required:
        return [None] * len(store)
    had = [index.columns.get(o) or o for o in ("bag_id", "label", "patient_id")]
    raise missing_column(store.path, name, [*dict.fromkeys([*had, *index.extra])], option)
