"""A folder to write in, or one sentence why not."""

from __future__ import annotations

import os
from pathlib import Path

from cclm.errors import CclmError


def make_folder(folder: Path) -> Path:
    """Make the folder, with its parents, unless it is there; return it.

    Raises:
        CclmError: it cannot be made, or nothing can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK | os.X_OK) else "one that this user may not write in"
    except OSError as error:
        problem = f"{error.strerror or error} ({error.filename})"
    if problem:
        raise CclmError(
            where=str(folder),
            expected="a folder that can be made and written in",
            got=problem,
            do="Choose another folder, or mend its permissions.",
        )
    return folder
