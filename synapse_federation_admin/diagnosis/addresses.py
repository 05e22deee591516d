# SPDX-License-Identifier: Apache-2.0
"""The stage `addresses`: where requests to a server go.

https://spec.matrix.org/v1.11/server-server-api/#resolving-server-names, and what
Synapse makes of it (`synapse/http/federation/matrix_federation_agent.py`).
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attr
from twisted.internet.defer import CancelledError
from twisted.names import client as dns_client
from twisted.names import dns
from twisted.names.error import DNSNameError, DNSNotImplementedError

from synapse_federation_admin.diagnosis.limits import (
    Deadline,
    TimeIsOver,
    side_by_side,
    word,
)
from synapse_federation_admin.diagnosis.server_name import ServerName
from synapse_federation_admin.failure import bounded, describe
from synapse_federation_admin.homeserver import Outbound, make_deferred_yieldable
from synapse_federation_admin.models import (
    AddressesFindings,
    CachedService,
    Failure,
    FailureKind,
    ResolutionOutcome,
    ResolutionStep,
    ServiceRecord,
    Stage,
    StageName,
    StageOutcome,
    Target,
    TargetAddress,
)

_DEFAULT_PORT = 8448

# The steps, with their numbers where the server delegates and where it does not.
_LITERAL = ("3.1", "1", "an IP address")
_PORT = ("3.2", "2", "a port in the name")
_SERVICE = ("3.3", "4", "SRV records of _matrix-fed._tcp")
_OLD_SERVICE = ("3.4", "5", "SRV records of _matrix._tcp (deprecated)")
_FALLBACK = ("3.5", "6", f"the name itself, port {_DEFAULT_PORT}")
_DELEGATION = ("3", "3", "delegation by /.well-known/matrix/server")

# The share of the time of a diagnosis: for each look-up of SRV records, of which there
# are at most two, and for those of addresses, all of them at once.
_SHARE_SERVICE = 0.15
_SHARE_ADDRESSES = 0.2

# How many hosts are looked up, and how many records and addresses are told.
_MAX_TARGETS = 16
_MAX_SERVICES = 50
_MAX_ADDRESSES = 50

# The longest host name, in the DNS.
_MAX_HOST = 255


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Services:
    """What came of a look-up of SRV records.

    Attributes:
        records: The records, those first that are used first.
        total: How many there are.
        is_refused: Whether the only one says that the service is not there.
        failure: Why they could not be looked up.
        cached: What Synapse has cached of them, if that differs.
    """

    records: tuple[ServiceRecord, ...] = ()
    total: int = 0
    is_refused: bool = False
    failure: Failure | None = None
    cached: CachedService | None = None


class _Steps:
    """Keeps what came of each step."""

    def __init__(self, *, is_delegated: bool) -> None:
        self._is_delegated = is_delegated
        self.used: str | None = None
        self._outcomes: dict[tuple[str, str, str], ResolutionStep] = {}

    def take(
        self,
        step: tuple[str, str, str],
        outcome: ResolutionOutcome,
        message: str | None = None,
    ) -> None:
        number = step[0] if self._is_delegated else step[1]
        self._outcomes[step] = ResolutionStep(number, step[2], outcome, message)
        if outcome is ResolutionOutcome.USED and step is not _DELEGATION:
            self.used = number

    def all(self) -> tuple[ResolutionStep, ...]:
        order = (
            (_DELEGATION, _LITERAL, _PORT, _SERVICE, _OLD_SERVICE, _FALLBACK)
            if self._is_delegated
            else (_LITERAL, _PORT, _DELEGATION, _SERVICE, _OLD_SERVICE, _FALLBACK)
        )
        for step in order:
            if step not in self._outcomes:
                self.take(step, ResolutionOutcome.NOT_REACHED)
        return tuple(self._outcomes[step] for step in order)


async def check_addresses(
    outbound: Outbound, name: ServerName, deadline: Deadline, *, is_delegated: bool
) -> Stage:
    """Find out where requests go.

    Args:
        outbound: Looks host names up.
        name: The name to resolve: the delegated one, if there is one.
        deadline: Until when it has to be over.
        is_delegated: Whether it is that.
    """
    begun_ms = deadline.now_ms
    steps = _Steps(is_delegated=is_delegated)
    found: list[Services] = []
    if is_delegated:
        steps.take(_DELEGATION, ResolutionOutcome.USED)
    targets, failure = await _targets(outbound, name, deadline, steps, found)
    if not is_delegated and not name.is_literal and name.port is None:
        steps.take(_DELEGATION, ResolutionOutcome.NOTHING)
    resolved = await side_by_side(
        *(
            _looking_up(
                outbound,
                target,
                deadline,
                as_server_name=name.is_literal and not is_delegated,
            )
            for target in targets[:_MAX_TARGETS]
        )
    )
    findings = AddressesFindings(
        resolved=name.netloc,
        step=steps.used,
        steps=steps.all(),
        services=tuple(r for services in found for r in services.records),
        services_total=sum(services.total for services in found),
        cached_services=tuple(s.cached for s in found if s.cached is not None),
        targets=tuple(resolved),
        targets_total=len(targets),
    )
    stage = conclude(findings, failure)
    return attr.evolve(stage, duration_ms=deadline.since(begun_ms))


async def _targets(
    outbound: Outbound,
    name: ServerName,
    deadline: Deadline,
    steps: _Steps,
    found: list[Services],
) -> tuple[list[tuple[str, int]], Failure | None]:
    """Go through the steps; return the hosts to which they lead, or why to none."""
    if name.is_literal:
        steps.take(_LITERAL, ResolutionOutcome.USED)
        return [(name.host, name.port or _DEFAULT_PORT)], None
    steps.take(_LITERAL, ResolutionOutcome.NOT_APPLICABLE)
    if name.port is not None:
        steps.take(_PORT, ResolutionOutcome.USED)
        return [(name.host, name.port)], None
    steps.take(_PORT, ResolutionOutcome.NOT_APPLICABLE)
    for step, label in ((_SERVICE, "_matrix-fed"), (_OLD_SERVICE, "_matrix")):
        services = await _look_up_services(
            outbound, f"{label}._tcp.{name.host}", deadline
        )
        found.append(services)
        if services.failure is not None:
            steps.take(step, ResolutionOutcome.FAILED, services.failure.message)
            return [], services.failure
        if services.is_refused:
            failure = describe(
                FailureKind.UNREACHABLE,
                "its SRV record says that the service is not offered",
            )
            steps.take(step, ResolutionOutcome.FAILED, failure.message)
            return [], failure
        if services.records:
            steps.take(step, ResolutionOutcome.USED)
            records = services.records
            return list(dict.fromkeys((r.target, r.port) for r in records)), None
        steps.take(step, ResolutionOutcome.NOTHING)
    steps.take(_FALLBACK, ResolutionOutcome.USED)
    return [(name.host, _DEFAULT_PORT)], None


async def _look_up_services(
    outbound: Outbound, service: str, deadline: Deadline
) -> Services:
    async def look_up() -> Sequence[dns.RRHeader]:
        answers, _, _ = await make_deferred_yieldable(
            dns_client.lookupService(service.encode("ascii"))
        )
        found: Sequence[dns.RRHeader] = answers
        return found

    try:
        answers = await deadline.within(deadline.left_ms(_SHARE_SERVICE), look_up)
    except (DNSNameError, DNSNotImplementedError):
        # Synapse takes both for there being none.
        answers = ()
    except (TimeIsOver, CancelledError):
        failure = describe(
            FailureKind.DNS_FAILED, f"no answer about {bounded(service)}"
        )
        return Services(failure=failure)
    except Exception as e:
        # What the resolver, or the name server, makes of it.
        detail = f"{type(e).__name__} about {bounded(service)}"
        return Services(failure=describe(FailureKind.DNS_FAILED, detail))
    payloads: list[tuple[Any, int]] = [
        (answer.payload, answer.ttl)
        for answer in answers
        if isinstance(answer.payload, dns.Record_SRV)
    ]
    # The root is the target of a service that is decidedly not there (RFC 2782).
    if len(payloads) == 1 and payloads[0][0].target.name in (b"", b"."):
        return Services(is_refused=True)
    payloads.sort(key=lambda found: (found[0].priority, -found[0].weight))
    records = tuple(
        ServiceRecord(
            service=service,
            target=word(payload.target.name, _MAX_HOST) or "",
            port=payload.port,
            priority=payload.priority,
            weight=payload.weight,
            ttl_s=ttl,
        )
        for payload, ttl in payloads[:_MAX_SERVICES]
    )
    return Services(
        records, len(payloads), cached=_cached_otherwise(outbound, service, records)
    )


def _cached_otherwise(
    outbound: Outbound, service: str, records: Sequence[ServiceRecord]
) -> CachedService | None:
    """Return what Synapse has cached, if that is valid still and differs."""
    cached = outbound.cached_services(service)
    targets = {f"{host}:{port}" for host, port, _ in cached}
    if not cached or targets == {f"{r.target}:{r.port}" for r in records}:
        return None
    return CachedService(
        service,
        tuple(bounded(target) for target in sorted(targets)[:_MAX_SERVICES]),
        min(expires_ts for _, _, expires_ts in cached),
    )


def _looking_up(
    outbound: Outbound,
    target: tuple[str, int],
    deadline: Deadline,
    *,
    as_server_name: bool,
) -> Callable[[], Awaitable[Target]]:
    host, port = target

    async def look_up() -> Target:
        if outbound.goes_through_proxy(host):
            return Target(host, port, via_proxy=True)
        return await _look_up(
            outbound, host, port, deadline, as_server_name=as_server_name
        )

    return look_up


async def _look_up(
    outbound: Outbound,
    host: str,
    port: int,
    deadline: Deadline,
    *,
    as_server_name: bool,
) -> Target:
    """Look a host up; return its addresses, or why there are none."""

    async def look_up() -> dict[str, bool]:
        return await outbound.look_up(host, port, as_server_name=as_server_name)

    try:
        addresses = await deadline.within(deadline.left_ms(_SHARE_ADDRESSES), look_up)
    except TimeIsOver:
        return Target(
            host,
            port,
            error=describe(FailureKind.DNS_FAILED, f"no answer about {bounded(host)}"),
        )
    except OSError as e:
        return Target(host, port, error=why_no_address(e, host))
    except UnicodeError:
        detail = f"{bounded(host)} can be no host name"
        return Target(host, port, error=describe(FailureKind.DNS_NOT_FOUND, detail))
    blocked = [address for address, is_blocked in addresses.items() if is_blocked]
    error = None
    if blocked:
        detail = ", ".join(blocked[:3])
        if len(blocked) < len(addresses):
            detail += ": because of it Synapse does not use the others either"
        error = describe(FailureKind.IP_BLOCKED, bounded(detail))
    # Those that are blocked are told before all others.
    told = (*blocked, *(a for a in addresses if not addresses[a]))[:_MAX_ADDRESSES]
    return Target(
        host,
        port,
        tuple(TargetAddress(bounded(a), addresses[a]) for a in told),
        len(addresses),
        error=error,
    )


def why_no_address(error: OSError, host: str) -> Failure:
    """Tell why the operating system finds no address of a host name."""
    name = bounded(host)
    if isinstance(error, socket.gaierror):
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            return describe(FailureKind.DNS_NOT_FOUND, f"there is no {name}")
        what = (
            "the name servers fail" if error.errno == socket.EAI_AGAIN else str(error)
        )
        return describe(FailureKind.DNS_FAILED, f"{name}: {bounded(what)}")
    return describe(FailureKind.DNS_FAILED, f"{name}: {bounded(str(error))}")


def conclude(findings: AddressesFindings, failure: Failure | None) -> Stage:
    """Return the stage: whether there is anything to connect to."""
    if failure is None and findings.targets:
        bad = [target for target in findings.targets if target.error is not None]
        if not bad:
            return Stage(
                StageName.ADDRESSES,
                StageOutcome.OK,
                _led_to(findings),
                findings=findings,
            )
        first = bad[0].error
        assert first is not None
        if len(bad) == len(findings.targets):
            failure = first
        else:
            message = (
                f"{len(bad)} of {len(findings.targets)} hosts cannot be used: "
                f"{bad[0].host}: {first.message}"
            )
            return Stage(
                StageName.ADDRESSES,
                StageOutcome.WARNING,
                message,
                first.kind,
                findings=findings,
            )
    assert failure is not None
    return Stage(
        StageName.ADDRESSES,
        StageOutcome.FAILED,
        failure.message,
        failure.kind,
        findings=findings,
    )


def _led_to(findings: AddressesFindings) -> str:
    hosts = ", ".join(
        f"{target.host} port {target.port}" for target in findings.targets[:3]
    )
    more = findings.targets_total - 3
    return f"Requests go to {hosts}" + (f" and {more} more" if more > 0 else "")
