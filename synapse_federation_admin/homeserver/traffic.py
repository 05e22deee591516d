# SPDX-License-Identifier: Apache-2.0
"""What comes of Synapse's own federation requests, taken from where it says so.

Synapse keeps of a failure that there was one, and when: why it failed, it only logs.
So that is taken from its loggers as it is handed to them. A filter would not do: a
level that is off is not filtered but dropped before, and a level that is set here would
be gone when Synapse reads its logging configuration again, on SIGHUP. The loggers are
given a class of their own, which tells us and then goes on as ever: level, filters and
handlers remain the operator's, and not one line is more or less.
"""

import logging
import math
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from OpenSSL import SSL
from synapse.logging.context import current_context
from twisted.internet import error as net
from twisted.internet.defer import TimeoutError as DeferredTimeoutError

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.certificates import verified
from synapse_federation_admin.homeserver.errors import (
    BAD_HOST,
    NO_RESULTS,
    Obstacle,
    ObstacleError,
    are_resources_out,
    innermost,
    is_out_of_resources,
)
from synapse_federation_admin.homeserver.process import outbound_instances
from synapse_federation_admin.homeserver.relied_on import (
    ANSWERED,
    BLOCKED,
    FAILED,
    LOG_TEXTS,
    MARKED_UP,
    RECOVERED,
)
from synapse_federation_admin.homeserver.server_name import is_server_name
from synapse_federation_admin.homeserver.way_out import (
    cached_well_known,
    goes_through_proxy,
    is_unobserved,
    proxy_host,
)

if TYPE_CHECKING:
    from synapse.server import HomeServer

logger = logging.getLogger(__name__)

# For how long a host name that has led to a blocked address is the reason if a request
# fails.
_BLOCKED_FOR_S = 60


class TrafficObserver(Protocol):
    """Is told what comes of this process's federation requests.

    On the reactor, in the midst of the request: it must be quick.
    """

    def failed(self, destination: str, error: BaseException) -> None:
        """A request failed so that the destination is to be backed off from.

        Args:
            destination: The server name.
            error: Why. Not to be kept: it holds on to the whole request.
        """

    def recovered(self, destination: str) -> None:
        """A destination that was failing has answered, or has asked us something."""

    def answered(self, destination: str) -> None:
        """A request was answered with 2xx."""


# By this homeserver's name: in one process there may be several, each with a module.
_observers: dict[str, TrafficObserver] = {}
_homeservers: dict[str, "HomeServer"] = {}

# Host names that have led to blocked addresses, by when; the last of them last.
_blocked: dict[str, float] = {}

# The port in a server name.
_PORT = re.compile(":[0-9]+$")

_Told = tuple[object, ...]

T = TypeVar("T")


def observe(hs: "HomeServer", observer: TrafficObserver) -> None:
    """Have an observer told of this process's federation requests, until it ends."""
    _observers[hs.hostname] = observer
    _homeservers[hs.hostname] = hs
    for kept in (_observers, _homeservers):
        hs.register_sync_shutdown_handler(
            phase="during",
            eventType="shutdown",
            shutdown_func=partial(kept.pop, hs.hostname, None),
        )
    for module, _ in LOG_TEXTS.values():
        _observe_logger(logging.getLogger(module))


def led_to_blocked_addresses(host: str) -> bool:
    """Tell whether a host name has just led to addresses that Synapse's settings block.

    Synapse takes such a name for one that leads nowhere.
    """
    return time.monotonic() - _blocked.get(host, -math.inf) < _BLOCKED_FOR_S


def _explained(
    hs: "HomeServer", destination: str, error: BaseException
) -> BaseException:
    """Return what has stopped a request of Synapse's, where that tells less of it."""
    cause, host = innermost(error), _PORT.sub("", destination)
    if is_out_of_resources(cause):
        return cause
    if cached := cached_well_known(hs, destination):
        delegated_to = cached[0]
        if delegated_to is not None and not is_server_name(delegated_to):
            return ObstacleError(Obstacle.BAD_DELEGATION, delegated_to)
    if isinstance(cause, net.DNSLookupError):
        found = NO_RESULTS.search(str(cause))
        host = found[1].rstrip(".") if found else ""
        if led_to_blocked_addresses(host):
            return ObstacleError(Obstacle.BLOCKED, host)
        if host == proxy_host(hs):
            return ObstacleError(Obstacle.OWN_PROXY, host)
        if are_resources_out():
            return ObstacleError(Obstacle.OUT_OF_RESOURCES, host)
    elif isinstance(cause, DeferredTimeoutError):
        # A connection that is there, or being made, has errors of its own.
        return net.TimeoutError("There was none in time")
    elif isinstance(cause, ValueError) and str(cause).startswith(BAD_HOST):
        led_to = str(cause)[len(BAD_HOST) :]
        if not led_to:
            # SRV records of no service lead to the root.
            return ObstacleError(Obstacle.NO_SERVICE, host)
        if led_to != host:
            return ObstacleError(Obstacle.NO_HOST_NAME, led_to)
    elif isinstance(cause, net.ConnectError) and goes_through_proxy(hs, host):
        # The proxy is all that it connects to.
        return ObstacleError(Obstacle.OWN_PROXY, proxy_host(hs) or "")
    return error


def _take_failed(args: _Told) -> None:
    destination, _, error, _ = args
    observer, hs = _of_this_request(_observers), _of_this_request(_homeservers)
    if observer is None or hs is None or not isinstance(error, BaseException):
        return
    # A redirected request is within another, and each of them says so.
    if getattr(error, "_federation_admin_told", False):
        return
    with suppress(AttributeError):
        error._federation_admin_told = True  # type: ignore[attr-defined]  # a mark of ours
    with suppress(AttributeError):
        # Without the names of Synapse's that this needs, it is what Synapse says.
        error = _explained(hs, str(destination), error)
    observer.failed(str(destination), error)


def _take_recovered(args: _Told) -> None:
    if observer := _of_this_request(_observers):
        observer.recovered(str(args[0]))


def _take_answered(args: _Told) -> None:
    _, destination, code, _ = args
    observer = _of_this_request(_observers)
    if is_unobserved():
        return
    if observer is not None and isinstance(code, int) and 200 <= code < 300:
        observer.answered(str(destination))


def _take_blocked(args: _Told) -> None:
    host = str(args[1])
    _blocked.pop(host, None)
    _blocked[host] = time.monotonic()
    if len(_blocked) > limits.BLOCKED_HOSTS:
        del _blocked[next(iter(_blocked))]


_TAKEN_BY: dict[str, Callable[[_Told], None]] = {
    FAILED: _take_failed,
    RECOVERED: _take_recovered,
    MARKED_UP: _take_recovered,
    ANSWERED: _take_answered,
    BLOCKED: _take_blocked,
}


def _of_this_request(kept: dict[str, T]) -> T | None:
    """Return what is kept of the homeserver whose request this is."""
    context = current_context()
    if not context and len(kept) == 1:
        # Outside of any request: it is only known that there is no other.
        return next(iter(kept.values()))
    return kept.get(context.server_name)


class _Observed(logging.Logger):
    """A logger that tells us first."""

    def debug(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Log: see `logging.Logger`."""
        _take(msg, args)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        super().debug(msg, *args, **kwargs)

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Log: see `logging.Logger`."""
        _take(msg, args)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        super().info(msg, *args, **kwargs)


def _take(msg: object, args: _Told) -> None:
    taken_by = _TAKEN_BY.get(msg) if isinstance(msg, str) else None
    if taken_by is None:
        return
    try:
        taken_by(args)
    except Exception:
        # Whatever is wrong here, the request goes on.
        logger.exception("Could not take note of '%s'", msg)


def _observe_logger(observed: logging.Logger) -> None:
    if not isinstance(observed, _Observed):
        # It may be of a class of somebody else's.
        bases = (_Observed, type(observed))
        observed.__class__ = type(_Observed.__name__, bases, {})


def name_untrusted_certificates(hs: "HomeServer") -> None:
    """Have Synapse's client say why it does not trust a certificate.

    Else all that is left of an expired one is "certificate verify failed". What OpenSSL
    decides stands. That is for before the client's first connection: after it, OpenSSL
    lets nothing be changed.
    """
    if outbound_instances(hs) is not None:
        # Others make the connections.
        return
    try:
        agent = hs.get_federation_http_client().agent
        direct = agent._agent  # type: ignore[attr-defined]  # a BlocklistingAgentWrapper's
        factory = direct._agent._endpointFactory
        context: SSL.Context = factory._tls_client_options_factory._verify_ssl_context
        context.set_verify(context.get_verify_mode(), verified)
    except (AttributeError, ValueError):
        logger.warning(
            "Cannot tell why certificates are not trusted: all such failures are "
            "recorded as tls_failed"
        )
