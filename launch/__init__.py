"""`python -m launch`: plan a job, then carry it out."""
