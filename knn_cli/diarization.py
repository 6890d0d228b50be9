"""Who spoke when: speech, windows over it, an embedding a window, clusters of embeddings, turns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from knn_cli import audio, segments
from knn_cli.errors import KnnError
from knn_cli.registry import CLUSTERERS

if TYPE_CHECKING:
    from pyannote.core import Annotation

    from knn_cli.embedder import Embedder

WINDOW_SECONDS = 1.5
STEP_SECONDS = 0.75
MINIMUM_WINDOW_SECONDS = 0.4  # a region of speech shorter than this takes the label of the nearest window
MAX_GAP_SECONDS = 0.5  # pauses up to this long inside one speaker's turn are part of it


def diarize(
    path: Path | str,
    *,
    model: str | Path | Embedder | None = None,
    clusterer: str = "spectral",
    settings: dict[str, object] | None = None,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    channel: str = "mix",
    device: str = "auto",
) -> Annotation:
    """Speaker turns of one audio file of any length, in bounded memory.

    model     : a bundle by name or path, or an Embedder that is loaded already
    clusterer : a name in `registry.CLUSTERERS`; `settings` are its arguments
    num_speakers, min_speakers, max_speakers : how many, where known; obeyed where there are as many windows

    Returns an Annotation with labels SPEAKER_00, SPEAKER_01, ... in order of first appearance, uri the file's stem;
    empty when there is no speech.
    Raises AudioError (see `audio.read`), KnnError for bounds that contradict each other, BundleError for the model.
    """
    from pyannote.core import Annotation

    from knn_cli import vad
    from knn_cli.embedder import Embedder

    check_speakers(num_speakers, min_speakers, max_speakers)
    cluster = CLUSTERERS.build(clusterer, **(settings or {}))
    embedder = model if isinstance(model, Embedder) else Embedder(model, device=device)
    uri = Path(path).stem
    speech = vad.speech(audio.blocks(path, rate=embedder.rate, channel=channel))
    windows = segments.windows(speech, duration=WINDOW_SECONDS, step=STEP_SECONDS, minimum=MINIMUM_WINDOW_SECONDS)
    if not windows:
        return Annotation(uri=uri)
    embeddings = embedder.spans(path, windows, channel=channel)[:, embedder.bundle.view("speaker")]
    labels = cluster(embeddings, num_speakers=num_speakers, min_speakers=min_speakers, max_speakers=max_speakers)
    return segments.turns(windows, labels, speech, max_gap=MAX_GAP_SECONDS, uri=uri)


def check_speakers(number: int | None, least: int | None, most: int | None) -> None:
    """KnnError for counts that no recording can obey."""
    for name, value in (("--num-speakers", number), ("--min-speakers", least), ("--max-speakers", most)):
        if value is not None and value < 1:
            raise KnnError(f"{name} is {value}; a recording has at least one speaker.")
    if least is not None and most is not None and least > most:
        raise KnnError(f"--min-speakers {least} is above --max-speakers {most}.")
    if number is not None and not (least or 1) <= number <= (most or number):
        raise KnnError(f"--num-speakers {number} is outside --min-speakers and --max-speakers.")
