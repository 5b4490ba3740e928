"""The bytes of a plain POSIX tar, made so that equal members give equal bytes.

A header is ustar; only a name that ustar cannot hold (over 100 bytes, or not ASCII) gets a pax header before it, and
every tar reader, `webdataset` included, understands both.
"""

from __future__ import annotations

import tarfile
from typing import Final

BLOCK_BYTES: Final = 512
RECORD_BYTES: Final = 20 * BLOCK_BYTES
"""A tar's length is a multiple of this; GNU tar and Python write it so, and some readers insist."""


def member_header(name: str, size: int) -> bytes:
    """Return the header of a file member: mode 0644, no owner, time 0.

    Args:
        name: the member's name, "KEY.EXTENSION".
        size: the length of its data in bytes.
    """
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    """Return the zeros that fill a member's data of `size` bytes up to the next block."""
    return bytes(-size % BLOCK_BYTES)


def trailer(size: int) -> bytes:
    """Return what ends a tar whose members take `size` bytes: two zero blocks, then zeros to a whole record."""
    return bytes(2 * BLOCK_BYTES + -(size + 2 * BLOCK_BYTES) % RECORD_BYTES)
