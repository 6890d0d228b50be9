"""Known speakers of `knn diarize`: their clips, and which cosines are theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from knn_cli.cli.console import console
from knn_cli.cli.options import counted

if TYPE_CHECKING:
    from knn_cli.cli.diarization_settings import DiarizationSettings
    from knn_cli.diarization.enrollment import EnrolledSpeakers
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.networks.bundle import Bundle
    from knn_cli.recognition.speaker_decision import SpeakerDecision


def enrolled(path: Path, embedder: Embedder, jobs: int | None) -> EnrolledSpeakers:
    """The speakers of a file or folder of clips, whose number is told; KnnError as `enrollment.enroll`."""
    from knn_cli.core.parallel import limited
    from knn_cli.diarization import enrollment

    with limited(jobs), console.progress("Enrolling") as progress:
        enrolled = enrollment.enroll(path, embedder, progress=progress)
    console.detail(f"{path}: {counted(len(enrolled), 'known speaker')}, {counted(int(enrolled.clips.sum()), 'clip')}.")
    for name in enrolled.inconsistent:
        console.note(f"The clips of {name} are so unlike each other that they may be of several speakers.")
    return enrolled


def decision_for(
    voice: Bundle | None, enrolled: EnrolledSpeakers | None, tuning: DiarizationSettings, *, links: bool
) -> SpeakerDecision:
    """The thresholds that are asked for, otherwise those of the model, calibrated on the enrolled speakers."""
    from knn_cli.recognition import speaker_decision

    decision = speaker_decision.UNCALIBRATED if voice is None else speaker_decision.read_decision(voice)
    if enrolled is not None:
        decision = speaker_decision.calibrate(decision, enrolled.compared)
    linking = decision.linking_threshold if tuning.linking_threshold is None else tuning.linking_threshold
    source = "as given" if tuning.linking_threshold is not None else decision.source
    decision = replace(speaker_decision.given(decision, tuning.identification_threshold), linking_threshold=linking)
    if enrolled is not None:
        margin = f", {decision.margin:.2f} above any other" if decision.margin else ""
        console.note(f"A known speaker from a cosine of {decision.threshold:.2f}{margin}, {decision.source}.")
    if links:
        console.note(f"One speaker of several recordings from a cosine of {linking:.2f}, {source}.")
    return decision
