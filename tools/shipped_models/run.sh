#!/usr/bin/env bash
# From the wheels and the recordings to the three shipped bundles. About two hours of one core.
#
#   tools/shipped_models/run.sh WORK [DATA]      WORK: a folder outside the repository; DATA: ../shared/data
set -euo pipefail
here=$(dirname "$0")
"$here/diarization.sh" "$@"
"$here/language.sh" "$@"
