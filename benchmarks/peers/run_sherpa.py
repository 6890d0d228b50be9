"""Diarize files with sherpa-onnx: segmentation-3.0, CAM++, fast clustering with threshold 0.5."""

from __future__ import annotations

import sherpa_onnx
import soundfile
from common import THREADS, arguments, write


def main() -> None:
    """Diarize the files."""
    files, folder, models = arguments()
    diarizer = sherpa_onnx.OfflineSpeakerDiarization(
        sherpa_onnx.OfflineSpeakerDiarizationConfig(
            segmentation=sherpa_onnx.OfflineSpeakerSegmentationModelConfig(
                pyannote=sherpa_onnx.OfflineSpeakerSegmentationPyannoteModelConfig(
                    model=str(models / "segmentation-3.0.onnx")
                ),
                num_threads=THREADS,
            ),
            embedding=sherpa_onnx.SpeakerEmbeddingExtractorConfig(
                model=str(models / "campplus.onnx"), num_threads=THREADS
            ),
            clustering=sherpa_onnx.FastClusteringConfig(num_clusters=-1, threshold=0.5),
            min_duration_on=0.3,
            min_duration_off=0.5,
        )
    )
    for path in files:
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == diarizer.sample_rate
        turns = diarizer.process(samples).sort_by_start_time()
        write(folder, path, [(turn.start, turn.end, f"SPEAKER_{turn.speaker:02d}") for turn in turns])


if __name__ == "__main__":
    main()
