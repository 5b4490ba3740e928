#!/bin/bash
# rates: 6 point(s), each a run of its own in /shared/runs/rates/points/N. Written by `python -m launch sweep`.
# To run some of them again by hand: sbatch --array=3,5 /shared/runs/rates/slurm/job.sh
#SBATCH --job-name=rates
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --output=/shared/runs/rates/points/%a/logs/slurm.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --array=0-5%2

# The script of the point takes over, in this process: it is what the signals of Slurm must reach.
exec bash /shared/runs/rates/points/"$SLURM_ARRAY_TASK_ID"/slurm/job.sh
