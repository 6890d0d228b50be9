"""What cosines of speakers mean: settings of a bundle, the likelihood ratio, and calibration on enrolled speakers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.networks import bundle
from knn_cli.recognition.speaker_decision import (
    MAX_CLIPS,
    UNCALIBRATED,
    Clips,
    calibrate,
    decision_of,
    given,
    read_decision,
)

SETTINGS = {
    **{"threshold": 0.5, "margin": 0.1, "linking_threshold": 0.6, "llr_scale": 20.0, "llr_offset": -9.0},
    **{"same_mean": 0.8, "same_recording_mean": 0.9, "different_mean": 0.2, "prior_speakers": 3.0},
}
SHIPPED = decision_of(SETTINGS)


def clips(same: float, different: float, speakers: int, recordings: int = 2, parts: int = 1) -> Clips:
    """Speakers with equal cosines `same` between any two of their clips, `different` between those of two speakers.

    A vector is the sum of a common part, one of the speaker and one of its own, all orthogonal.
    """
    rows = speakers * recordings * parts
    data = np.zeros((rows, 1 + speakers + rows))
    names, files = [], []
    for row in range(rows):
        speaker = row // (recordings * parts)
        data[row, [0, 1 + speaker, 1 + speakers + row]] = np.sqrt([different, same - different, 1 - same])
        names.append(f"s{speaker}")
        files.append(f"s{speaker}/{row // parts}")
    result = Clips()
    result.add(EmbeddingSet.from_columns(data.astype(np.float32), files, speaker=names), slice(None))
    return result


def test_cosines_of_clips_by_hand() -> None:
    """Two clips each: a clip with the other one, and with the mean of two of another speaker."""
    cosines = clips(0.7, 0.3, 3).cosines()
    assert cosines.same == pytest.approx([0.7] * 3) and not cosines.of_one_recording.any()
    assert cosines.different == pytest.approx([0.3 / math.sqrt(0.85)] * 3)
    parts = clips(0.7, 0.3, 3, recordings=1, parts=2).cosines()
    assert parts.same == pytest.approx([0.7] * 3) and parts.of_one_recording.all()
    assert parts.different == pytest.approx([0.3 / 0.85] * 3)  # both are means of two parts
    alone = clips(0.7, 0.3, 3, recordings=1).cosines()
    assert np.isnan(alone.same).all() and alone.different == pytest.approx([0.3] * 3)


def test_what_is_compared() -> None:
    data = np.eye(4, dtype=np.float32)
    rows = EmbeddingSet.from_columns(
        data, ["a", "b", "c", "d"], speaker=["x", "x", "", "x"], start=[0.0] * 4, end=[9.0, 2.9, 9.0, math.nan]
    )
    few = Clips()
    few.add(rows, slice(0, 4))
    assert few.cosines().same == pytest.approx([0.0]) and np.isnan(few.cosines().different).all()  # rows a and d
    many = Clips()
    for place in range(3 * MAX_CLIPS):
        many.add(EmbeddingSet.from_columns(data[[place % 2]], [f"r{place}"], speaker=["x"]), slice(None))
    assert many.cosines().same[0] == pytest.approx(4 / math.sqrt(41))  # four of one vector, five of the other
    assert Clips().cosines().same.shape == (0,)


def test_calibration_by_hand() -> None:
    """Three speakers are worth as much as the prior: half of the shifts -0.2 and 0.1."""
    decision = calibrate(SHIPPED, clips(0.6, 0.3 * math.sqrt(0.8), 3))
    spread = (0.7 - 0.25) / 0.6
    assert decision.threshold == pytest.approx(0.25 + spread * 0.3)
    assert decision.linking_threshold == pytest.approx(0.25 + spread * 0.4)
    assert decision.margin == pytest.approx(spread * 0.1)
    assert (decision.origin, decision.speakers) == ("calibrated", 3)
    assert decision.source == "calibrated on 3 enrolled speakers"
    # The shipped means keep their likelihood ratios, wherever they are now.
    assert decision.llr(0.25) == pytest.approx(SHIPPED.llr(0.2)) and decision.llr(0.7) == pytest.approx(
        SHIPPED.llr(0.8)
    )
    assert decision.llr(decision.threshold) == pytest.approx(SHIPPED.llr(0.5))


def test_more_speakers_weigh_more_and_few_change_nothing() -> None:
    thresholds = [calibrate(SHIPPED, clips(0.5, 0.1, count)).threshold for count in (2, 3, 10, 40)]
    assert thresholds[0] == 0.5 and thresholds == sorted(thresholds, reverse=True)
    assert calibrate(SHIPPED, clips(0.7, 0.3, 9, recordings=1)) is SHIPPED  # a single clip each
    assert calibrate(UNCALIBRATED, clips(0.7, 0.3, 9)) is UNCALIBRATED
    assert calibrate(SHIPPED, Clips()) is SHIPPED


def test_clips_that_agree_better_than_expected_raise_nothing() -> None:
    """Clips of one evening promise nothing of another room; parts of one recording are expected to agree better."""
    different = 0.2 * math.sqrt(0.995)  # of a clip with a mean of two: 0.2
    assert calibrate(SHIPPED, clips(0.99, different, 20)).threshold == pytest.approx(0.5)
    apart = calibrate(SHIPPED, clips(0.8, 0.2 * 0.9, 20, recordings=1, parts=2)).threshold
    assert apart == pytest.approx(calibrate(SHIPPED, clips(0.7, 0.2 * math.sqrt(0.85), 20)).threshold)


def test_means_that_meet_leave_a_threshold() -> None:
    decision = calibrate(SHIPPED, clips(0.5, 0.5, 200))
    assert 0.05 <= decision.threshold <= 0.95 and decision.llr_scale <= 4 * SHIPPED.llr_scale


def test_what_a_cosine_means() -> None:
    assert SHIPPED.llr(0.45) == pytest.approx(0) and SHIPPED.probability(0.45) == pytest.approx(0.5)
    assert SHIPPED.evidence(0.5) == {"llr": 1.0, "probability": 0.7311}
    assert SHIPPED.is_same(0.5) and not SHIPPED.is_same(0.4999)
    assert UNCALIBRATED.evidence(0.5) == {"llr": None, "probability": None}
    assert SHIPPED.facts()["origin"] == "shipped" and SHIPPED.facts()["speakers"] is None
    asked = given(SHIPPED, 0.3)
    assert (asked.threshold, asked.margin, asked.origin) == (0.3, 0.0, "given") and given(SHIPPED, None) is SHIPPED
    with pytest.raises(KnnError, match="is no cosine"):
        given(SHIPPED, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.0}, "no cosine above 0"),
        ({"margin": -0.1}, "negative"),
        ({"llr_scale": "20"}, "llr_scale is no finite number"),
        ({"same_mean": float("nan")}, "same_mean is no finite number"),
        ({"different_mean": 0.85}, "more similar than the same"),
        ({"prior_speakers": None}, "prior_speakers is no finite number"),
    ],
)
def test_settings_of_a_bundle(change: dict[str, object], message: str, tmp_path: Path) -> None:
    tiny = bundle.find("tiny-test")
    assert read_decision(tiny) is UNCALIBRATED
    good = bundle.Bundle(tmp_path, {**tiny.config, "speaker_decision": json.loads(json.dumps(SETTINGS))})
    assert read_decision(good) == SHIPPED and good.fingerprint == tiny.fingerprint
    bad = bundle.Bundle(tmp_path, {**tiny.config, "speaker_decision": {**SETTINGS, **change}})
    with pytest.raises(BundleError, match=message):
        read_decision(bad)
    with pytest.raises(BundleError, match="it needs threshold"):
        read_decision(bundle.Bundle(tmp_path, {**tiny.config, "speaker_decision": {"threshold": 0.5}}))
