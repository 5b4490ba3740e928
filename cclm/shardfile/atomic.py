"""Moved to `cclm.atomic`."""

from pathlib import Path

from cclm.atomic import publish as publish
from cclm.atomic import replace_bytes
from cclm.atomic import sync as sync_folder
from cclm.atomic import temporary_path as temporary_path

__all__ = ["publish", "sync_folder", "temporary_path", "write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """`replace_bytes`, durable."""
    replace_bytes(path, data, durable=True)
