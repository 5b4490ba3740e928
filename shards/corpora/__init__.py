"""One file per source corpus."""
