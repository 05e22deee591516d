# SPDX-License-Identifier: Apache-2.0
"""What exactly is wrong with a stage, by what the other stages tell: pure functions."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import TypeAlias

import attr

from synapse_federation_admin.diagnosis.findings import (
    AddressesFindings,
    AuthenticatedFindings,
    ClockFindings,
    Connection,
    ConnectionsFindings,
    KeysFindings,
    SkipReason,
    Stage,
    StageName,
    StageOutcome,
    WellKnownFindings,
)
from synapse_federation_admin.failures.kinds import (
    TLS_KINDS,
    Failure,
    FailureKind,
    Reason,
)

Stages: TypeAlias = Mapping[StageName, Stage]

_NOT_CONNECTED = (FailureKind.CONNECTION_REFUSED, FailureKind.CONNECTION_TIMEOUT)


def explained(stages: Stages, stage: Stage) -> Failure:
    """Return what is wrong with a stage, with what the others know of it."""
    failure = stage.failure or Failure(FailureKind.OTHER)
    kind, findings = failure.kind, stage.findings
    if kind in TLS_KINDS or stage.name is StageName.CLOCK:
        return failure
    reason = _reason_of(stages, stage, failure)
    if reason is not None:
        failure = attr.evolve(failure, reason=reason)
    facts = failure.facts
    clock = stages[StageName.CLOCK]
    if reason is Reason.CLOCK and isinstance(clock.findings, ClockFindings):
        facts = attr.evolve(facts, ahead_ms=clock.findings.ahead_ms)
    authenticated = stages[StageName.AUTHENTICATED]
    if (
        isinstance(findings, WellKnownFindings)
        and kind is FailureKind.OTHER
        and authenticated.outcome is StageOutcome.FAILED
    ):
        facts = attr.evolve(facts, cause=authenticated.failure)
    if kind in _NOT_CONNECTED:
        alike = [c for c in failed_connections(stages) if fails_with(c, kind)]
        if alike and alike[0].error is not None:
            met = alike[0].error.facts
            facts = attr.evolve(
                facts, address=met.address, port=met.port, more=len(alike) - 1
            )
    return attr.evolve(failure, facts=facts)


def _reason_of(stages: Stages, stage: Stage, failure: Failure) -> Reason | None:
    """Return what exactly is wrong, if other stages tell it; None: what is known."""
    kind, findings = failure.kind, stage.findings
    if isinstance(findings, WellKnownFindings):
        return None
    if isinstance(findings, AuthenticatedFindings) and _is_up(stages):
        if failure.reason is Reason.UNKNOWN_REQUEST:
            return None
        if kind not in (FailureKind.REJECTED, FailureKind.RATE_LIMITED):
            if kind is FailureKind.RESPONSE_TIMEOUT:
                # Their server may be waiting for ours, of which it needs the key.
                return Reason.SIGNED_UNANSWERED
            has_error = findings.errcode is not None
            return Reason.SIGNED_ERROR if has_error else Reason.SIGNED_NOT_ROUTED
    if isinstance(findings, KeysFindings):
        if findings.error is not None and kind is findings.error.kind:
            # It is none of the kinds of keys.
            return Reason.KEYS_REQUEST
    elif kind is FailureKind.RESPONSE_TIMEOUT and _is_restricted(stages):
        return Reason.ANOTHER_PROCESS
    if kind is FailureKind.REJECTED and _rejects_all(stages):
        return Reason.UNSIGNED_TOO
    if _is_for_clock(stages, kind):
        return Reason.CLOCK
    if (
        kind in _NOT_CONNECTED
        and failure.reason is None
        and _may_lack_delegation(stages)
    ):
        return Reason.MAY_LACK_DELEGATION
    return None


def _is_up(stages: Stages) -> bool:
    """Tell whether a homeserver answers there."""
    return StageOutcome.OK in (
        stages[StageName.VERSION].outcome,
        stages[StageName.KEYS].outcome,
    )


def _is_restricted(stages: Stages) -> bool:
    """Tell whether other processes go out in this one's stead."""
    return stages[StageName.CONNECTIONS].skipped is SkipReason.ANOTHER_PROCESS


def _rejects_all(stages: Stages) -> bool:
    """Tell whether requests are rejected in which our key plays no part."""
    return any(
        getattr(stages[name].findings, "status", None) in (401, 403)
        for name in (StageName.VERSION, StageName.KEYS)
    )


def _is_for_clock(stages: Stages, kind: FailureKind) -> bool:
    """Tell whether the clocks may be the cause."""
    return stages[StageName.CLOCK].outcome is StageOutcome.WARNING and kind in (
        FailureKind.REJECTED,
        FailureKind.KEYS_EXPIRED,
    )


def _may_lack_delegation(stages: Stages) -> bool:
    """Tell whether there is a web server, but neither delegation nor SRV records."""
    well_known = stages[StageName.WELL_KNOWN].findings
    addresses = stages[StageName.ADDRESSES].findings
    return (
        isinstance(well_known, WellKnownFindings)
        and well_known.delegated_to is None
        and (well_known.requests[-1].status or 0) >= HTTPStatus.BAD_REQUEST
        and isinstance(addresses, AddressesFindings)
        and not addresses.services_total
    )


def failed_connections(stages: Stages) -> list[Connection]:
    """Return the connections that failed."""
    findings = stages[StageName.CONNECTIONS].findings
    if not isinstance(findings, ConnectionsFindings):
        return []
    return [c for c in findings.connections if c.outcome is StageOutcome.FAILED]


def fails_with(connection: Connection, kind: FailureKind) -> bool:
    """Tell whether a connection failed with a kind."""
    return connection.error is not None and connection.error.kind is kind
