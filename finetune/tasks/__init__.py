"""The tasks, a file each: its view, its metric, its published languages, and a little data that can be drawn."""
