"""How `python -m shards download` behaves towards the hosts that it asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Limits of time and rate, and the robots policy. They change how long a download takes, not what its tars hold."""

    threads: int = 32
    """Images fetched at once."""
    per_host: int = 2
    """Of them, at most so many from one host (and port)."""
    interval_s: float = 0.0
    """At least so long between two requests to one host; a Crawl-delay in its robots.txt may ask for more."""
    timeout_s: float = 20.0
    """For connecting, and for each wait for data."""
    deadline_s: float = 60.0
    """For a whole answer, from the look-up of its host's name to its last byte. A slower one is left for the next
    run."""
    retries: int = 3
    """Further tries after a lost connection, a time-out, or an answer 408, 425, 429, 500, 502, 503, 504."""
    backoff_s: float = 1.0
    """Wait before the first further try; it doubles each time. A Retry-After header may ask for more."""
    max_wait_s: float = 60.0
    """The longest such wait, and the longest Crawl-delay that is kept to; a host that asks for more is left alone."""
    max_bytes: int = 20 << 20
    """Larger answers are broken off."""
    user_agent: str = "cclm-shards (collects image-text data for research)"
    """Who asks. Its first word, up to a "/" or a space, is the name that robots.txt may address."""
    robots: bool = True
    """Ask each host's robots.txt first."""
    opt_out: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    """Directives of the header X-Robots-Tag that keep an image out; a header `tdm-reservation: 1` always does."""

    @property
    def agent(self) -> str:
        """The name that robots.txt and X-Robots-Tag may address."""
        return self.user_agent.replace("/", " ").split(" ", 1)[0]
