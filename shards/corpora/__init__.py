"""One file for each kind of corpus."""
