"""`python -m launch`: plan a job, run it, look after it."""
