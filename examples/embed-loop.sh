#!/usr/bin/env bash
# Features of many images in parts, one after the other: stop it when you like, and start it again.
#
#     bash embed-loop.sh RUN SOURCE features.npy 8
set -euo pipefail
run=$1 source=$2 out=$3 count=$4
parts=${out%.npy}-parts
for number in $(seq "$count"); do
    part=$parts/part-$number-of-$count.parquet
    if [ ! -e "$part" ]; then
        deepcluster embed "$run" "$source" --shard "$number/$count" --out "$part"
    fi
done
deepcluster merge "$parts"/part-*-of-"$count".parquet --out "$out"
