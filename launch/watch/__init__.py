"""How runs are doing: status, logs, results. Nothing is written here."""
