# SPDX-License-Identifier: Apache-2.0
"""The stage `connections`: each address by itself, with TLS and one request."""

import errno
import socket
from collections.abc import Awaitable, Callable, Collection
from contextlib import closing
from itertools import zip_longest

import attr
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.web.client import URI, Agent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from synapse_federation_admin.diagnosis.deadline import (
    Deadline,
    TimeIsOver,
    side_by_side,
)
from synapse_federation_admin.diagnosis.findings import (
    AddressesFindings,
    Connection,
    ConnectionsFindings,
    Stage,
    StageName,
    StageOutcome,
    Target,
    VersionFindings,
)
from synapse_federation_admin.diagnosis.http import Answer, ask
from synapse_federation_admin.diagnosis.server_name import ServerName
from synapse_federation_admin.diagnosis.tls import Handshake
from synapse_federation_admin.diagnosis.version import VERSION_PATH, read_version
from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.failures.classify import failure_of, forget_frames
from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.outbound import Outbound

# How many addresses are connected to: a server may have ten thousand.
_MAX_CONNECTIONS = 12

# The share of the time of a diagnosis: to connect, and for all of it.
_SHARE_CONNECT = 0.25
_SHARE = 0.4

# The size up to which an answer about the version is read.
_MAX_VERSION_BYTES = 64 * 1024

# Addresses of the global Internet, to see whether there is a route to any.
_GLOBAL = {socket.AF_INET: "192.31.196.1", socket.AF_INET6: "2001:4:112::1"}


async def check_connections(
    homeserver: Homeserver,
    outbound: Outbound,
    name: ServerName,
    addresses: AddressesFindings,
    deadline: Deadline,
) -> Stage:
    """Connect to each address, and ask for the version there.

    Args:
        homeserver: Knows the time.
        outbound: Connects.
        name: The name that was resolved: of that are `Host`, SNI and certificate.
        addresses: To which hosts that has led.
        deadline: Until when it has to be over.
    """
    planned = plan(addresses.targets, name)
    missing = _missing_families()

    def connecting(connection: Connection) -> Callable[[], Awaitable[Connection]]:
        async def connect() -> Connection:
            if connection.outcome is StageOutcome.SKIPPED:
                return connection
            attempt = _Attempt(homeserver, outbound, name, connection, deadline)
            return without_route(await attempt.connect(), missing)

        return connect

    connections = await side_by_side(
        *(connecting(connection) for connection in planned[:_MAX_CONNECTIONS])
    )
    known = sum(1 if t.via_proxy else t.addresses_total for t in addresses.targets)
    not_looked_up = addresses.targets_total - len(addresses.targets)
    findings = ConnectionsFindings(
        tuple(connections), max(0, known - len(connections)) + not_looked_up
    )
    return conclude(findings)


def plan(targets: tuple[Target, ...], name: ServerName) -> list[Connection]:
    """Return what is to be connected to: of each host the first, the second, ..."""
    by_target: list[list[Connection]] = []
    for target in targets:
        connection = Connection(
            address=None,
            host=target.host,
            port=target.port,
            host_header=name.netloc,
            sni=None if name.is_literal else name.host,
            outcome=StageOutcome.FAILED,
        )
        if target.via_proxy:
            by_target.append([connection])
            continue
        by_target.append(
            [
                attr.evolve(
                    connection,
                    address=address.address,
                    outcome=StageOutcome.SKIPPED
                    if target.error
                    else StageOutcome.FAILED,
                    error=target.error,
                )
                for address in target.addresses
            ]
        )
    return [
        connection
        for rank in zip_longest(*by_target)
        for connection in rank
        if connection is not None
    ]


@implementer(IAgentEndpointFactory)
class _OneEndpoint:
    """Connects to one place, whatever the URL says."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, _uri: URI) -> IStreamClientEndpoint:
        return self._endpoint


class _Attempt:
    """Makes one connection."""

    def __init__(
        self,
        homeserver: Homeserver,
        outbound: Outbound,
        name: ServerName,
        connection: Connection,
        deadline: Deadline,
    ) -> None:
        self._homeserver = homeserver
        self._outbound = outbound
        self._connection = connection
        self._deadline = deadline
        self._handshake = Handshake(
            name.host,
            deadline,
            now_ms=homeserver.now_ms(),
            is_literal=name.is_literal,
            is_verified=outbound.verifies(name.host),
        )
        timeout_ms = deadline.left_ms(_SHARE_CONNECT)
        endpoint = outbound.endpoint(
            connection.address,
            connection.host,
            connection.port,
            name=name.host,
            observer=self._handshake,
            timeout_s=timeout_ms / 1000,
        )
        reactor = homeserver.reactor
        self._agent: IAgent = Agent.usingEndpointFactory(
            reactor, _OneEndpoint(endpoint)
        )
        self._url = f"https://{connection.host_header}{VERSION_PATH}"

    async def connect(self) -> Connection:
        """Return the connection with all that came of it."""
        begun_ms = self._deadline.now_ms
        answer: Answer | None = None
        error: Failure | None = None
        try:
            answer = await self._deadline.within(
                self._deadline.left_ms(_SHARE), self._ask
            )
        except (TimeIsOver, CancelledError):
            error = self._too_late()
        except Exception as e:
            error = self._why(e)
            forget_frames(e)
        handshake = self._handshake
        tls = handshake.findings
        connection = attr.evolve(
            self._connection,
            connect_ms=None
            if handshake.begun_ms is None
            else round(handshake.begun_ms - begun_ms),
            tls=tls,
        )
        is_accepted = tls is not None and not (tls.is_verified and tls.problems)
        if not is_accepted:
            problem = self._placed(tls.problems[0]) if tls and tls.problems else error
            return attr.evolve(connection, error=problem)
        assert handshake.completed_ms is not None
        duration_ms = self._deadline.since(handshake.completed_ms)
        version = (
            VersionFindings(duration_ms, error=error)
            if answer is None
            else read_version(answer, duration_ms, self._homeserver.now_ms())
        )
        if version.error is not None:
            version = attr.evolve(version, error=self._placed(version.error))
        return attr.evolve(connection, outcome=StageOutcome.OK, version=version)

    async def _ask(self) -> Answer:
        return await ask(
            self._outbound,
            self._agent,
            self._url,
            # As Synapse writes it, also with the port that HTTPS has anyway.
            Headers(
                {
                    "Host": [self._connection.host_header],
                    "User-Agent": [self._outbound.user_agent],
                }
            ),
            max_bytes=_MAX_VERSION_BYTES,
        )

    def _too_late(self) -> Failure:
        """Return the failure of what took too long, by how far it has come."""
        handshake = self._handshake
        if handshake.begun_ms is None:
            is_proxied = self._connection.address is None
            reason = Reason.PROXY if is_proxied else None
            return self._placed(Failure(FailureKind.CONNECTION_TIMEOUT, reason))
        reason = None if handshake.findings else Reason.IN_HANDSHAKE
        return self._placed(Failure(FailureKind.RESPONSE_TIMEOUT, reason))

    def _why(self, error: Exception) -> Failure:
        """Tell why there was no answer."""
        failure = failure_of(error, self._outbound.has_addresses)
        handshake = self._handshake
        if failure.is_ours:
            return failure
        if failure.kind in (
            FailureKind.RESPONSE_TIMEOUT,
            FailureKind.CONNECTION_TIMEOUT,
        ):
            if failure.reason is not Reason.PROXY:
                return self._too_late()
        elif handshake.begun_ms is None and self._connection.address is None:
            if failure.reason is not Reason.PROXY:
                # It is the proxy itself that was not connected to.
                failure = Failure(FailureKind.OTHER, Reason.PROXY, failure.facts)
        elif (
            handshake.findings is None and failure.kind is FailureKind.INVALID_RESPONSE
        ):
            failure = Failure(FailureKind.TLS_FAILED, Reason.CLOSED_IN_HANDSHAKE)
        return self._placed(failure)

    def _placed(self, failure: Failure) -> Failure:
        """Add where it was met."""
        connection = self._connection
        address = bounded(connection.address or connection.host)
        facts = attr.evolve(failure.facts, address=address, port=connection.port)
        return attr.evolve(failure, facts=facts)


def _missing_families() -> frozenset[socket.AddressFamily]:
    """Return those for which this host has no route; nothing is sent."""
    return frozenset(
        family for family, address in _GLOBAL.items() if not _has_route(family, address)
    )


def _has_route(family: socket.AddressFamily, address: str) -> bool:
    try:
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as udp:
            udp.connect((address, 9))
    except OSError as e:
        return e.errno not in (
            *(errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL),
        )
    return True


def without_route(
    connection: Connection, missing: Collection[socket.AddressFamily]
) -> Connection:
    """Excuse an address of a family that this host does not have.

    Synapse uses the others.
    """
    if connection.address is None:
        return connection
    is_ipv6 = ":" in connection.address
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    if (
        family not in missing
        or connection.error is None
        or connection.error.kind is not FailureKind.UNREACHABLE
    ):
        return connection
    reason = Reason.NO_IPV6 if is_ipv6 else Reason.NO_IPV4
    error = attr.evolve(connection.error, reason=reason)
    return attr.evolve(connection, outcome=StageOutcome.SKIPPED, error=error)


def conclude(findings: ConnectionsFindings) -> Stage:
    """Return the stage: whether connections work, and whether all of them do."""
    name = StageName.CONNECTIONS
    tried = [c for c in findings.connections if c.outcome is not StageOutcome.SKIPPED]
    bad = [c for c in tried if c.outcome is StageOutcome.FAILED]
    if not tried:
        first = findings.connections[0].error if findings.connections else None
        return Stage.failed(name, first or Failure(FailureKind.UNREACHABLE), findings)
    if not bad:
        return Stage(name, StageOutcome.OK, findings=findings)
    is_all = len(bad) == len(tried)
    failure = bad[0].error or Failure(FailureKind.OTHER)
    outcome = StageOutcome.FAILED if is_all else StageOutcome.WARNING
    return Stage.failed(name, failure, findings, outcome)
