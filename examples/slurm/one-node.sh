#!/bin/bash
# One node, all of its GPUs: sbatch examples/slurm/one-node.sh corpus.h5 recipe.toml models/mine
# A job that runs out of time is asked to stop 2 minutes before and leaves a checkpoint; submit it again to go on.
#SBATCH --job-name=knn-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120

set -euo pipefail
corpus=$1 recipe=$2 model=$3

export OMP_NUM_THREADS=1 # workers read the sound, the GPUs do the rest
srun torchrun --standalone --nproc-per-node "${SLURM_GPUS_ON_NODE:?}" \
    -m knn_cli train "$corpus" --recipe "$recipe" -o "$model"
