"""Messages of errors: as they are given, but for what no reader would finish."""

from __future__ import annotations

import pickle

from knn_cli.core.errors import LONGEST, KnnError


def test_long_messages_lose_their_middle() -> None:
    whole = "x" * LONGEST
    assert str(KnnError(whole, "A hint.")) == f"{whole} A hint."
    error = KnnError(f"The file says {'x' * 10**6}, which is no size.", "A hint.")
    assert len(error.message) == LONGEST and "xxx [...] xxx" in error.message
    assert error.message.startswith("The file says x") and error.message.endswith("x, which is no size.")
    assert pickle.loads(pickle.dumps(error)).message == error.message  # noqa: S301
