# SPDX-License-Identifier: Apache-2.0
"""Look-ups in the DNS: of host names in threads of our own, and of SRV records.

A name server that does not answer must not fill the process. Nobody waits for longer
than they have time; and what nobody waits for any more is under way until it has really
ended: a thread that asks the operating system cannot be called off.
"""

import socket
from collections.abc import Callable, Sequence
from socket import getaddrinfo
from typing import Any, NoReturn, TypeVar

from synapse.module_api import make_deferred_yieldable
from synapse.util.gai_resolver import GAIResolver
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredSemaphore,
    TimeoutError as DeferredTimeoutError,
    fail,
    maybeDeferred,
)
from twisted.internet.threads import deferToThreadPool
from twisted.names import dns, error as dns_error
from twisted.names.client import Resolver
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.errors import (
    Obstacle,
    ObstacleError,
    are_resources_out,
    is_out_of_resources,
)

T = TypeVar("T")

# After how many seconds Twisted's client asks a name server again.
_ASKS_AGAIN_S = (1, 3, 11, 45)

# What the operating system says of a name that does not exist, or has no address.
_NO_ADDRESS = {
    socket.EAI_NONAME: Obstacle.NO_SUCH_HOST,
    socket.EAI_NODATA: Obstacle.NO_ADDRESS,
}

# What `socket.getaddrinfo` returns, and what Twisted's client does.
AddressInfo = Sequence[tuple[int, int, int, str, tuple[Any, ...]]]
Answers = tuple[Sequence[dns.RRHeader], Sequence[dns.RRHeader], Sequence[dns.RRHeader]]


class SynapseLookUps:
    """Looks host names up as Synapse does, and tells why one has no address.

    Synapse's own resolver takes every error for there being none.

    Attributes:
        is_real: Whether the reactor is no test harness's.
        most: How many addresses of a host are used; None: all.
    """

    most: int | None = None

    def __init__(self, reactor: Any) -> None:
        """Look nothing up yet."""
        self._reactor = reactor
        self.is_real = isinstance(reactor.nameResolver, GAIResolver)
        if self.is_real:
            self._get_threads = reactor.nameResolver._getThreadPool

    def addresses(
        self,
        host: str,
        port: int,
        within_s: float,  # noqa: ARG002  # Synapse has no limit
        family: int = socket.AF_UNSPEC,
    ) -> "Deferred[AddressInfo]":
        """Return the addresses of a host: see `LookUps`."""

        def failed(failure: Failure) -> NoReturn:
            raise _obstacle(failure, host, is_begun=True)

        found: Deferred[AddressInfo] = deferToThreadPool(
            self._reactor,
            self._get_threads(),
            lambda: getaddrinfo(host, port, family, socket.SOCK_STREAM),
        )
        return found.addErrback(failed)


class LookUps(SynapseLookUps):
    """Looks names up in threads of its own, some at a time."""

    most = limits.ADDRESSES_OF_A_HOST

    def __init__(self, reactor: Any) -> None:
        """Look nothing up yet.

        Args:
            reactor: Of the homeserver; one of a test harness has threads of its own.
        """
        self._reactor = reactor
        self.is_real = isinstance(reactor.nameResolver, GAIResolver)
        self._turns = DeferredSemaphore(limits.DNS_LOOKUPS)
        self._services: Resolver | None = None
        if self.is_real:
            # Synapse's own twenty threads would have none left for its federation.
            self._threads = ThreadPool(
                0, limits.DNS_LOOKUPS, "federation_admin_resolver"
            )
            self._threads.start()
            reactor.addSystemEventTrigger("during", "shutdown", self._threads.stop)
        else:
            self._threads = reactor.getThreadPool()

    @property
    def free(self) -> int:
        """How many more host names can be looked up at once."""
        return self._turns.tokens

    def in_thread(self, func: Callable[[], T]) -> "Deferred[T]":
        """Call a function in one of the threads: it would hold everybody up."""
        return deferToThreadPool(self._reactor, self._threads, func)

    def addresses(
        self,
        host: str,
        port: int,
        within_s: float,
        family: int = socket.AF_UNSPEC,
    ) -> "Deferred[AddressInfo]":
        """Return the addresses of a host, as the operating system finds them.

        Args:
            host: Its name, or an address: then there is nothing to wait for.
            port: The port there.
            within_s: How long to wait.
            family: As `socket.getaddrinfo` has it.

        Raises:
            ObstacleError: There are none, or it is not known.
        """

        def look_up_now() -> AddressInfo:
            return getaddrinfo(host, port, family, socket.SOCK_STREAM)

        if is_address(host):
            return maybeDeferred(look_up_now)
        is_begun = False

        def begin(_: object) -> "Deferred[AddressInfo]":
            nonlocal is_begun
            is_begun = True
            try:
                return deferToThreadPool(self._reactor, self._threads, look_up)
            except Exception:
                # A thread that cannot be started cannot be waited for at the end.
                started = [t for t in self._threads.threads if t.ident is not None]
                self._threads.threads[:] = started
                self._turns.release()
                raise

        def look_up() -> AddressInfo:
            try:
                return look_up_now()
            finally:
                self._reactor.callFromThread(self._turns.release)

        def failed(failure: Failure) -> NoReturn:
            raise _obstacle(failure, host, is_begun=is_begun)

        found: Deferred[AddressInfo] = self._turns.acquire().addCallback(begin)
        if within_s < float("inf"):
            found.addTimeout(max(within_s, 0), self._reactor)
        found.addErrback(failed)
        return found

    def services(
        self, name: str, within_s: float, kind: int = dns.SRV
    ) -> "Deferred[Answers]":
        """Look SRV records up; their sockets are closed when the time is over.

        Args:
            name: The name that may have them.
            within_s: How long to wait.
            kind: The type of records to look up in their place.

        Raises:
            ObstacleError: There was no answer in time, or no socket.
            Exception: What `twisted.names.client` raises.
        """
        if self._services is None:
            # Not the one that Synapse has: when it has no socket, it never again looks
            # up what it was to look up then.
            self._services = Resolver("/etc/resolv.conf", reactor=self._reactor)
        resolver = self._services

        def failed(failure: Failure) -> NoReturn:
            error = failure.value
            assert error is not None
            if isinstance(error, DeferredTimeoutError):
                raise ObstacleError(Obstacle.DNS_NO_ANSWER, name) from error
            if is_out_of_resources(error):
                raise ObstacleError(Obstacle.OUT_OF_RESOURCES, name) from error
            raise error

        try:
            query = dns.Query(name.encode("ascii"), kind, dns.IN)
            # A test harness has no name server: nobody answers.
            answer: Deferred[Answers] = (
                resolver.queryUDP([query], _times(resolver, within_s))
                if self.is_real
                else Deferred()
            )
        except Exception:
            answer = fail()
        answer.addCallback(resolver.filterAnswers)
        answer.addTimeout(max(within_s, 0), self._reactor)
        answer.addErrback(failed)
        return answer

    async def records(
        self, name: str, within_s: float, kind: int
    ) -> Sequence[dns.RRHeader]:
        """Return the records of a name: see `services`; none, if it does not exist."""
        try:
            answers, _, _ = await make_deferred_yieldable(
                self.services(name, within_s, kind)
            )
        except (dns_error.DNSNameError, dns_error.DNSNotImplementedError):
            # Synapse takes both for there being none.
            return ()
        return answers

    async def answers_about(
        self, name: str, within_s: float, kind: int
    ) -> Sequence[dns.RRHeader] | None:
        """Return the records of a name; None if the resolver does not answer well."""
        try:
            return await self.records(name, within_s, kind)
        except (
            ObstacleError,
            dns_error.DomainError,
            dns_error.ResolverError,
            UnicodeError,
            # There is no way to it.
            OSError,
        ):
            return None

    async def alias_of(self, host: str, within_s: float) -> str:
        """Return the last of the names of which a host name is an alias.

        What is not answered is the end of it; "" if it is no alias.

        Args:
            host: The host name.
            within_s: How long to wait for each answer.
        """
        name, seen = host, {host}
        for _ in range(limits.ALIASES if self.is_real else 0):
            answers = await self.answers_about(name, within_s, dns.CNAME)
            aliases: list[Any] = [
                answer.payload
                for answer in answers or ()
                if isinstance(answer.payload, dns.Record_CNAME)
            ]
            alias = aliases[0].name.name.decode("latin-1") if aliases else ""
            if not alias or alias in seen:
                # The end, or a circle.
                break
            seen.add(alias)
            name = alias
        return "" if name == host else name


def is_address(host: str) -> bool:
    """Tell whether a host is given by its IP address: there is nothing to look up."""
    return isIPAddress(host) or isIPv6Address(host)


def _times(resolver: Resolver, within_s: float) -> list[float]:
    """Return how long to wait each time that a name server is asked: so long in all."""
    left_s = within_s / max(len(resolver.servers) + len(resolver.dynServers), 1)
    times: list[float] = []
    for time_s in _ASKS_AGAIN_S:
        times.append(min(time_s, left_s))
        left_s -= time_s
        if left_s <= 0:
            break
    return times


def _obstacle(failure: Failure, host: str, *, is_begun: bool) -> BaseException:
    """Return why a host has no address; that it was called off as it is."""
    error = failure.value
    assert error is not None
    if isinstance(error, CancelledError):
        return error
    return ObstacleError(_why(error, is_begun=is_begun), host, error)


def _why(error: BaseException, *, is_begun: bool) -> Obstacle:
    """Tell why the operating system has found no address of a name.

    Args:
        error: What it has said.
        is_begun: Whether it was asked: else every thread was waiting for another name.
    """
    if is_out_of_resources(error) or not is_begun:
        return Obstacle.OUT_OF_RESOURCES
    if isinstance(error, DeferredTimeoutError):
        return Obstacle.DNS_NO_ANSWER
    if isinstance(error, UnicodeError):
        return Obstacle.NO_HOST_NAME
    if isinstance(error, socket.gaierror) and error.errno in _NO_ADDRESS:
        return _NO_ADDRESS[error.errno]
    if are_resources_out():
        return Obstacle.OUT_OF_RESOURCES
    return Obstacle.DNS_SERVER_FAILURE
