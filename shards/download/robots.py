"""What hosts say about robots: robots.txt (RFC 9309) and headers by which an image opts out."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from protego import Protego

MAX_ROBOTS_BYTES: Final = 500 << 10
"""What a reader of robots.txt must read at least, and we at most (RFC 9309, 2.5)."""


OPT_OUTS: Final = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""Directives of the header X-Robots-Tag that keep an image out; a header `tdm-reservation: 1` always does."""


class RobotsPolicy:
    """Each host's robots.txt, asked for once."""

    def __init__(self, fetch: Callable[[str], Awaitable[tuple[int, bytes]]], agent: str) -> None:
        """Keep how to fetch: URL -> (HTTP status, body); status 0 when the host does not answer."""
        self._fetch, self._agent = fetch, agent
        self._rules: dict[str, Protego | None] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def refusal(self, origin: str, url: str) -> str:
        """Return "" when the URL may be fetched, else a status: robots_denied, or robots_unreachable.

        RFC 9309, 2.3.1: without a robots.txt (4xx) all is allowed; while it cannot be had (5xx, no answer) nothing is.
        """
        async with self._locks[origin]:  # the first asks, the others wait for the answer
            if origin not in self._rules:
                self._rules[origin] = _parse(*await self._fetch(f"{origin}/robots.txt"))
        rules = self._rules[origin]
        if rules is None:
            return "robots_unreachable"
        return "" if rules.can_fetch(url, self._agent) else "robots_denied"

    def delay_s(self, origin: str) -> float:
        """Return the Crawl-delay that a host asks for, as far as it is known yet."""
        rules = self._rules.get(origin)
        return float((rules.crawl_delay(self._agent) if rules is not None else None) or 0.0)


def _parse(status: int, body: bytes) -> Protego | None:
    if 200 <= status < 300:
        return Protego.parse(body[:MAX_ROBOTS_BYTES].decode("utf-8", "replace"))
    return Protego.parse("") if 400 <= status < 500 else None


def opted_out(headers: Iterable[tuple[str, str]], agent: str) -> str:
    """Return the directive by which an image opts out, or "".

    X-Robots-Tag may come several times, and each may begin with the name of the robot it is for ("otherbot: noindex").
    """
    for name, value in headers:
        if name.lower() == "tdm-reservation" and value.strip() == "1":
            return "tdm-reservation: 1"
        if name.lower() != "x-robots-tag":
            continue
        robot = ""
        for directive in value.lower().split(","):
            first, colon, rest = directive.partition(":")
            if colon and first.strip() not in ("unavailable_after", "max-snippet", "max-image-preview"):
                robot, directive = first.strip(), rest
            if directive.strip() in OPT_OUTS and robot in ("", "*", agent.lower()):
                return f"X-Robots-Tag: {directive.strip()}"
    return ""
