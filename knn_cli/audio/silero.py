"""silero-vad's network (MIT), with the weights for 16 kHz from its wheel, and faster than the wheel's own code.

The wheel's code processes 32 ms per call and keeps a state. All layers but the LSTM depend only on a frame and the 4 ms
before it, so here they process all frames of all waveforms at once. The wheel's code is not imported, since it sets
torch to one thread for the whole process.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knn_cli.core.errors import KnnError

RATE = 16_000
FRAME = 512  # samples per frame: 32 ms
_CONTEXT = 64  # samples before a frame that go into its spectrum
_FRAMES_PER_PASS = 1024  # of the convolutions


class Silero(nn.Module):
    """Short-time spectrum, four convolutions to one vector per frame, LSTM, probability of speech."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 258, 256, stride=128, bias=False)  # 129 real parts, 129 imaginary ones
        sizes = (129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1)
        self.narrow = nn.ModuleList(
            nn.Conv1d(inputs, outputs, 3, stride=stride, padding=1) for inputs, outputs, stride in sizes
        )
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.classifier = nn.Conv1d(128, 1, 1)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Map (B, n * FRAME) float32 waveforms at RATE, each from its beginning, to (B, n) probabilities of speech."""
        batch, count = len(waveforms), waveforms.shape[1] // FRAME
        if not batch * count:
            return waveforms.new_zeros(batch, count)
        step = max(1, _FRAMES_PER_PASS // batch) * FRAME
        parts = []
        for at in range(0, count * FRAME, step):
            sound = F.pad(waveforms[:, max(0, at - _CONTEXT) : at + step], (0 if at else _CONTEXT, 0))
            frames = sound.unfold(1, _CONTEXT + FRAME, FRAME)  # (B, n, 576)
            parts.append(self._of_frames(frames.flatten(0, 1)).view(batch, -1, 128))
        features = torch.cat(parts, dim=1)  # (B, n, 128)
        hidden, _ = self.lstm(features)
        logits: Tensor = self.classifier(F.relu(hidden).transpose(1, 2)).squeeze(1)
        return logits.sigmoid()

    def _of_frames(self, frames: Tensor) -> Tensor:
        """(N, 576) -> (N, 128)."""
        real, imaginary = self.spectrum(F.pad(frames[:, None], (0, 64), mode="reflect")).chunk(2, dim=1)
        x = (real.square() + imaginary.square()).sqrt()  # (N, 129, 4)
        for layer in self.narrow:
            x = F.relu(layer(x))
        result: Tensor = x.squeeze(2)
        return result


@cache
def network() -> Silero:
    """Return the network with its weights, in evaluation mode. KnnError if silero-vad is missing or incomplete."""
    spec = find_spec("silero_vad")
    model = Silero()
    try:
        path = Path(str(spec and spec.origin)).parent / "data" / "silero_vad.jit"
        state = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        model.load_state_dict({key: state[f"_model.{source_key}"] for key, source_key in _KEYS.items()})
    except (ValueError, KeyError, RuntimeError) as error:  # missing, damaged, or of another version
        hint = "Install it: pip install 'silero-vad>=6.2,<7'."
        raise KnnError("The weights of the package silero-vad are missing or of another network.", hint) from error
    return model.eval()


_KEYS = {  # key of each weight in `Silero` -> key in the wheel's network
    "spectrum.weight": "stft.forward_basis_buffer",
    **{
        f"{key}.{kind}": f"{source_key}.{kind}"
        for key, source_key in {
            **{f"narrow.{number}": f"encoder.{number}.reparam_conv" for number in range(4)},
            "classifier": "decoder.decoder.2",
        }.items()
        for kind in ("weight", "bias")
    },
    **{f"lstm.{kind}_l0": f"decoder.rnn.{kind}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
}
