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
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from synapse.logging.context import current_context

from synapse_federation_admin.homeserver.process import outbound_instances
from synapse_federation_admin.homeserver.relay import Relay
from synapse_federation_admin.homeserver.relied_on import (
    ANSWERED,
    FAILED,
    LOG_TEXTS,
    MARKED_UP,
    RECOVERED,
)

if TYPE_CHECKING:
    from synapse.server import HomeServer

logger = logging.getLogger(__name__)


class TrafficObserver(Protocol):
    """Is told what comes of this process's federation requests.

    On the reactor, in the midst of the request: it must be quick.
    """

    def failed(self, destination: str, error: BaseException, size_bytes: int) -> None:
        """A request failed so that the destination is to be backed off from.

        Args:
            destination: The server name.
            error: Why. Not to be kept: it holds on to the whole request.
            size_bytes: How large the request was; 0 if that is not known.
        """

    def recovered(self, destination: str, *, has_answered: bool) -> None:
        """A destination that was failing has answered, or has asked us something."""

    def taken(self, destination: str) -> None:
        """A contact was taken, which is as good as a transaction."""

    def answered(self, destination: str, size_bytes: int) -> None:
        """A request of so many bytes was answered with 2xx; 0: it is not known."""


# By this homeserver's name: in one process there may be several, each with a module.
# With it, of one that does not go out itself, what it hears of who does.
_observers: dict[str, tuple[TrafficObserver, Relay | None]] = {}


class Watched:
    """A request that is under way: what it was stopped by, of which Synapse says less.

    Attributes:
        name: The server name.
        size_bytes: How large its body is.
        cause: What has stopped it; None if nothing has, or Synapse tells.
    """

    def __init__(self, name: str, size_bytes: int) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.cause: BaseException | None = None


# The last request in this context: Synapse says what came of it in the same one, and
# begins others that run at once in contexts of their own.
_watched: ContextVar[Watched | None] = ContextVar("_watched", default=None)

# Whether the request which is under way here is no real traffic.
_is_unobserved: ContextVar[bool] = ContextVar("_is_unobserved", default=False)

_Told = tuple[object, ...]

T = TypeVar("T")


def observe(hs: "HomeServer", observer: TrafficObserver) -> None:
    """Have an observer told of this process's federation requests, until it ends."""
    relay = Relay(hs) if outbound_instances(hs) is not None else None
    _observers[hs.hostname] = observer, relay
    hs.register_sync_shutdown_handler(
        phase="during",
        eventType="shutdown",
        shutdown_func=partial(_observers.pop, hs.hostname, None),
    )
    for module, _ in LOG_TEXTS.values():
        _observe_logger(logging.getLogger(module))


async def unobserved(request: Awaitable[T]) -> T:
    """Await a request that is no real traffic: nobody is told that it was answered."""
    _is_unobserved.set(True)
    try:
        return await request
    finally:
        _is_unobserved.set(False)


def tell_answered(hs: "HomeServer", destination: str) -> None:
    """Tell that a contact was taken."""
    if found := _observers.get(hs.hostname):
        try:
            found[0].taken(destination)
        except Exception:
            # Whatever is wrong here, the contact was taken.
            logger.exception("Could not take note of a contact with '%s'", destination)


def watch(name: str, size_bytes: int) -> Watched:
    """Take note that a request begins, to a server and so large."""
    watched = Watched(name, size_bytes)
    _watched.set(watched)
    return watched


def _watched_of(destination: str) -> Watched:
    """Return the request to a destination of which Synapse tells."""
    watched = _watched.get()
    _watched.set(None)
    if watched is None or watched.name != destination:
        return Watched(destination, 0)
    return watched


def _take_failed(args: _Told) -> None:
    destination, _, error, _ = args
    found = _of_this_request()
    if found is None or not isinstance(error, BaseException):
        return
    # A redirected request is within another, and each of them says so.
    if getattr(error, "_federation_admin_told", False):
        return
    with suppress(AttributeError):
        error._federation_admin_told = True  # type: ignore[attr-defined]  # a mark of ours
    watched = _watched_of(str(destination))
    cause = watched.cause or error
    observer, relay = found
    met = relay.met(cause) if relay else cause
    observer.failed(str(destination), met, watched.size_bytes)


def _take_recovered(args: _Told, *, has_answered: bool) -> None:
    if found := _of_this_request():
        found[0].recovered(str(args[0]), has_answered=has_answered)


def _take_answered(args: _Told) -> None:
    _, destination, code, _ = args
    found = None if _is_unobserved.get() else _of_this_request()
    if found is not None and isinstance(code, int) and 200 <= code < 300:
        found[0].answered(str(destination), _watched_of(str(destination)).size_bytes)


_TAKEN_BY: dict[str, Callable[[_Told], None]] = {
    FAILED: _take_failed,
    RECOVERED: partial(_take_recovered, has_answered=True),
    MARKED_UP: partial(_take_recovered, has_answered=False),
    ANSWERED: _take_answered,
}


def _of_this_request() -> tuple[TrafficObserver, Relay | None] | None:
    """Return who is told of the homeserver whose request this is."""
    context = current_context()
    if not context and len(_observers) == 1:
        # Outside of any request: it is only known that there is no other.
        return next(iter(_observers.values()))
    return _observers.get(context.server_name)


class _Observed(logging.Logger):
    """A logger that tells us first."""

    def debug(
        self, msg: object, *args: object, stacklevel: int = 1, **kwargs: Any
    ) -> None:
        """Log: see `logging.Logger`."""
        if msg.__class__ is str and msg in _TAKEN_BY:
            _take(msg, args)
        super().debug(msg, *args, stacklevel=stacklevel + 1, **kwargs)

    def info(
        self, msg: object, *args: object, stacklevel: int = 1, **kwargs: Any
    ) -> None:
        """Log: see `logging.Logger`."""
        if msg.__class__ is str and msg in _TAKEN_BY:
            _take(msg, args)
        super().info(msg, *args, stacklevel=stacklevel + 1, **kwargs)


def _take(msg: str, args: _Told) -> None:
    try:
        _TAKEN_BY[msg](args)
    except Exception:
        # Whatever is wrong here, the request goes on.
        logger.exception("Could not take note of '%s'", msg)


def _observe_logger(observed: logging.Logger) -> None:
    if not isinstance(observed, _Observed):
        # It may be of a class of somebody else's.
        bases = (_Observed, type(observed))
        observed.__class__ = type(_Observed.__name__, bases, {})
