# SPDX-License-Identifier: Apache-2.0
"""The stage `connections`: each address by itself, with TLS and one request."""

from functools import partial
from itertools import zip_longest
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.web.client import URI, Agent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.answers import (
    VERSION_PATH,
    Answer,
    ask,
    date_of,
    read_version,
)
from synapse_federation_admin.diagnosis.findings import (
    Connection,
    ConnectionsFindings,
    StageOutcome,
    VersionFindings,
)
from synapse_federation_admin.diagnosis.resolution import AddressesFindings, Target
from synapse_federation_admin.diagnosis.stages import Stage, StageName
from synapse_federation_admin.diagnosis.tls import (
    Handshake,
    by_their_clock,
    ending_soon,
)
from synapse_federation_admin.diagnosis.way import TimeIsOver, Way, side_by_side
from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import Failure, FailureKind, Link, Reason
from synapse_federation_admin.failures.responses import reason_of_bytes
from synapse_federation_admin.homeserver.attempt import Attempt
from synapse_federation_admin.homeserver.server_name import ServerName

# The share of the time of a diagnosis: to connect, and for all of it.
_SHARE_CONNECT = 0.25
_SHARE = 0.4


# With these there is no connection: the last tell the least.
_NOT_CONNECTED = (
    FailureKind.CONNECTION_REFUSED,
    FailureKind.CONNECTION_TIMEOUT,
    FailureKind.UNREACHABLE,
)


# This host has no route to any address of the family.
_NO_ROUTE = (Reason.NO_IPV4, Reason.NO_IPV6)


async def check_connections(
    way: Way, name: ServerName, addresses: AddressesFindings
) -> Stage:
    """Connect to each address, and ask for the version there.

    Args:
        way: The way out.
        name: The name that was resolved: of that are `Host`, SNI and certificate.
        addresses: To which hosts that has led.
    """

    async def connect(planned: Connection) -> Connection:
        if planned.outcome is StageOutcome.SKIPPED:
            return planned
        links = addresses.links(planned.host, planned.port)
        return without_route(await _connect(way, name, planned, links))

    connections = await side_by_side(
        *(
            partial(connect, planned)
            for planned in plan(addresses.targets, name)[: limits.DIAGNOSED_ADDRESSES]
        )
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
            outcome=StageOutcome.SKIPPED if target.error else StageOutcome.FAILED,
            error=target.error,
        )
        by_target.append(
            [connection]
            if target.via_proxy
            else [connection._replace(address=a.address) for a in target.addresses]
        )
    return [
        connection
        for rank in zip_longest(*by_target)
        for connection in rank
        if connection is not None
    ]


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _OneEndpoint:
    """Connects to one place, whatever the URL says, and keeps how the answer begins.

    Attributes:
        heard: The first bytes, also of what is no answer over HTTP; none: nothing came.
    """

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint
        self.heard = b""

    def endpointForURI(self, _uri: URI) -> IStreamClientEndpoint:
        return self

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        """Connect: see `IStreamClientEndpoint`."""
        return self._endpoint.connect(factory).addCallback(self._listen)

    def _listen(self, protocol: Any) -> IProtocol:
        receive = protocol.dataReceived

        def received(data: bytes) -> None:
            self.heard = self.heard or data[: limits.WORD]
            receive(data)

        protocol.dataReceived = received
        listening: IProtocol = protocol
        return listening


async def _connect(
    way: Way, name: ServerName, planned: Connection, links: tuple[Link, ...]
) -> Connection:
    """Make one connection; return it with all that came of it."""
    handshake, attempt = Handshake(way, name), way.outbound.attempt(way.left_ms(_SHARE))
    endpoint = _OneEndpoint(
        way.outbound.endpoint(
            planned.address,
            planned.host,
            planned.port,
            name=name.host,
            observer=handshake,
            timeout_s=way.left_ms(_SHARE_CONNECT) / 1000,
            attempt=attempt,
        )
    )

    def placed(failure: Failure) -> Failure:
        return failure.but(
            host=failure.facts.host or name.host,
            address=bounded(planned.address or planned.host),
            port=planned.port,
            via=links,
        )

    begun_ms = way.now_ms
    answer = await _ask(way, planned.host_header, endpoint, attempt)
    now_ms = way.homeserver.now_ms()
    tls, connected_ms = handshake.findings, handshake.begun_ms
    connection = planned._replace(
        connect_ms=None if connected_ms is None else round(connected_ms - begun_ms),
        tls=tls,
    )
    if tls is None or (tls.is_verified and tls.problems):
        problem = tls.problems[0] if tls else None
        if isinstance(answer, Failure):
            problem = problem or answer
        elif tls and problem:
            date_ts = date_of(answer.headers)
            problem = by_their_clock(problem, tls.certificate, date_ts, now_ms)
        return connection._replace(error=problem and placed(problem))
    assert handshake.completed_ms is not None
    duration_ms = way.since(handshake.completed_ms)
    version = (
        VersionFindings(duration_ms, error=answer)
        if isinstance(answer, Failure)
        else read_version(answer, duration_ms, now_ms)
    )
    version = version._replace(error=version.error and placed(version.error))
    return connection._replace(outcome=StageOutcome.OK, version=version)


async def _ask(
    way: Way, host: str, endpoint: _OneEndpoint, attempt: Attempt
) -> Answer | Failure:
    """Ask for the version; return the answer, or why there is none."""
    agent: IAgent = Agent.usingEndpointFactory(way.homeserver.reactor, endpoint)
    # As Synapse writes it, also with the port that HTTPS has anyway.
    headers = Headers({"Host": [host], "User-Agent": [way.outbound.user_agent]})
    asking = partial(
        ask, agent, f"https://{host}{VERSION_PATH}", headers, limits.VERSION_BYTES
    )
    try:
        return await way.within(way.left_ms(_SHARE), asking)
    except (TimeIsOver, CancelledError):
        failure = failure_of(attempt.explained(CancelledError()))
    except Exception as e:
        failure = failure_of(attempt.explained(e))
    if failure.reason is Reason.CLOSED and endpoint.heard:
        return failure.but(reason_of_bytes(endpoint.heard))
    return failure


def without_route(connection: Connection) -> Connection:
    """Excuse an address of a family to which this host has no route.

    Synapse uses the others.
    """
    error = connection.error
    if connection.address and error and error.reason in _NO_ROUTE:
        return connection._replace(outcome=StageOutcome.SKIPPED)
    return connection


def _how_far(error: Failure | None) -> int:
    """Tell how far a connection came: the less, the farther."""
    kind = error.kind if error else None
    return _NOT_CONNECTED.index(kind) + 1 if kind in _NOT_CONNECTED else 0


def conclude(findings: ConnectionsFindings) -> Stage:
    """Return the stage: whether connections work, and whether all of them do."""
    name = StageName.CONNECTIONS
    tried = [c for c in findings.connections if c.outcome is not StageOutcome.SKIPPED]
    if not tried:
        first = findings.connections[0].error if findings.connections else None
        return Stage.failed(name, first or Failure(FailureKind.UNREACHABLE), findings)
    # Synapse takes the next address of a host where it is not connected, and then tells
    # what it has met of the first host.
    hosts = list(dict.fromkeys(c.host for c in tried))
    tried.sort(key=lambda c: (hosts.index(c.host), _how_far(c.error)))
    stage = Stage.of_all(name, [c.error for c in tried], findings)
    if stage.outcome is StageOutcome.OK:
        soon = [
            failure
            for c in tried
            if c.tls and c.tls.is_verified
            if (failure := ending_soon(c.tls.certificate))
        ]
        if soon:
            first = min(soon, key=lambda failure: failure.facts.left_ms)
            return Stage.failed(name, first, findings, StageOutcome.WARNING)
    return stage
