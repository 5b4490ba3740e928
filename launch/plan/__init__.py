"""A job as a value: what is asked for, what will run, and the files that it needs. Nothing is started here."""
