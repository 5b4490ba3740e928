"""Fast kernels, each with its plain reference in the same file."""
