"""The console script `cclm`: one command a file. A command imports what is heavy when it runs."""
