"""The commands of `python -m launch`, and their options; nothing is decided here."""
