"""The shard format: plain tars, an index beside each, one manifest for the set. No torch in here."""
