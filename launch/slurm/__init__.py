"""Jobs under Slurm: a plan becomes one readable batch script, and the script decides from files what comes next."""
