#!/usr/bin/env bash
# Features of many images on a cluster: an array job, a part a task, and one task that joins them.
#
#     sbatch --array=1-64 embed-slurm.sh RUN SOURCE parts/
#     sbatch --dependency=afterok:JOB_ID --wrap "deepcluster merge parts/*.parquet --out features.npy"
#
# Tasks that failed can be given again; an array of some tasks must be told how many parts there are:
#
#     SHARDS=64 sbatch --array=7,12 embed-slurm.sh RUN SOURCE parts/
#
# Parts that are there are left as they are.
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
set -euo pipefail
run=$1 source=$2 parts=$3
count=${SHARDS:-$SLURM_ARRAY_TASK_MAX} # parts in all
part=$parts/part-$SLURM_ARRAY_TASK_ID-of-$count.parquet
if [ ! -e "$part" ]; then
    deepcluster embed "$run" "$source" --shard "$SLURM_ARRAY_TASK_ID/$count" --out "$part"
fi
