"""Views: what each of them reads, and what it contributes to a training step."""
