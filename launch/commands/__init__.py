"""The commands of `python -m launch`, those that are read together in one file."""
