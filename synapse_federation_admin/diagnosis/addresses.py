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

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.findings import (
    AddressesFindings,
    CachedService,
    ResolutionOutcome,
    ResolutionStep,
    ServiceRecord,
    Stage,
    StageName,
    Target,
    TargetAddress,
)
from synapse_federation_admin.diagnosis.server_name import ServerName
from synapse_federation_admin.diagnosis.way import TimeIsOver, Way, side_by_side
from synapse_federation_admin.failures.bounds import bounded, word
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason

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

# The longest host name, in the DNS; and what one is made of, or an address.
_MAX_HOST = 255
_HOST = re.compile(r"[0-9A-Za-z._:%-]{1,255}")


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Services:
    """What came of a look-up of SRV records.

    Attributes:
        records: The records, those first that are used first.
        total: How many there are.
        failure: Why they could not be looked up, or that all that they say is that the
            service is not there.
        cached: What Synapse has cached of them, if that differs.
    """

    records: tuple[ServiceRecord, ...] = ()
    total: int = 0
    failure: Failure | None = None
    cached: CachedService | None = None


_Taken: TypeAlias = dict[_Step, tuple[ResolutionOutcome, Failure | None]]


async def check_addresses(way: Way, name: ServerName, *, is_delegated: bool) -> Stage:
    """Find out where requests go.

    Args:
        way: The way out.
        name: The name to resolve: the delegated one, if there is one.
        is_delegated: Whether it is that.
    """
    taken, found, targets, failure = await _resolve(way, name)
    if is_delegated:
        taken[_DELEGATION] = ResolutionOutcome.USED, None
    elif not name.is_literal and name.port is None:
        taken[_DELEGATION] = ResolutionOutcome.NOTHING, None
    place = 0 if is_delegated else 1
    used = [
        step
        for step, (outcome, _) in taken.items()
        if outcome is ResolutionOutcome.USED and step is not _DELEGATION
    ]
    is_server_name = name.is_literal and not is_delegated
    resolved = await side_by_side(
        *(
            partial(_look_up_target, way, host, port, as_server_name=is_server_name)
            for host, port in targets[: limits.DIAGNOSED_HOSTS]
        )
    )
    findings = AddressesFindings(
        resolved=name.netloc,
        step=used[0][place] if used else None,
        steps=tuple(
            ResolutionStep(
                step[place],
                step[2],
                *taken.get(step, (ResolutionOutcome.NOT_REACHED, None)),
            )
            for step in (_DELEGATED_ORDER if is_delegated else _ORDER)
        ),
        services=tuple(r for s in found for r in s.records[: limits.TOLD_SERVICES]),
        services_total=sum(s.total for s in found),
        cached_services=tuple(s.cached for s in found if s.cached is not None),
        targets=tuple(resolved),
        targets_total=len(targets),
    )
    if failure is not None:
        return Stage.failed(StageName.ADDRESSES, failure, findings)
    errors = [target.error for target in resolved]
    return Stage.of_all(StageName.ADDRESSES, errors, findings)


async def _resolve(
    way: Way, name: ServerName
) -> tuple[_Taken, Sequence[Services], list[tuple[str, int]], Failure | None]:
    """Go through the steps.

    Returns:
        What came of those that were taken; the SRV records; the hosts to which that
        leads; and why to none.
    """
    used = ResolutionOutcome.USED, None
    inapplicable = ResolutionOutcome.NOT_APPLICABLE, None
    if name.is_literal:
        port = name.port or _DEFAULT_PORT
        return {_LITERAL: used}, (), [(name.host, port)], None
    if name.port is not None:
        taken: _Taken = {_LITERAL: inapplicable, _PORT: used}
        return taken, (), [(name.host, name.port)], None
    taken = {_LITERAL: inapplicable, _PORT: inapplicable}
    # Of the second there is need only if there are none of the first: but the DNS may
    # be slow.
    both = await side_by_side(
        partial(_look_up_services, way, f"_matrix-fed._tcp.{name.host}"),
        partial(_look_up_services, way, f"_matrix._tcp.{name.host}"),
    )
    for step, services in zip((_SERVICE, _OLD_SERVICE), both, strict=True):
        if services.failure is not None:
            taken[step] = ResolutionOutcome.FAILED, services.failure
            return taken, both, [], services.failure
        if services.records:
            taken[step] = used
            hosts = dict.fromkeys((r.target, r.port) for r in services.records)
            return taken, both, list(hosts), None
        taken[step] = ResolutionOutcome.NOTHING, None
    taken[_FALLBACK] = used
    return taken, both, [(name.host, _DEFAULT_PORT)], None


async def _look_up_services(way: Way, service: str) -> Services:
    async def look_up() -> Sequence[dns.RRHeader]:
        answers, _, _ = await make_deferred_yieldable(
            dns_client.lookupService(service.encode("ascii"))
        )
        found: Sequence[dns.RRHeader] = answers
        return found

    try:
        answers = await way.within(way.left_ms(_SHARE_SERVICES), look_up)
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
        return Services(failure=failure, cached=_cached(way, service))
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
    is_refused = payloads and not there
    cached = _cached(way, service)
    shown = {bounded(f"{r.target}:{r.port}") for r in records}
    if cached is not None and (cached.is_expired or shown == set(cached.targets)):
        # Synapse goes by the same.
        cached = None
    return Services(
        records,
        len(payloads),
        Failure(FailureKind.UNREACHABLE, Reason.NO_SERVICE) if is_refused else None,
        cached,
    )


def _cached(way: Way, service: str) -> CachedService | None:
    """Return what Synapse has cached; if it can look nothing up it goes by that."""
    cached = way.outbound.cached_services(service)
    if not cached:
        return None
    targets = sorted({f"{host}:{port}" for host, port, _ in cached})
    expires_ts = min(expires_ts for _, _, expires_ts in cached)
    return CachedService(
        service,
        tuple(bounded(target) for target in targets[: limits.TOLD_SERVICES]),
        expires_ts,
        is_expired=expires_ts <= way.homeserver.now_ms(),
    )


async def _look_up_target(
    way: Way, host: str, port: int, *, as_server_name: bool
) -> Target:
    """Return the addresses of a host, or why there are none.

    Args:
        way: The way out.
        host: Its name.
        port: The port there.
        as_server_name: Whether it is an address, and the server name itself.
    """
    outbound = way.outbound
    # Such Synapse refuses before it asks its proxy.
    is_refused = as_server_name and outbound.is_blocked(host, as_server_name=True)
    target = Target(bounded(host, _MAX_HOST), port)
    if not _HOST.fullmatch(host) or not way.homeserver.federation.can_be_host(host):
        return attr.evolve(target, error=dns_not_found(host, Reason.NO_HOST_NAME))
    if not is_refused and outbound.goes_through_proxy(host):
        return attr.evolve(target, via_proxy=True)
    try:
        addresses = await look_up(way, host, port, as_server_name=as_server_name)
    except TimeIsOver:
        return attr.evolve(target, error=dns_failed(host, Reason.DNS_NO_ANSWER))
    except (OSError, UnicodeError) as e:
        return attr.evolve(target, error=why_no_address(e, host))
    blocked = [address for address, is_blocked in addresses.items() if is_blocked]
    # Those that are blocked are told before all others.
    told = (*blocked, *(a for a in addresses if not addresses[a]))[
        : limits.TOLD_ADDRESSES
    ]
    reason = None
    if as_server_name:
        reason = Reason.ADDRESS_IS_NAME
    elif len(blocked) < len(addresses):
        reason = Reason.SOME_ADDRESSES
    facts = Facts(names=tuple(map(bounded, blocked[: limits.TOLD_BLOCKED])))
    return attr.evolve(
        target,
        addresses=tuple(TargetAddress(bounded(a), addresses[a]) for a in told),
        addresses_total=len(addresses),
        error=Failure(FailureKind.IP_BLOCKED, reason, facts) if blocked else None,
    )


async def look_up(
    way: Way, host: str, port: int, *, as_server_name: bool = False
) -> dict[str, bool]:
    """Look a host up: see `Outbound.look_up`.

    Raises:
        twisted.internet.defer.TimeoutError: There was no answer in time.
        OSError: There are no addresses.
        UnicodeError: It can be no host name.
    """
    look = partial(way.outbound.look_up, host, port, as_server_name=as_server_name)
    return await way.within(way.left_ms(_SHARE_ADDRESSES), look)


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
