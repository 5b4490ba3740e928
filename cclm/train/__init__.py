"""The training machinery that pre-training and fine-tuning share: loop, step, updates."""
