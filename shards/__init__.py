"""`python -m shards`: raw corpora to shards."""
