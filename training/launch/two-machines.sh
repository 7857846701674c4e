#!/usr/bin/env bash
# One training on several machines without a scheduler. On each of them, in the same checkout at the same commit:
#
#   bash training/launch/two-machines.sh HOST RANK --config FILE --config FILE ...
#
# HOST is the first machine's address as the others reach it, RANK 0 there and 1 on the second; the rest are the
# arguments of training.run. NODES=3 for three machines, GPUS=4 for four processes on each (default: one for each GPU), PORT=29500.
# The run folder lies on a file system that all of them see. A run that is there already goes on.
set -euo pipefail
if [ $# -lt 3 ] || ! [[ $2 =~ ^[0-9]+$ ]]; then
    echo "usage: $0 HOST RANK --config FILE ...   (RANK: 0 on the first machine, 1 on the second)" >&2
    exit 2
fi
host=$1 rank=$2
shift 2
nodes=${NODES:-2}
if [ "$rank" -ge "$nodes" ]; then
    echo "error: RANK $rank is none of 0 to $((nodes - 1)) for NODES=$nodes machines." >&2
    exit 2
fi
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$nodes" --node-rank "$rank" --nproc-per-node "${GPUS:-gpu}" \
    --master-addr "$host" --master-port "${PORT:-29500}" \
    -m training.run "$@" --resume auto
