"""Arguments of networks that are small enough for tests."""

from __future__ import annotations

from typing import Any

WAVLM: dict[str, Any] = {
    "convolutions": [(24, 10, 5), *[(24, 3, 2)] * 4, *[(24, 2, 2)] * 2],
    "channels": 32,
    "blocks": 2,
    "heads": 4,
    "inner": 40,
    "position_kernel": 16,
    "position_groups": 4,
    "distance": 100,
}
