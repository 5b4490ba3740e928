#!/bin/bash
# base: 4 node(s) x 2 rank(s). Written by `python -m launch submit`.
# To go on by hand: sbatch /shared/runs/base/slurm/job.sh
#SBATCH --job-name=base
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --output=/shared/runs/base/logs/slurm.log
#SBATCH --open-mode=append
#SBATCH --requeue

asked=
trap asked=1 USR1 # until an attempt has begun: it would end this script, and a job that failed is not queued again
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

# -- where the ranks meet
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$(attempt port --job "$SLURM_JOB_ID")
export MASTER_ADDR MASTER_PORT

# -- begin: nothing to do if the run is done, give up if it only crashes
CCLM_ATTEMPT=$(attempt begin --job "$job" --nodes "$SLURM_JOB_NODELIST")
case $? in
  0) export CCLM_ATTEMPT ;;
  3) exit 0 ;;
  *) exit 1 ;;
esac

# -- a signal before the time limit or at preemption becomes a request to save
ask_to_save() {
  attempt ask --kind "$1" --reason "$2"
  scancel --signal=USR1 "$job"
}
trap 'ask_to_save scheduler "time limit or preemption (USR1)"' USR1
# TERM means that the job is being ended: save if there is time; whether it comes back is not ours to say.
ended=
trap 'ended=--ended; ask_to_save signal TERM' TERM
[ -z "$asked" ] || ask_to_save scheduler "time limit or preemption (USR1), before the attempt had begun"

# Run a step, for so many seconds at most (0: no limit), in the background: so the traps above act at once.
step() {
  timeout --kill-after=10 "$1" srun --kill-on-bad-exit=1 --wait=60 "${@:2}" &
  local code=0 pid=$!
  while wait "$pid"; code=$?; kill -0 "$pid" 2> /dev/null; do :; done
  return "$code"
}

# -- preflight: is every node healthy?
step 600 --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
  /shared/venv/bin/python -m launch.slurm.preflight "$run"
[ -n "$ended" ] || attempt check --job "$job" || exit 1

# -- the ranks
step 0 --ntasks-per-node=2 --cpus-per-task=1 --cpu-bind=cores --distribution=block:block \
  /shared/venv/bin/python -m launch.slurm.task "$run" rank -- \
  /shared/venv/bin/python -m pretrain --recipe /shared/runs/base/recipe.yaml
code=$?

# -- end: done, go on in another attempt, or give up
attempt end --job "$job" --code "$code" ${ended:+"$ended"}
case $? in
  0) exit 0 ;;
  75) scontrol requeue "$job" || attempt resubmit ;;
  *) exit "$((code ? code : 1))" ;;
esac
