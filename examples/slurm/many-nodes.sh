#!/bin/bash
# Several nodes: sbatch --nodes 4 examples/slurm/many-nodes.sh corpus.h5 recipe.toml models/mine
# Corpus, recipe and model lie on a file system that all nodes see; loop.batch must divide by the number of GPUs.
#SBATCH --job-name=knn-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120

set -euo pipefail
corpus=$1 recipe=$2 model=$3

export OMP_NUM_THREADS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:?}" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
    -m knn_cli train "$corpus" --recipe "$recipe" -o "$model"
