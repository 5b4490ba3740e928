"""Which run a folder holds: a random text, made once and kept there, that copies and services know it by."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from cclm.files.atomic import replace_text

IDENTITY_NAME = "identity.json"


def run_identity(folder: Path) -> str:
    """Return the identity of the run in a folder."""
    path = folder / IDENTITY_NAME
    if path.exists():
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    identity = secrets.token_hex(8)
    replace_text(path, json.dumps({"id": identity}) + "\n")
    return identity
