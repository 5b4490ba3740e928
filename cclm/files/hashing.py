"""The hash of a file's content. Standard library only."""

from __future__ import annotations

import hashlib
from pathlib import Path

_CHUNK_BYTES = 1 << 22


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal; it is read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
