#!/usr/bin/env bash
# A fit by several processes on a cluster, a task each; the same again with --resume goes on with it.
#
#     sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 fit-slurm.sh SOURCE --clusters 10 --out RUN
#
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
set -euo pipefail
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # the first task's machine
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun asks anew
srun bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=${SLURM_TASKS_PER_NODE%%(*}
    exec deepcluster fit "$@"
' fit "$@"
