"""What a trained model is used for: embedding, search, measuring retrieval on shard sets."""
