"""The commands of `python -m launch`, one a file."""
