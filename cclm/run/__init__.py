"""A run on disk, as files that programs without torch read: status, stop request, checkpoints, facts."""
