"""From records to batches: addressing, tokens, masks, pictures, collation."""
