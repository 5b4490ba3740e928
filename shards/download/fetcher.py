"""One URL -> one picture, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from cclm.errors import DataError, MissingDependencyError
from shards.corpora.picture import image_format_of, image_size
from shards.corpora.tar_table import SUCCESS
from shards.download.manners import MAX_ROBOTS_BYTES, RobotsRules, opted_out
from shards.download.options import DownloadOptions

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

BUSY: Final = (408, 425, 429, 500, 502, 503, 504)
"""Answers that may be another one soon."""
TRANSIENT: Final = frozenset({"timeout", "connection_failed", "robots_unreachable", *(f"http_{code}" for code in BUSY)})
"""Statuses that the next run of the same command tries again."""
_MAX_REDIRECTS: Final = 5


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What became of a URL."""

    status: str
    """"success", or the reason: http_404, timeout, robots_denied, opted_out, image_format, …"""
    message: str = ""
    """Details of a failure."""
    image: bytes = b""
    image_format: str = ""
    width: int = 0
    height: int = 0


class Fetcher:
    """Keeps connections and what hosts said about robots. Safe for threads."""

    def __init__(self, options: DownloadOptions) -> None:
        """Make a pool of connections; nothing is asked yet."""
        try:
            import urllib3
        except ImportError as error:
            raise MissingDependencyError(
                expected="the package urllib3 (it fetches)", got="no such package", do="pip install urllib3"
            ) from error
        self._options, self._urllib3 = options, urllib3
        self._pool = urllib3.PoolManager(
            num_pools=4 * options.threads, maxsize=options.per_host, headers={"User-Agent": options.user_agent}
        )
        self._robots = RobotsRules(self._robots_txt, options.agent)

    def delay_s(self, origin: str) -> float:
        """Return how long to wait between requests to a host."""
        return max(self._options.interval_s, self._robots.delay_s(origin) if self._options.robots else 0.0)

    def fetch(self, url: str) -> Fetched:
        """Fetch a picture, over redirects, each of which asks its own host's robots.txt."""
        errors = self._urllib3.exceptions
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                answer = self._ask(url)
                if isinstance(answer, Fetched):
                    return answer
                url = answer
            return Fetched(status="too_many_redirects", message=url)
        except errors.MaxRetryError as error:
            timed_out = isinstance(error.reason, errors.TimeoutError) and not isinstance(
                error.reason, errors.NewConnectionError
            )
            return Fetched(status="timeout" if timed_out else "connection_failed", message=_short(error.reason))
        except errors.TimeoutError as error:
            return Fetched(status="timeout", message=_short(error))
        except (errors.HTTPError, OSError) as error:
            return Fetched(status="connection_failed", message=_short(error))
        except (ValueError, UnicodeError) as error:  # http.client and idna on URLs that are none
            return Fetched(status="url_bad", message=_short(error))

    def _ask(self, url: str) -> Fetched | str:
        """Return what a URL gives, or where it leads."""
        origin = origin_of(url)
        if not origin:
            return Fetched(status="url_bad", message="not an http or https URL")
        if self._options.robots:
            refusal = self._robots.refusal(origin, url)
            if refusal:
                return Fetched(status=refusal, message=f"{origin}/robots.txt")
            if self._robots.delay_s(origin) > self._options.max_wait_s:
                return Fetched(status="robots_denied", message=f"Crawl-delay {self._robots.delay_s(origin):g} s")
        for tries_left in reversed(range(self._options.retries + 1)):
            response = self._get(url)
            try:
                return self._answer(url, response)
            except (self._urllib3.exceptions.ProtocolError, self._urllib3.exceptions.ReadTimeoutError):
                if not tries_left:  # a body that breaks off; the request itself is tried again by urllib3
                    raise
            finally:
                response.release_conn()
        raise AssertionError("the last try returns or raises")

    def _get(self, url: str) -> BaseHTTPResponse:
        options = self._options
        retry = self._urllib3.Retry(
            total=options.retries,
            redirect=False,
            status_forcelist=BUSY,
            backoff_factor=options.backoff_s,
            backoff_max=options.max_wait_s,
            retry_after_max=int(options.max_wait_s),
            raise_on_status=False,
        )
        return self._pool.request(
            "GET", url, redirect=False, preload_content=False, timeout=options.timeout_s, retries=retry
        )

    def _answer(self, url: str, response: BaseHTTPResponse) -> Fetched | str:
        if 300 <= response.status < 400 and response.headers.get("Location"):
            return urljoin(url, response.headers["Location"])
        if response.status != 200:
            return Fetched(status=f"http_{response.status}", message=response.reason or "")
        directive = opted_out(response.headers.items(), self._options.agent, self._options.opt_out)
        if directive:
            response.close()
            return Fetched(status="opted_out", message=directive)
        image = response.read(self._options.max_bytes + 1)
        if len(image) > self._options.max_bytes:
            response.close()
            return Fetched(status="too_large", message=f"more than {self._options.max_bytes} bytes")
        try:
            image_format = image_format_of(image, url)
            width, height = image_size(image, url)
        except DataError as error:
            return Fetched(status=error.reason, message=error.got)
        return Fetched(status=SUCCESS, image=image, image_format=image_format, width=width, height=height)

    def _robots_txt(self, url: str) -> tuple[int, bytes]:
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                response = self._get(url)
                try:
                    if not (300 <= response.status < 400 and response.headers.get("Location")):
                        return response.status, response.read(MAX_ROBOTS_BYTES)
                    url = urljoin(url, response.headers["Location"])
                finally:
                    response.close()
        except (self._urllib3.exceptions.HTTPError, OSError):
            return 0, b""
        return 404, b""  # RFC 9309, 2.3.1.2: after five redirects it may be taken as not there


def origin_of(url: str) -> str:
    """Return "https://host[:port]" of a URL, or "" when it is not one of http or https."""
    try:
        parts = urlsplit(url)
        return (
            f"{parts.scheme}://{parts.netloc.lower()}" if parts.scheme in ("http", "https") and parts.hostname else ""
        )
    except ValueError:
        return ""


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200]
