"""`python -m finetune`: a pre-trained model learns a task, and is measured on it."""
