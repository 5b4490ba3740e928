#!/bin/bash
# base: 64 task(s). Written by `python -m launch submit --array`.
# To run some of them again by hand: sbatch --array=3,5 /shared/runs/base/slurm/job.sh
#SBATCH --job-name=base
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --array=0-63%16
#SBATCH --output=/shared/runs/base/logs/slurm_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue

set -u
run=/shared/runs/base
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
cd "$run/code" || exit 1

# What comes next is decided from the files of the run folder, by launch/slurm/attempt.py.
attempt() { /shared/venv/bin/python -m launch.slurm.attempt "$1" "$run" "${@:2}"; }

# -- environment
export OMP_NUM_THREADS=1
export PYTHONUNBUFFERED=1
export DS_ACCELERATOR=cpu
export PYTHONPATH="$run/code"

# -- the task; an array has no further attempts; its end is told in RUN/status/exit_task_N.json
export CCLM_ATTEMPT=0
srun --ntasks=1 --cpus-per-task=1 --cpu-bind=cores --kill-on-bad-exit=1 --wait=60 \
  /shared/venv/bin/python -m launch.slurm.task "$run" task -- \
  /shared/venv/bin/python -m shards build /shared/corpus.yaml --task @TASK@/64
