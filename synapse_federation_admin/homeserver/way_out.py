# SPDX-License-Identifier: Apache-2.0
"""What Synapse's settings and its cache say of the way to other servers."""

from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar
from urllib.request import (  # type: ignore[attr-defined]  # not documented, but old
    proxy_bypass_environment,
)

from synapse.http.federation.well_known_resolver import WELL_KNOWN_GRACE_PERIOD_FACTOR

if TYPE_CHECKING:
    from synapse.server import HomeServer

T = TypeVar("T")

_is_unobserved: ContextVar[bool] = ContextVar("_is_unobserved", default=False)


def goes_through_proxy(hs: "HomeServer", host: str) -> bool:
    """Tell whether Synapse's proxy is to connect to a host."""
    config = hs.config.server.proxy_config
    return bool(config and config.https_proxy) and not proxy_bypass_environment(
        host, proxies=config.get_proxies_dictionary()
    )


def cached_well_known(
    hs: "HomeServer", host: str
) -> tuple[str | None, int, bool] | None:
    """Return what this process's federation client has cached of a well-known file.

    Returns:
        The delegated name, None for there being none; when that ends, in ms since the
        epoch; and whether it is used unasked. None: nothing is cached.
    """
    agent = hs.get_federation_http_client().agent
    resolver = getattr(getattr(agent, "_agent", None), "_well_known_resolver", None)
    if resolver is None:
        return None
    try:
        found, expires_s, ttl_s = resolver._well_known_cache.get_with_expiry(
            host.lower().encode()
        )
    except KeyError:
        return None
    left_s = expires_s - hs.get_clock().time()
    if left_s <= 0:
        return None
    # In the last part of the time it asks anew, and keeps to it if that fails.
    is_used = left_s > WELL_KNOWN_GRACE_PERIOD_FACTOR * ttl_s
    name = found.decode("ascii") if found else None
    return name, int(expires_s * 1000), is_used


async def unobserved(request: Awaitable[T]) -> T:
    """Await a request that is no real traffic: nobody is told that it was answered."""
    _is_unobserved.set(True)
    try:
        return await request
    finally:
        _is_unobserved.set(False)


def is_unobserved() -> bool:
    """Tell whether that is so of the request which is under way here."""
    return _is_unobserved.get()
