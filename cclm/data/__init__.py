"""From records to batches: addressing, tokens, masks, images, collation."""
