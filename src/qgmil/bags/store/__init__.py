"""The packed store: all bags of a manifest in one folder, memory-mapped.

Opening reads a few kilobytes whatever the features weigh; a bag's features are a view of the file, which every
process on the machine shares. `qgmil.bags.store.pack` makes one.
"""

from __future__ import annotations

from qgmil.bags.store.layout import is_store, store_identity
from qgmil.bags.store.reading import Store, StoredRecord, open_store
from qgmil.bags.store.verify import verify_store

__all__ = ["Store", "StoredRecord", "is_store", "open_store", "store_identity", "verify_store"]
