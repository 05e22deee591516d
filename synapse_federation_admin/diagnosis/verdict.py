# SPDX-License-Identifier: Apache-2.0
"""What the stages of a diagnosis mean: pure functions of them."""

from http import HTTPStatus

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
    Stages,
    StoredFindings,
    WellKnownFindings,
)
from synapse_federation_admin.failures.kinds import (
    TLS_KINDS,
    Failure,
    FailureKind,
    Reason,
)
from synapse_federation_admin.failures.text import Effect, Remark, Situation

# Where to look first for what does not always work: of the file, least of all.
_WEAK = (
    StageName.ADDRESSES,
    StageName.CONNECTIONS,
    StageName.VERSION,
    StageName.KEYS,
    StageName.AUTHENTICATED,
    StageName.WELL_KNOWN,
    StageName.CLOCK,
)

# On the way that a request takes, what does not work stops it.
_WAY = tuple(StageName)[:7]

# Requests of Synapse's own client.
_ASKED = (StageName.KEYS, StageName.AUTHENTICATED)

# What is said of each address by itself.
_BY_ADDRESS = (StageName.ADDRESSES, StageName.CONNECTIONS, StageName.VERSION)

# Where nothing is at the place to which requests go, the place may be wrong.
_NOT_CONNECTED = (FailureKind.CONNECTION_REFUSED, FailureKind.CONNECTION_TIMEOUT)
_NOBODY_THERE = (
    *_NOT_CONNECTED,
    FailureKind.DNS_NOT_FOUND,
    FailureKind.DNS_FAILED,
    FailureKind.UNREACHABLE,
    FailureKind.IP_BLOCKED,
)

# With these, there is somebody who does not let us in, or who is not asked.
_NOT_FOR_REACH = (
    FailureKind.INVALID_NAME,
    FailureKind.NOT_ALLOWED,
    FailureKind.IP_BLOCKED,
    FailureKind.REJECTED,
    FailureKind.RATE_LIMITED,
    FailureKind.GONE,
)


def conclude(stages: Stages) -> Situation:
    """Tell what the stages mean.

    Args:
        stages: All of them.
    """
    failing = _failing_stage(stages)
    if failing is not None:
        return _failing(stages, failing)
    authenticated = stages[StageName.AUTHENTICATED]
    if authenticated.outcome is StageOutcome.SKIPPED:
        failure = authenticated.failure or Failure(FailureKind.INTERNAL)
        return Situation(Effect.NOT_KNOWN, failure)
    stored = stages.seen(StoredFindings)
    left_ms = stored.backoff_left_ms if stored and stored.next_retry_ts else None
    weak = _uneven_stage(stages) or _weak_stage(stages)
    if weak is None:
        is_page = _is_harmless(stages, stages[StageName.WELL_KNOWN])
        remarks = (Remark.HARMLESS_PAGE,) if is_page else ()
        return Situation(Effect.NONE, None, remarks, left_ms)
    failure = _explained(stages, weak)
    is_file = failure.kind is FailureKind.WELL_KNOWN_INVALID
    remarks = (Remark.FOUND_WITHOUT_FILE,) if is_file else ()
    return Situation(_effect_of(weak, failure), failure, remarks, left_ms)


def _failing(stages: Stages, stage: Stage) -> Situation:
    failure = _explained(stages, stage)
    stored = stages.seen(StoredFindings)
    remarks = []
    if stage.name is StageName.WELL_KNOWN and failure.kind is not FailureKind.OTHER:
        remarks.append(Remark.FILE_IS_WHY)
    if failure.facts.address and not all(
        _fails_with(connection, failure.kind) for connection in _connections(stages)
    ):
        remarks.append(Remark.OTHER_ADDRESSES)
    if (
        stored is not None
        and stored.reaches_us
        and failure.kind not in _NOT_FOR_REACH
        and all(_status(stages, name) is None for name in (StageName.VERSION, *_ASKED))
    ):
        remarks.append(Remark.THEY_REACH_US)
    return Situation(Effect.STOPS, failure, tuple(remarks))


# Which stage counts.


def _failing_stage(stages: Stages) -> Stage | None:
    """Return the stage because of which requests fail; None if they do not."""
    authenticated = stages[StageName.AUTHENTICATED]
    failed = [
        stages[name] for name in _WAY if stages[name].outcome is StageOutcome.FAILED
    ]
    if authenticated.outcome in (StageOutcome.OK, StageOutcome.WARNING):
        # A request got through: what else fails, fails at times. But without its keys,
        # nothing that the server sends can be verified.
        failed = [stages[StageName.KEYS]] if stages[StageName.KEYS] in failed else []
    if _is_answered(stages) or authenticated.is_ours:
        # Without its version a homeserver can do.
        failed = [stage for stage in failed if stage.name is not StageName.VERSION]
    if not failed or _uneven_stage(stages) is not None:
        return None
    first = failed[0]
    if first.name is StageName.KEYS and _met(first) is authenticated.kind:
        # It is not the keys: it answers so to everything.
        first = authenticated
    if _is_file_why(stages, first):
        return stages[StageName.WELL_KNOWN]
    return first


def _is_answered(stages: Stages) -> bool:
    """Tell whether a homeserver answers to one of Synapse's own requests."""
    signed = stages.seen(AuthenticatedFindings)
    has_error = signed is not None and signed.errcode is not None
    return has_error or _status(stages, StageName.KEYS) == HTTPStatus.OK


def _is_file_why(stages: Stages, failed: Stage) -> bool:
    """Tell whether requests fail by the well-known file, or by what is cached of it."""
    stage, file = stages[StageName.WELL_KNOWN], stages.seen(WellKnownFindings)
    if file is None:
        return False
    if failed.name in _ASKED:
        if stages[StageName.VERSION].outcome is StageOutcome.OK and file.is_outdated:
            # Only Synapse itself fails, by an older answer that it has cached.
            return True
        # Synapse gets no further for it waits for the file.
        late = file.requests[-1].error
        return (
            late is not None
            and late.kind is FailureKind.RESPONSE_TIMEOUT
            and _status(stages, failed.name) is None
        )
    # Requests go to where nobody is; but there is a web server, and the DNS does not
    # say where the server is.
    addresses, web = stages.seen(AddressesFindings), file.requests[0].error
    return (
        failed.name in _BY_ADDRESS[:2]
        and failed.kind in _NOBODY_THERE
        and stage.outcome is StageOutcome.WARNING
        and stage.kind is not FailureKind.OTHER
        and file.delegated_to is None
        and not (addresses is not None and addresses.services_total)
        and not (web is not None and web.kind in _NOBODY_THERE)
    )


def _uneven_stage(stages: Stages) -> Stage | None:
    """Return the stage in which only some addresses are bad, if Synapse met those.

    Else None: Synapse's own requests go to one address each, and have failed by luck.
    """
    asked = [stages[name] for name in _ASKED]
    met = {_met(stage) for stage in asked if stage.outcome is StageOutcome.FAILED}
    found = stages.seen(ConnectionsFindings)
    at_addresses = {
        error.kind
        for connection in (found.connections if found else ())
        for error in (
            connection.error,
            connection.version.error if connection.version else None,
        )
        if error is not None
    }
    for name in _BY_ADDRESS[1:]:
        stage = stages[name]
        is_uneven = stage.outcome is StageOutcome.WARNING
        if met and is_uneven and met <= {stage.kind, *at_addresses}:
            return stage
    return None


def _weak_stage(stages: Stages) -> Stage | None:
    """Return the stage that shows best why federation does not always work."""
    for outcome in (StageOutcome.FAILED, StageOutcome.WARNING):
        for name in _WEAK:
            stage = stages[name]
            if stage.outcome is outcome and not _is_harmless(stages, stage):
                return stage
    return None


def _is_harmless(stages: Stages, stage: Stage) -> bool:
    """Tell whether a file that is wrong is only the page of some web site."""
    file = stages.seen(WellKnownFindings)
    return (
        stage.name is StageName.WELL_KNOWN
        and stage.outcome is StageOutcome.WARNING
        and file is not None
        and not file.suggests_delegation
    )


def _effect_of(stage: Stage, failure: Failure) -> Effect:
    """Return what comes of something that does not always stop requests."""
    if stage.outcome is StageOutcome.WARNING and stage.name in _BY_ADDRESS:
        is_skipped = failure.kind in _NOBODY_THERE
        return Effect.NEXT_ADDRESS if is_skipped else Effect.SOME_REQUESTS
    if stage.name is StageName.VERSION:
        return Effect.NO_VERSION
    return Effect.AT_TIMES if stage.name is StageName.CONNECTIONS else Effect.WORKS


# What exactly is wrong with it, by what the other stages tell.


def _explained(stages: Stages, stage: Stage) -> Failure:
    """Return what is wrong with a stage, with what the others know of it."""
    failure = stage.failure or Failure(FailureKind.OTHER)
    if failure.kind in TLS_KINDS or stage.name is StageName.CLOCK:
        return failure
    reason = _reason_of(stages, stage, failure) or failure.reason
    facts = failure.facts
    clock = stages.seen(ClockFindings)
    if reason is Reason.CLOCK and clock is not None:
        facts = attr.evolve(facts, ahead_ms=clock.ahead_ms)
    if stage.name is StageName.WELL_KNOWN and failure.kind is FailureKind.OTHER:
        # By what Synapse has cached: what it meets there.
        authenticated = stages[StageName.AUTHENTICATED]
        if authenticated.outcome is StageOutcome.FAILED:
            facts = attr.evolve(facts, cause=authenticated.failure)
    alike = [c for c in _connections(stages) if _fails_with(c, failure.kind)]
    if failure.kind in _NOT_CONNECTED and alike and alike[0].error is not None:
        met = alike[0].error.facts
        facts = attr.evolve(
            facts, address=met.address, port=met.port, more=len(alike) - 1
        )
    return attr.evolve(failure, reason=reason, facts=facts)


def _reason_of(stages: Stages, stage: Stage, failure: Failure) -> Reason | None:
    """Return what exactly is wrong, if other stages tell it."""
    kind, name = failure.kind, stage.name
    if name is StageName.WELL_KNOWN:
        return None
    if (
        name is StageName.AUTHENTICATED
        and failure.reason is not Reason.UNKNOWN_REQUEST
        and kind not in (FailureKind.REJECTED, FailureKind.RATE_LIMITED)
        and StageOutcome.OK
        in (stages[StageName.VERSION].outcome, stages[StageName.KEYS].outcome)
    ):
        # A homeserver answers there.
        if kind is FailureKind.RESPONSE_TIMEOUT:
            # It may be waiting for ours, of which it needs the key.
            return Reason.SIGNED_UNANSWERED
        signed = stages.seen(AuthenticatedFindings)
        has_error = signed is not None and signed.errcode is not None
        return Reason.SIGNED_ERROR if has_error else Reason.SIGNED_NOT_ROUTED
    if name is StageName.KEYS:
        keys = stages.seen(KeysFindings)
        if keys is not None and keys.error is not None and kind is keys.error.kind:
            # It is none of the kinds of keys.
            return Reason.KEYS_REQUEST
    elif (
        kind is FailureKind.RESPONSE_TIMEOUT
        and stages[StageName.CONNECTIONS].skipped is SkipReason.ANOTHER_PROCESS
    ):
        return Reason.ANOTHER_PROCESS
    if kind is FailureKind.REJECTED and any(
        # In these our key plays no part.
        _status(stages, other) in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        for other in (StageName.VERSION, StageName.KEYS)
    ):
        return Reason.UNSIGNED_TOO
    if kind in (FailureKind.REJECTED, FailureKind.KEYS_EXPIRED):
        is_off = stages[StageName.CLOCK].outcome is StageOutcome.WARNING
        return Reason.CLOCK if is_off else None
    file, addresses = stages.seen(WellKnownFindings), stages.seen(AddressesFindings)
    if (
        kind in _NOT_CONNECTED
        and failure.reason is None
        and file is not None
        and file.delegated_to is None
        and (file.requests[-1].status or 0) >= HTTPStatus.BAD_REQUEST
        and addresses is not None
        and not addresses.services_total
    ):
        # There is a web server, but neither delegation nor SRV records.
        return Reason.MAY_LACK_DELEGATION
    return None


def _met(stage: Stage) -> FailureKind | None:
    """Return what a request has met: of that for keys, not what it means for them."""
    findings = stage.findings
    if isinstance(findings, KeysFindings) and findings.error is not None:
        return findings.error.kind
    return stage.kind


def _status(stages: Stages, name: StageName) -> int | None:
    """Return the HTTP status of the answer in a stage; None if there was none."""
    return getattr(stages[name].findings, "status", None)


def _connections(stages: Stages) -> list[Connection]:
    """Return the connections that failed."""
    findings = stages.seen(ConnectionsFindings)
    connections = findings.connections if findings else ()
    return [c for c in connections if c.outcome is StageOutcome.FAILED]


def _fails_with(connection: Connection, kind: FailureKind) -> bool:
    return connection.error is not None and connection.error.kind is kind
