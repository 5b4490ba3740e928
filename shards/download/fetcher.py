"""One URL -> one image, or the reason why not; many at once, few from one host.

A download can leave its connections at any moment: after a deadline, or when it is stopped.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from datetime import timezone
from email.utils import parsedate_to_datetime
from functools import partial
from ipaddress import ip_address
from threading import Thread
from typing import Final, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from protego import Protego
from yarl import URL

from cclm.errors import DataError
from shards.corpora.image_corpus import image_format_of, image_size
from shards.corpora.webdataset import SUCCESS
from shards.download.options import BUSY, DownloadOptions, Fetched

MAX_ROBOTS_BYTES: Final = 500 << 10
"""What a reader of robots.txt must read at least, and we at most (RFC 9309, 2.5)."""


OPT_OUTS: Final = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""Directives of the header X-Robots-Tag that keep an image out; a header `tdm-reservation: 1` always does."""
_MAX_REDIRECTS: Final = 5
_CHUNK_BYTES: Final = 1 << 16
_HOST_NAME: Final = re.compile(r"(?:[\w-]{1,63}\.)*(?!\d+\.?$)[\w-]{1,63}\.?", re.ASCII)
"""Labels of 1 to 63 characters, the last of which is no number (that would be a broken address)."""


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


Result = TypeVar("Result")


async def in_thread(function: Callable[[], Result]) -> Result:
    """Call a function that blocks, in a thread of its own.

    A daemon thread, not one of the loop's executor, which the interpreter waits for at its end: a name server that
    does not answer, or an image that takes minutes to decode, must not hold up Ctrl-C.
    """
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  # it is raised where the result is awaited
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(future)


class _Resolver(AbstractResolver):  # type: ignore[misc]  # aiohttp is seen untyped
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host."""
        found = await in_thread(partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM))
        return [
            ResolveResult(
                hostname=host, host=address[0], port=port, family=kind, proto=protocol, flags=socket.AI_NUMERICHOST
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Fetcher:
    """Keeps connections, and what hosts said about robots. An asynchronous context manager, of one event loop."""

    def __init__(self, options: DownloadOptions) -> None:
        self._options = options
        self._robots = RobotsPolicy(self._robots_txt, options.agent)
        self._hosts: dict[str, _HostLimit] = {}
        self._running = asyncio.Semaphore(options.threads)

    async def __aenter__(self) -> Fetcher:
        # `timeout_s` limits each wait, `deadline_s` a whole answer: a host that sends a byte a second is left, too.
        wait_s = self._options.timeout_s
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=_Resolver()),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._options.user_agent},
            timeout=aiohttp.ClientTimeout(total=self._options.deadline_s, sock_connect=wait_s, sock_read=wait_s),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> Fetched:
        """Fetch an image, over redirects, each of which asks its own host's robots.txt. Whatever goes wrong with this
        URL is in the result: nothing but the end of the program is raised."""
        try:
            first = parsed_url(url)
            host = self._hosts.setdefault(str(first.origin()), _HostLimit(self._options.per_host))
            async with host.turns:
                return await self._follow(first, host)
        except asyncio.TimeoutError as error:
            return Fetched(status="timeout", message=_short(error) or f"no answer in {self._options.deadline_s:g} s")
        except aiohttp.InvalidURL as error:
            return Fetched(status="url_bad", message=_short(error))
        except (aiohttp.ClientError, OSError) as error:
            return Fetched(status="connection_failed", message=_short(error))
        except ValueError as error:  # of yarl, and of the codec for host names
            return Fetched(status="url_bad", message=_short(error))
        except Exception as error:  # noqa: BLE001  # one URL never ends a download
            return Fetched(status="unexpected", message=_short(f"{url}: {type(error).__name__}: {error}"))

    async def _follow(self, url: URL, host: _HostLimit) -> Fetched:
        """Return what a URL or its redirects give; the host's limit holds for the first of them."""
        for hop in range(_MAX_REDIRECTS + 1):
            refusal = await self._refusal(url)
            if refusal is not None:
                return refusal
            if hop == 0:
                await host.pause(max(self._options.interval_s, self._robots.delay_s(str(url.origin()))))
            answer = await self._ask(url)
            if isinstance(answer, Fetched):
                return answer
            url = answer
        return Fetched(status="too_many_redirects", message=str(url))

    async def _refusal(self, url: URL) -> Fetched | None:
        if not self._options.robots:
            return None
        origin = str(url.origin())
        status = await self._robots.refusal(origin, str(url))
        if status:
            return Fetched(status=status, message=f"{origin}/robots.txt")
        delay_s = self._robots.delay_s(origin)
        too_long = delay_s > self._options.max_wait_s
        return Fetched(status="robots_denied", message=f"Crawl-delay {delay_s:g} s") if too_long else None

    async def _ask(self, url: URL) -> Fetched | URL:
        for tries_left in reversed(range(self._options.retries + 1)):
            try:
                async with self._running, self._session.get(url, allow_redirects=False) as response:
                    wait_s = retry_after_s(response.headers.get("Retry-After", ""))
                    too_long = wait_s > self._options.max_wait_s
                    if response.status not in BUSY or not tries_left or too_long:
                        return await self._answer(url, response)
            except _MAY_PASS:
                if not tries_left:
                    raise
                wait_s = 0.0
            backoff_s = self._options.backoff_s * 2 ** (self._options.retries - tries_left)
            await asyncio.sleep(min(max(wait_s, backoff_s), self._options.max_wait_s))
        raise AssertionError("the last try returns or raises")

    async def _answer(self, url: URL, response: aiohttp.ClientResponse) -> Fetched | URL:
        if 300 <= response.status < 400 and (location := response.headers.get("Location")):
            return parsed_url(str(url.join(URL(location))))
        if response.status != 200:
            return Fetched(status=f"http_{response.status}", message=response.reason or "")
        directive = opted_out(response.headers.items(), self._options.agent)
        if directive:
            return Fetched(status="opted_out", message=directive)
        image = await _read(response, self._options.max_bytes + 1)
        if len(image) > self._options.max_bytes:
            return Fetched(status="too_large", message=f"more than {self._options.max_bytes} bytes")
        return await in_thread(partial(_checked, image, str(url)))

    async def _robots_txt(self, url: str) -> tuple[int, bytes]:
        try:
            async with self._running, self._session.get(url, max_redirects=_MAX_REDIRECTS + 1) as response:
                return response.status, await _read(response, MAX_ROBOTS_BYTES)
        except aiohttp.TooManyRedirects:
            return 404, b""  # RFC 9309, 2.3.1.2: after five redirects it may be taken as not there
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError):
            return 0, b""


_MAY_PASS: Final = (
    aiohttp.ClientConnectionError,  # a connection that fails, breaks, or waits too long for a byte
    aiohttp.ClientPayloadError,  # a body that breaks off
)
"""What the next try may not meet. A whole answer that was too slow would be so again: the next run tries that."""


class _HostLimit:
    """How many requests one host gets at once, and how soon after each other."""

    def __init__(self, at_once: int) -> None:
        self.turns = asyncio.Semaphore(at_once)
        self._next_start_s = 0.0

    async def pause(self, delay_s: float) -> None:
        """Wait until `delay_s` after the start of the request before."""
        start_s = max(time.monotonic(), self._next_start_s)
        self._next_start_s = start_s + delay_s
        await asyncio.sleep(start_s - time.monotonic())


def _checked(image: bytes, where: str) -> Fetched:
    """Return an image with its format and size, decoded once, or what is wrong with it."""
    try:
        image_format = image_format_of(image, where)
        width, height = image_size(image, where)
    except DataError as error:
        return Fetched(status=error.reason, message=error.got)
    except Exception as error:  # noqa: BLE001  # decoders meet bytes that nobody has thought of
        return Fetched(status="image_broken", message=_short(f"{where}: {type(error).__name__}: {error}"))
    return Fetched(status=SUCCESS, image=image, image_format=image_format, width=width, height=height)


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body, up to `most` bytes and a few more."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) >= most:
            break
    return bytes(body)


def parsed_url(text: str) -> URL:
    """Return an http or https URL, percent-encoded, without the white space around it. ValueError: it is none."""
    url = URL(text.strip())
    if url.scheme not in ("http", "https") or not _is_host(url.raw_host or ""):
        raise ValueError("not an http or https URL with a host")
    return url


def _is_host(host: str) -> bool:
    """Tell whether there can be such a host; for any other, each run would ask in vain."""
    try:
        ip_address(host)
    except ValueError:
        return _HOST_NAME.fullmatch(host) is not None
    return True


def retry_after_s(value: str) -> float:
    """Return the seconds that a Retry-After header asks for, a number or a date; 0 for anything else."""
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp() - time.time())


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200]
