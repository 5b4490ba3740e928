"""What became of a URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shards.corpora.webdataset import SUCCESS

NOT_TRIED: Final = "not_tried"
"""Status of an entry that a stopped download did not come to."""
BUSY: Final = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers that may be another one soon."""
TRANSIENT: Final = frozenset(
    {NOT_TRIED, "timeout", "connection_failed", "robots_unreachable", *(f"http_{code}" for code in BUSY)}
)
"""Statuses that the next run of the same command tries again."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """An image, or the reason why there is none."""

    status: str
    """"success", or the reason: http_404, timeout, robots_denied, opted_out, image_format, …"""
    message: str = ""
    """Details of a failure."""
    image: bytes = b""
    image_format: str = ""
    width: int = 0
    height: int = 0

    @property
    def is_image(self) -> bool:
        """Whether there is one."""
        return self.status == SUCCESS
