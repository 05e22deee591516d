# SPDX-License-Identifier: Apache-2.0
"""The stage `addresses`: where requests to a server go.

https://spec.matrix.org/v1.11/server-server-api/#resolving-server-names, and what
Synapse makes of it (`synapse/http/federation/matrix_federation_agent.py`).
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import attr
from twisted.internet.defer import CancelledError
from twisted.names import dns

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.resolution import (
    AddressesFindings,
    ResolutionOutcome,
    ResolutionStep,
    ServiceRecord,
    Target,
    TargetAddress,
)
from synapse_federation_admin.diagnosis.stages import Stage, StageName
from synapse_federation_admin.diagnosis.way import Way, side_by_side
from synapse_federation_admin.failures.bounds import bounded, word
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.second_look import dangling
from synapse_federation_admin.homeserver.errors import ObstacleError
from synapse_federation_admin.homeserver.server_name import ServerName, is_internal

_DEFAULT_PORT = 8448

# The steps, by their numbers where the server delegates and where it does not: in the
# order of the numbers.
_LITERAL = ("3.1", "1", "an IP address")
_PORT = ("3.2", "2", "a port in the name")
_DELEGATION = ("3", "3", "delegation by /.well-known/matrix/server")
_SERVICE = ("3.3", "4", "SRV records of _matrix-fed._tcp")
_OLD_SERVICE = ("3.4", "5", "SRV records of _matrix._tcp (deprecated)")
_FALLBACK = ("3.5", "6", f"the name itself, port {_DEFAULT_PORT}")
_STEPS = (_LITERAL, _PORT, _DELEGATION, _SERVICE, _OLD_SERVICE, _FALLBACK)

# The share of the time of a diagnosis: for the look-ups of SRV records, for those of
# addresses, and for each that is to tell why these fail.
_SHARE_SERVICES = 0.3
_SHARE_ADDRESSES = 0.3
_SHARE_AGAIN = 0.15

# The longest host name, in the DNS; and what one is made of, or an address.
_MAX_HOST = 255
_HOST = re.compile(r"[0-9A-Za-z._:%-]{1,255}")


class Services(NamedTuple):
    """What came of a look-up of SRV records.

    Attributes:
        records: The records, those first that are used first.
        total: How many there are.
        failure: Why they could not be looked up, or that all that they say is that the
            service is not there.
    """

    records: tuple[ServiceRecord, ...] = ()
    total: int = 0
    failure: Failure | None = None


class _Resolution(NamedTuple):
    """To what the steps lead.

    Attributes:
        step: The one that was used, or has failed.
        hosts: The hosts, with their ports, those first that are used first.
        services: The SRV records.
        failure: Why it has failed.
    """

    step: tuple[str, str, str]
    hosts: tuple[tuple[str, int], ...]
    services: Sequence[Services] = ()
    failure: Failure | None = None


async def check_addresses(
    way: Way, name: ServerName, *, is_delegated: bool, explains: bool = True
) -> Stage:
    """Find out where requests go.

    Args:
        way: The way out.
        name: The name to resolve: the delegated one, if there is one.
        is_delegated: Whether it is that.
        explains: Whether to ask more of the DNS where it fails, to tell why.
    """
    found = await _resolve(way, name)
    is_server_name = name.is_literal and not is_delegated
    targets = await side_by_side(
        *(
            partial(_look_up_target, way, host, port, as_server_name=is_server_name)
            for host, port in found.hosts[: limits.DIAGNOSED_HOSTS]
        )
    )
    place = 0 if is_delegated else 1
    if explains:
        failure = await _why_no_services(way, found.failure, name)
        found = found._replace(failure=failure)
        targets = await side_by_side(
            *(partial(_why_no_address, way, target) for target in targets)
        )
    findings = AddressesFindings(
        resolved=name.netloc,
        step=None if found.failure else found.step[place],
        steps=tuple(
            ResolutionStep(
                step[place],
                step[2],
                _outcome_of(step, found, is_delegated=is_delegated),
                found.failure if step is found.step else None,
            )
            for step in sorted(_STEPS, key=lambda step: step[place])
        ),
        services=tuple(
            r for each in found.services for r in each.records[: limits.TOLD_SERVICES]
        ),
        services_total=sum(each.total for each in found.services),
        targets=tuple(targets),
        targets_total=len(found.hosts),
    )
    if found.failure is not None:
        failure = found.failure.but(via=findings.links())
        return Stage.failed(StageName.ADDRESSES, failure, findings)
    for_each = [
        t._replace(error=t.error and t.error.but(via=findings.links(t.host, t.port)))
        for t in targets
    ]
    findings = findings._replace(targets=tuple(for_each))
    errors = [target.error for target in for_each]
    return Stage.of_all(StageName.ADDRESSES, errors, findings)


async def _why_no_services(
    way: Way, failure: Failure | None, name: ServerName
) -> Failure | None:
    """Tell why SRV records could not be looked up, by asking the DNS more."""
    if failure is None or failure.kind is not FailureKind.DNS_FAILED:
        return failure
    left_ms = way.left_ms(_SHARE_AGAIN)
    try:
        await way.outbound.look_up(
            name.host, _DEFAULT_PORT, left_ms, as_server_name=False
        )
    except ObstacleError:
        return await _whose_dns(way, failure.but(host=name.host))
    is_late = failure.reason is Reason.DNS_NO_ANSWER
    return failure.but(Reason.SERVICE_SILENT if is_late else Reason.SERVICE_FAILS)


async def _why_no_address(way: Way, target: Target) -> Target:
    """Tell why a host has no address, if it has none, by asking the DNS more."""
    failure = target.error
    if failure is None:
        return target
    if failure.kind is FailureKind.DNS_FAILED:
        return target._replace(error=await _whose_dns(way, failure))
    if failure.reason in (Reason.NO_SUCH_HOST, Reason.NO_ADDRESS):
        left_ms = min(way.left_ms(_SHARE_AGAIN), limits.DNS_ANSWER_MS)
        alias = await way.outbound.look_ups.alias_of(target.host, left_ms / 1000)
        failure = dangling(failure, alias)
    return target._replace(error=failure)


async def _whose_dns(way: Way, failure: Failure) -> Failure:
    """Tell whose name servers do not answer: whether ours do about other names."""
    own = ServerName.parse(way.homeserver.server_name)
    # The root, too.
    names = ["", *([] if own.is_literal else [own.host])]
    within_s = min(way.left_ms(_SHARE_AGAIN), limits.DNS_ANSWER_MS) / 1000
    ask = way.outbound.look_ups.answers_about
    answers = await side_by_side(*(partial(ask, n, within_s, dns.NS) for n in names))
    # An answer that there is nothing is one.
    is_theirs = any(answer is not None for answer in answers)
    return failure.but(Reason.NAME_SERVERS_FAIL if is_theirs else Reason.RESOLVER_DEAD)


def _outcome_of(
    step: tuple[str, str, str], found: _Resolution, *, is_delegated: bool
) -> ResolutionOutcome:
    """Return what came of a step."""
    if step is found.step and found.failure:
        return ResolutionOutcome.FAILED
    if step is found.step or (step is _DELEGATION and is_delegated):
        return ResolutionOutcome.USED
    if _STEPS.index(step) > _STEPS.index(found.step):
        return ResolutionOutcome.NOT_REACHED
    is_name = step in (_LITERAL, _PORT)
    return ResolutionOutcome.NOT_APPLICABLE if is_name else ResolutionOutcome.NOTHING


async def _resolve(way: Way, name: ServerName) -> _Resolution:
    """Go through the steps."""
    if name.is_literal:
        return _Resolution(_LITERAL, ((name.host, name.port or _DEFAULT_PORT),))
    if name.port is not None:
        return _Resolution(_PORT, ((name.host, name.port),))
    # Of the second there is need only if there are none of the first: but the DNS may
    # be slow.
    both = await side_by_side(
        partial(_look_up_services, way, f"_matrix-fed._tcp.{name.host}"),
        partial(_look_up_services, way, f"_matrix._tcp.{name.host}"),
    )
    for step, services in zip((_SERVICE, _OLD_SERVICE), both, strict=True):
        if services.failure or services.records:
            hosts = tuple(dict.fromkeys((r.target, r.port) for r in services.records))
            return _Resolution(step, hosts, both, services.failure)
    return _Resolution(_FALLBACK, ((name.host, _DEFAULT_PORT),), both)


async def _look_up_services(way: Way, service: str) -> Services:
    try:
        within_s = way.left_ms(_SHARE_SERVICES) / 1000
        answers = await way.outbound.look_ups.records(service, within_s, dns.SRV)
    except CancelledError:
        raise
    except Exception as e:
        # What the resolver, or the name server, makes of it; or the time is over.
        failure = failure_of(e)
        if failure.is_ours:
            raise
        reason = failure.reason or Reason.DNS_SERVER_FAILURE
        facts = attr.evolve(failure.facts, host=bounded(service))
        failure = Failure(FailureKind.DNS_FAILED, reason, facts)
        return Services(failure=failure)
    found: list[Any] = [a for a in answers if isinstance(a.payload, dns.Record_SRV)]
    records = [
        ServiceRecord(
            service=service,
            target=word(answer.payload.target.name, _MAX_HOST) or "",
            port=answer.payload.port,
            priority=answer.payload.priority,
            weight=answer.payload.weight,
            ttl_s=answer.ttl,
        )
        for answer in found
    ]
    records.sort(key=lambda record: (record.priority, -record.weight))
    # The root is the target of a service that is decidedly not there (RFC 2782).
    there = tuple(record for record in records if record.target not in ("", "."))
    is_refused = records and not there
    return Services(
        there,
        len(records),
        Failure(FailureKind.UNREACHABLE, Reason.NO_SERVICE) if is_refused else None,
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
    if not _HOST.fullmatch(host) or not outbound.can_be_host(host):
        facts = Facts(host=bounded(host))
        error = Failure(FailureKind.DNS_NOT_FOUND, Reason.NO_HOST_NAME, facts)
        return target._replace(error=error)
    if not is_refused and outbound.goes_through_proxy(host):
        return target._replace(via_proxy=True)
    try:
        addresses = await outbound.look_up(
            host,
            port,
            way.left_ms(_SHARE_ADDRESSES),
            as_server_name=as_server_name,
        )
    except ObstacleError as e:
        return target._replace(error=failure_of(e))
    # Those that are blocked are told before all others.
    told = sorted(addresses, key=addresses.__getitem__, reverse=True)
    blocked = [address for address in told if addresses[address]]
    are_internal = all(map(is_internal, blocked))
    reason = Reason.INTERNAL_ADDRESS if are_internal else None
    if as_server_name:
        reason = Reason.INTERNAL_NAME if are_internal else Reason.ADDRESS_IS_NAME
    elif len(blocked) < len(addresses):
        reason = Reason.SOME_INTERNAL if are_internal else Reason.SOME_ADDRESSES
    names = tuple(map(bounded, blocked[: limits.TOLD_BLOCKED]))
    facts = Facts(host=bounded(host), names=names)
    return target._replace(
        addresses=tuple(
            TargetAddress(bounded(address), addresses[address])
            for address in told[: limits.TOLD_ADDRESSES]
        ),
        addresses_total=len(addresses),
        error=Failure(FailureKind.IP_BLOCKED, reason, facts) if blocked else None,
    )
