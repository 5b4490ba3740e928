"""A folder to write in, or one sentence why not."""

from __future__ import annotations

import os
from pathlib import Path

from cclm.errors import CclmError


def make_folder(folder: Path) -> Path:
    """Make the folder, with its parents, unless it is there; return it.

    Raises:
        CclmError: it cannot be made, or nothing can be written in it; raised from the OSError, if there is one.
    """
    expected, do = "a folder that can be made and written in", "Choose another folder, or mend its permissions."
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = f"{error.strerror or error} ({error.filename})"
        for place in (folder, *folder.parents):
            if place.is_symlink() and not place.exists():
                got = f"{place}, a link to {place.readlink()}, where there is nothing"
                do = "Make or mount what it leads to, or remove the link."
            elif place.exists() and not place.is_dir():
                got, do = f"{place}, which is a file", "Choose another folder, or move that file away."
        raise CclmError(where=str(folder), expected=expected, got=got, do=do) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CclmError(where=str(folder), expected=expected, got="one that this user may not write in", do=do)
    return folder
