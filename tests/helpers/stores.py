"""Stores that are to be the same."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def assert_same_store(here: Path, there: Path) -> None:
    with h5py.File(here) as a, h5py.File(there) as b:
        keys: list[str] = []
        a.visititems(lambda key, found: keys.append(key) if isinstance(found, h5py.Dataset) else None)
        assert a.keys() == b.keys() and len(a["Name"]) > 1
        for key in keys:
            equal = [np.array_equal(one, other) for one, other in zip(a[key][...], b[key][...], strict=True)]
            assert all(equal), key
