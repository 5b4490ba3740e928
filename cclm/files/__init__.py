"""Files: atomic writes, locks, reading what people write, lines that belong to steps. No torch."""
