"""See `tests.stored_runs.make`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.stored_runs.make import main

if __name__ == "__main__":
    main(Path(sys.argv[1]))
