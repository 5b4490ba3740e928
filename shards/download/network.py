"""Connections that a download can leave at any moment: after a deadline, or when it is stopped."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from shards.download.options import DownloadOptions

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
    """Looks up host names in daemon threads."""

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


def open_session(options: DownloadOptions) -> aiohttp.ClientSession:
    """Return a session with the limits of time of the options; how many requests there are at once is not its matter.

    `timeout_s` limits each wait, `deadline_s` a whole answer, so a host that sends a byte a second is left, too.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, resolver=_Resolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": options.user_agent},
        timeout=aiohttp.ClientTimeout(
            total=options.deadline_s, sock_connect=options.timeout_s, sock_read=options.timeout_s
        ),
    )
