# SPDX-License-Identifier: Apache-2.0
"""The stage `addresses`: where requests to a server go.

https://spec.matrix.org/v1.11/server-server-api/#resolving-server-names, and what
Synapse makes of it (`synapse/http/federation/matrix_federation_agent.py`).
"""

import re
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import attr
from synapse.module_api import make_deferred_yieldable
from twisted.internet.defer import CancelledError
from twisted.names import client as dns_client
from twisted.names import dns
from twisted.names.error import DNSNameError, DNSNotImplementedError

from synapse_federation_admin.diagnosis.deadline import (
    Deadline,
    TimeIsOver,
    side_by_side,
)
from synapse_federation_admin.diagnosis.findings import (
    AddressesFindings,
    CachedService,
    ResolutionOutcome,
    ResolutionStep,
    ServiceRecord,
    Stage,
    StageName,
    StageOutcome,
    Target,
    TargetAddress,
)
from synapse_federation_admin.diagnosis.server_name import ServerName
from synapse_federation_admin.failures.bounds import bounded, word
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.outbound import Outbound

_DEFAULT_PORT = 8448

_Step: TypeAlias = tuple[str, str, str]

# The steps, with their numbers where the server delegates and where it does not.
_LITERAL = ("3.1", "1", "an IP address")
_PORT = ("3.2", "2", "a port in the name")
_SERVICE = ("3.3", "4", "SRV records of _matrix-fed._tcp")
_OLD_SERVICE = ("3.4", "5", "SRV records of _matrix._tcp (deprecated)")
_FALLBACK = ("3.5", "6", f"the name itself, port {_DEFAULT_PORT}")
_DELEGATION = ("3", "3", "delegation by /.well-known/matrix/server")

_ORDER = (_LITERAL, _PORT, _DELEGATION, _SERVICE, _OLD_SERVICE, _FALLBACK)
_DELEGATED_ORDER = (_DELEGATION, _LITERAL, _PORT, _SERVICE, _OLD_SERVICE, _FALLBACK)

# The share of the time of a diagnosis: for the look-ups of SRV records, and for those
# of addresses.
_SHARE_SERVICES = 0.3
_SHARE_ADDRESSES = 0.3

# How many hosts are looked up, and how many records and addresses are told.
_MAX_TARGETS = 8
_MAX_SERVICES = 50
_MAX_ADDRESSES = 50
_MAX_BLOCKED = 3

# The longest host name, in the DNS; and what one is made of, or an address.
_MAX_HOST = 255
_HOST = re.compile(r"[0-9A-Za-z._:%-]{1,255}")


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Services:
    """What came of a look-up of SRV records.

    Attributes:
        records: The records, those first that are used first.
        total: How many there are.
        is_refused: Whether all that they say is that the service is not there.
        failure: Why they could not be looked up.
        cached: What Synapse has cached of them, if that differs.
    """

    records: tuple[ServiceRecord, ...] = ()
    total: int = 0
    is_refused: bool = False
    failure: Failure | None = None
    cached: CachedService | None = None


class _Steps:
    """Keeps what came of each step, in order."""

    def __init__(self, *, is_delegated: bool) -> None:
        self._place = 0 if is_delegated else 1
        self.used: str | None = None
        self._steps = {
            step: ResolutionStep(
                step[self._place], step[2], ResolutionOutcome.NOT_REACHED
            )
            for step in (_DELEGATED_ORDER if is_delegated else _ORDER)
        }

    def take(
        self, step: _Step, outcome: ResolutionOutcome, error: Failure | None = None
    ) -> None:
        self._steps[step] = ResolutionStep(step[self._place], step[2], outcome, error)
        if outcome is ResolutionOutcome.USED and step is not _DELEGATION:
            self.used = step[self._place]

    def all(self) -> tuple[ResolutionStep, ...]:
        return tuple(self._steps.values())


async def check_addresses(
    homeserver: Homeserver,
    outbound: Outbound,
    name: ServerName,
    deadline: Deadline,
    *,
    is_delegated: bool,
) -> Stage:
    """Find out where requests go.

    Args:
        homeserver: Knows which host names Synapse can connect to.
        outbound: Looks host names up.
        name: The name to resolve: the delegated one, if there is one.
        deadline: Until when it has to be over.
        is_delegated: Whether it is that.
    """
    steps = _Steps(is_delegated=is_delegated)
    found: list[Services] = []
    if is_delegated:
        steps.take(_DELEGATION, ResolutionOutcome.USED)
    targets, failure = await _targets(outbound, name, deadline, steps, found)
    if not is_delegated and not name.is_literal and name.port is None:
        steps.take(_DELEGATION, ResolutionOutcome.NOTHING)

    look_up_target = partial(
        _look_up_target,
        *(homeserver, outbound),
        deadline=deadline,
        as_server_name=name.is_literal and not is_delegated,
    )
    resolved = await side_by_side(
        *(partial(look_up_target, host, port) for host, port in targets[:_MAX_TARGETS])
    )
    findings = AddressesFindings(
        resolved=name.netloc,
        step=steps.used,
        steps=steps.all(),
        services=tuple(r for s in found for r in s.records[:_MAX_SERVICES]),
        services_total=sum(s.total for s in found),
        cached_services=tuple(s.cached for s in found if s.cached is not None),
        targets=tuple(resolved),
        targets_total=len(targets),
    )
    return conclude(findings, failure)


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
    # Of the second there is need only if there are none of the first: but the DNS may
    # be slow.
    both = await side_by_side(
        lambda: _look_up_services(outbound, f"_matrix-fed._tcp.{name.host}", deadline),
        lambda: _look_up_services(outbound, f"_matrix._tcp.{name.host}", deadline),
    )
    found.extend(both)
    for step, services in zip((_SERVICE, _OLD_SERVICE), both, strict=True):
        failure = services.failure
        if services.is_refused:
            failure = Failure(FailureKind.UNREACHABLE, Reason.NO_SERVICE)
        if failure is not None:
            steps.take(step, ResolutionOutcome.FAILED, failure)
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
        answers = await deadline.within(deadline.left_ms(_SHARE_SERVICES), look_up)
    except (DNSNameError, DNSNotImplementedError):
        # Synapse takes both for there being none.
        answers = ()
    except Exception as e:
        # What the resolver, or the name server, makes of it; or the time is over.
        if isinstance(e, TimeIsOver | CancelledError):
            failure = dns_failed(service, Reason.DNS_NO_ANSWER)
        else:
            failure = failure_of(e)
            if failure.is_ours:
                raise
            failure = dns_failed(service, Reason.DNS_SERVER_FAILURE, failure)
        return Services(failure=failure, cached=_cached(outbound, service))
    payloads: list[tuple[Any, int]] = [
        (answer.payload, answer.ttl)
        for answer in answers
        if isinstance(answer.payload, dns.Record_SRV)
    ]
    # The root is the target of a service that is decidedly not there (RFC 2782).
    there = [found for found in payloads if found[0].target.name not in (b"", b".")]
    there.sort(key=lambda found: (found[0].priority, -found[0].weight))
    records = tuple(
        ServiceRecord(
            service=service,
            target=word(payload.target.name, _MAX_HOST) or "",
            port=payload.port,
            priority=payload.priority,
            weight=payload.weight,
            ttl_s=ttl,
        )
        for payload, ttl in there
    )
    return Services(
        records,
        len(payloads),
        is_refused=bool(payloads) and not there,
        cached=_cached_otherwise(outbound, service, records),
    )


def _cached_otherwise(
    outbound: Outbound, service: str, records: Sequence[ServiceRecord]
) -> CachedService | None:
    """Return what Synapse has cached, if that is valid still and differs."""
    cached = _cached(outbound, service)
    targets = {bounded(f"{r.target}:{r.port}") for r in records}
    if cached is None or cached.is_expired or targets == set(cached.targets):
        return None
    return cached


def _cached(outbound: Outbound, service: str) -> CachedService | None:
    """Return what Synapse has cached; if it can look nothing up it goes by that."""
    cached = outbound.cached_services(service)
    if not cached:
        return None
    targets = sorted({f"{host}:{port}" for host, port, _ in cached})
    expires_ts = min(expires_ts for _, _, expires_ts in cached)
    return CachedService(
        service,
        tuple(bounded(target) for target in targets[:_MAX_SERVICES]),
        expires_ts,
        is_expired=expires_ts <= outbound.now_ms,
    )


async def _look_up_target(
    homeserver: Homeserver,
    outbound: Outbound,
    host: str,
    port: int,
    deadline: Deadline,
    *,
    as_server_name: bool,
) -> Target:
    """Return the addresses of a host, or why there are none.

    Args:
        homeserver: Knows which host names Synapse can connect to.
        outbound: Looks it up.
        host: Its name.
        port: The port there.
        deadline: Until when it has to be over.
        as_server_name: Whether it is an address, and the server name itself.
    """
    # Such Synapse refuses before it asks its proxy.
    is_refused = as_server_name and outbound.is_blocked(host, as_server_name=True)
    target = Target(bounded(host, _MAX_HOST), port)
    if not _HOST.fullmatch(host) or not homeserver.federation.can_be_host(host):
        return attr.evolve(target, error=dns_not_found(host, Reason.NO_HOST_NAME))
    if not is_refused and outbound.goes_through_proxy(host):
        return attr.evolve(target, via_proxy=True)
    try:
        addresses = await look_up(outbound, host, port, deadline, as_server_name)
    except TimeIsOver:
        return attr.evolve(target, error=dns_failed(host, Reason.DNS_NO_ANSWER))
    except (OSError, UnicodeError) as e:
        return attr.evolve(target, error=why_no_address(e, host))
    blocked = [address for address, is_blocked in addresses.items() if is_blocked]
    # Those that are blocked are told before all others.
    told = (*blocked, *(a for a in addresses if not addresses[a]))[:_MAX_ADDRESSES]
    reason = None
    if as_server_name:
        reason = Reason.ADDRESS_IS_NAME
    elif len(blocked) < len(addresses):
        reason = Reason.SOME_ADDRESSES
    facts = Facts(names=tuple(map(bounded, blocked[:_MAX_BLOCKED])))
    return attr.evolve(
        target,
        addresses=tuple(TargetAddress(bounded(a), addresses[a]) for a in told),
        addresses_total=len(addresses),
        error=Failure(FailureKind.IP_BLOCKED, reason, facts) if blocked else None,
    )


async def look_up(
    outbound: Outbound,
    host: str,
    port: int,
    deadline: Deadline,
    as_server_name: bool = False,
) -> dict[str, bool]:
    """Look a host up: see `Outbound.look_up`.

    Raises:
        twisted.internet.defer.TimeoutError: There was no answer in time.
        OSError: There are no addresses.
        UnicodeError: It can be no host name.
    """

    async def look_up() -> dict[str, bool]:
        return await outbound.look_up(host, port, as_server_name=as_server_name)

    return await deadline.within(deadline.left_ms(_SHARE_ADDRESSES), look_up)


def why_no_address(error: OSError | UnicodeError, host: str) -> Failure:
    """Tell why the operating system finds no address of a host name."""
    if isinstance(error, UnicodeError):
        return dns_not_found(host, Reason.NO_HOST_NAME)
    if isinstance(error, socket.gaierror):
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            return dns_not_found(host, Reason.NO_SUCH_HOST)
        if error.errno == socket.EAI_AGAIN:
            return dns_failed(host, Reason.DNS_SERVER_FAILURE)
    facts = Facts(host=bounded(host), said=bounded(str(error)))
    return Failure(FailureKind.DNS_FAILED, facts=facts)


def dns_not_found(host: str, reason: Reason) -> Failure:
    """Return the failure that there is no address of a host name."""
    return Failure(FailureKind.DNS_NOT_FOUND, reason, Facts(host=bounded(host)))


def dns_failed(name: str, reason: Reason, cause: Failure | None = None) -> Failure:
    """Return the failure to look a name up.

    Args:
        name: The name.
        reason: What exactly is wrong.
        cause: What the resolver has met.
    """
    exception = cause.facts.exception if cause else ""
    facts = Facts(host=bounded(name), exception=exception)
    return Failure(FailureKind.DNS_FAILED, reason, facts)


def conclude(findings: AddressesFindings, failure: Failure | None) -> Stage:
    """Return the stage: whether there is anything to connect to."""
    name = StageName.ADDRESSES
    bad = [target.error for target in findings.targets if target.error is not None]
    if failure is not None:
        return Stage.failed(name, failure, findings)
    if not bad:
        return Stage(name, StageOutcome.OK, findings=findings)
    is_all = len(bad) == len(findings.targets)
    outcome = StageOutcome.FAILED if is_all else StageOutcome.WARNING
    return Stage.failed(name, bad[0], findings, outcome)
