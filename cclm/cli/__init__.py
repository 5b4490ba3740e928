"""The console script `cclm`. A command imports what is heavy when it runs."""
