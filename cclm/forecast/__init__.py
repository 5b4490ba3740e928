"""What a run will need: rows, FLOPs, memory, disk and time of a recipe, before it runs and without a GPU."""
