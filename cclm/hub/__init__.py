"""The Hugging Face folder: export, import, parity check, model card, vocabulary pruning."""
