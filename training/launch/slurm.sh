#!/usr/bin/env bash
# One training under Slurm, on as many machines as the job has; it goes on by itself after preemption and time limits.
#
#   sbatch --nodes 2 training/launch/slurm.sh --config FILE --config FILE ... --parallel.processes 16
#
# Submitted from the checkout, which all machines see, as they see the run folder. Edit the lines below for your cluster.
# Three minutes before its time ends, or when it is preempted, Slurm sends SIGTERM: the step is finished, the state
# saved, and the job queued again. A training that fails is not queued again.
#SBATCH --job-name=kosmos-g
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
#SBATCH --output=kosmos-g-%j.log
set -uo pipefail
if [ $# -eq 0 ]; then
    echo "usage: sbatch [--nodes N] $0 --config FILE ...   (arguments of training.run)" >&2
    exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: $0 runs inside a Slurm job; submit it with sbatch, or use training/launch/two-machines.sh." >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"
export OMP_NUM_THREADS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# All meet at the first machine; the port follows from the job's number, so that two jobs can share it.
port=$((20000 + SLURM_JOB_ID % 20000))
running=
stopped=0
trap 'stopped=1; kill -TERM $running 2>/dev/null' TERM
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${GPUS:-gpu}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:$port" \
    -m training.run "$@" --resume auto &
running=$!
[ "$stopped" = 0 ] || kill -TERM "$running"
wait "$running"
code=$?
# A trapped signal ends `wait` at once: the second one waits for the checkpoint.
if [ "$stopped" = 1 ]; then
    wait "$running"
    code=$?
    echo "Stopped by Slurm (exit code $code of the launcher); queued again."
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
