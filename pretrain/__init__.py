"""`python -m pretrain`: configuration, wiring and the training loop."""
