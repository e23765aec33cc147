#!/usr/bin/env bash
# One process per GPU: JAX gives task i of a node GPU i of that node, so every task must see all of the node's GPUs.
# sbatch --nodes=2 docs/clusters/slurm.sh pretrain --config=... --workdir=/shared/runs/NAME ...
#SBATCH --job-name=rootstock
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rootstock-%j.log
set -euo pipefail

# The same command resumes from the newest checkpoint, so a requeued job needs nothing else.
exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --gpu-bind=none --kill-on-bad-exit=1 --label \
  "${ROOTSTOCK:-.venv/bin/rootstock}" "$@"
