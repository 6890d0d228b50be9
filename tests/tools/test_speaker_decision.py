"""The measurement of thresholds: error rates by hand, what is chosen on separable speakers, and where it is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from knn_cli.networks import bundle
from knn_cli.recognition.speaker_decision import Clips, decision_of, read_decision
from tools.shipped_models import speaker_decision as measuring
from tools.shipped_models.speaker_decision import Measured, User


def test_owners_and_others_by_hand() -> None:
    """Two owners: one named, one named as the other; three others: one accepted, one within the margin, one below."""
    cosines = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.1], [0.7, 0.68], [0.3, 0.2]])
    user = User(("recorded", "recorded"), Clips(), cosines)
    assert measuring.error_rates(user, 0.5, 0.05) == (0.5, pytest.approx(1 / 3))
    assert measuring.error_rates(user, 0.5, 0.0) == (0.5, pytest.approx(2 / 3))
    threshold, margin = measuring.choose_threshold([(2, user)])
    assert 0.7 < threshold <= 0.9 and margin == 0.0  # the owner is named, nobody else is accepted


def speakers(seed: int, count: int = 12) -> Measured:
    """Speakers of three clips each; a telephone and mixtures add noise and what all have in common."""
    rng = np.random.default_rng(seed)
    own = np.repeat(rng.normal(size=(count, 24)), 3, axis=0)
    rows = {}
    for name, (noise, common) in {"recorded": (0.5, 0.0), "mixed": (0.9, 0.5), "telephone": (0.7, 0.8)}.items():
        vectors = own + noise * rng.normal(size=own.shape) + common
        rows[name] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return Measured(np.repeat([f"s{place:02d}" for place in range(count)], 3), rows, 0.9)


def test_what_is_chosen_is_good_on_others_and_goes_into_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "USERS", 3)
    settings = measuring.choose(speakers(0))
    assert settings == measuring.choose(speakers(0)) and 0.2 < settings["threshold"] < 0.8
    table = measuring.report(decision_of(settings), speakers(1))
    assert {row["enrolled"] for row in table} == {3, 5, 10}
    summary = measuring.by_enrolled(table)["3 enrolled"]
    assert summary["shipped: owners refused %"] < 50 and summary["calibrated: others accepted %"] < 50
    shutil.copytree(bundle.find("tiny-test").folder, tmp_path / "mine")
    before = bundle.find(tmp_path / "mine").fingerprint
    measuring.write_settings(tmp_path / "mine", {**settings, "chosen": "here"})
    after = bundle.find(tmp_path / "mine")
    assert after.fingerprint == before and read_decision(after) == decision_of(settings)
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["speaker_decision"]["chosen"] == "here"
