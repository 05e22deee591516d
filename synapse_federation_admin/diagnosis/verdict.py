# SPDX-License-Identifier: Apache-2.0
"""What the stages of a diagnosis mean: pure functions of them."""

from http import HTTPStatus

from synapse_federation_admin.diagnosis.findings import (
    AddressesFindings,
    AuthenticatedFindings,
    Conclusion,
    ConnectionsFindings,
    KeysFindings,
    Stage,
    StageName,
    StageOutcome,
    StoredFindings,
    Verdict,
    WellKnownFindings,
)
from synapse_federation_admin.diagnosis.reasons import (
    Stages,
    explained,
    failed_connections,
    fails_with,
)
from synapse_federation_admin.failures.kinds import Failure, FailureKind
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
_WAY = (
    StageName.NAME,
    StageName.WELL_KNOWN,
    StageName.ADDRESSES,
    StageName.CONNECTIONS,
    StageName.VERSION,
    StageName.KEYS,
    StageName.AUTHENTICATED,
)

# What the server says to our requests cannot be outweighed by other stages.
_DECISIVE = (StageName.NAME, StageName.KEYS, StageName.AUTHENTICATED)

# Where nothing is at the place to which requests go, the place may be wrong.
_NOBODY_THERE = (
    FailureKind.DNS_NOT_FOUND,
    FailureKind.DNS_FAILED,
    FailureKind.CONNECTION_REFUSED,
    FailureKind.CONNECTION_TIMEOUT,
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


def conclude(stages: Stages) -> Conclusion:
    """Tell what the stages mean.

    Args:
        stages: All of them, by name.
    """
    failing = _failing_stage(stages)
    if failing is not None:
        return _failing(stages, failing)
    authenticated = stages[StageName.AUTHENTICATED]
    if authenticated.outcome is StageOutcome.SKIPPED:
        failure = authenticated.failure or Failure(FailureKind.INTERNAL)
        return Conclusion(Verdict.UNKNOWN, Situation(Effect.NOT_KNOWN, failure))
    weak = _uneven_stage(stages) or _weak_stage(stages)
    if weak is not None:
        return _degraded(stages, weak)
    is_page = _is_harmless(stages[StageName.WELL_KNOWN])
    situation = Situation(
        Effect.NONE,
        remarks=(Remark.HARMLESS_PAGE,) if is_page else (),
        backoff_left_ms=_backoff_left_ms(stages),
    )
    return Conclusion(Verdict.OK, situation)


def _got_through(stages: Stages) -> bool:
    """Tell whether the homeserver has answered to a request of Synapse's own."""
    return stages[StageName.AUTHENTICATED].outcome in (
        StageOutcome.OK,
        StageOutcome.WARNING,
    )


def _is_ours(stage: Stage) -> bool:
    """Tell whether this module has failed in a stage."""
    return stage.failure is not None and stage.failure.is_ours


def _failing_stage(stages: Stages) -> Stage | None:
    """Return the stage because of which requests fail; None if they do not."""
    failed = [
        stages[name] for name in _WAY if stages[name].outcome is StageOutcome.FAILED
    ]
    if _got_through(stages):
        # What else fails, fails at times.
        failed = [stage for stage in failed if stage.name in _DECISIVE]
    if _is_answered(stages) or _is_ours(stages[StageName.AUTHENTICATED]):
        # Without its version a homeserver can do.
        failed = [stage for stage in failed if stage.name is not StageName.VERSION]
    if not failed or _uneven_stage(stages) is not None:
        return None
    first = failed[0]
    if (
        isinstance(first.findings, KeysFindings)
        and _met(first) is stages[StageName.AUTHENTICATED].kind
    ):
        # It is not the keys: it answers so to everything.
        first = stages[StageName.AUTHENTICATED]
    if _is_outdated(stages, first) or _is_stuck(stages, first):
        return stages[StageName.WELL_KNOWN]
    return _misled(stages, first) or first


def _met(stage: Stage) -> FailureKind | None:
    """Return what a request has met: of that for keys, not what it means for them."""
    findings = stage.findings
    if isinstance(findings, KeysFindings) and findings.error is not None:
        return findings.error.kind
    return stage.kind


def _is_answered(stages: Stages) -> bool:
    """Tell whether a homeserver answers to one of Synapse's own requests."""
    keys = stages[StageName.KEYS].findings
    signed = stages[StageName.AUTHENTICATED].findings
    return (isinstance(keys, KeysFindings) and keys.status == HTTPStatus.OK) or (
        isinstance(signed, AuthenticatedFindings) and signed.errcode is not None
    )


def _uneven_stage(stages: Stages) -> Stage | None:
    """Return the stage in which only some addresses are bad, if Synapse met those.

    Else None: Synapse's own requests go to one address each, and have failed by luck.
    """
    failed = [
        stages[name]
        for name in (StageName.KEYS, StageName.AUTHENTICATED)
        if stages[name].outcome is StageOutcome.FAILED
    ]
    if not failed:
        return None
    for name in (StageName.CONNECTIONS, StageName.VERSION):
        stage = stages[name]
        if stage.outcome is StageOutcome.WARNING and all(
            _met(other) in _bad_kinds(stage, stages) for other in failed
        ):
            return stage
    return None


def _bad_kinds(stage: Stage, stages: Stages) -> set[FailureKind | None]:
    """Return what the bad ones among the addresses do."""
    findings = stages[StageName.CONNECTIONS].findings
    kinds: set[FailureKind | None] = {stage.kind}
    if isinstance(findings, ConnectionsFindings):
        for connection in findings.connections:
            answer = connection.version
            for error in (connection.error, answer.error if answer else None):
                if error is not None:
                    kinds.add(error.kind)
    return kinds


def _is_outdated(stages: Stages, failed: Stage) -> bool:
    """Tell whether only Synapse itself fails, by an older answer that it has cached."""
    findings = stages[StageName.WELL_KNOWN].findings
    return (
        isinstance(findings, WellKnownFindings)
        and findings.cached is not None
        and findings.cached.is_used
        and findings.cached.differs
        and failed.name in (StageName.KEYS, StageName.AUTHENTICATED)
        and stages[StageName.VERSION].outcome is StageOutcome.OK
    )


def _is_stuck(stages: Stages, failed: Stage) -> bool:
    """Tell whether Synapse gets no further for it waits for the file."""
    findings = stages[StageName.WELL_KNOWN].findings
    if not isinstance(findings, WellKnownFindings):
        return False
    error = findings.requests[-1].error
    return (
        failed.name in (StageName.KEYS, StageName.AUTHENTICATED)
        and getattr(failed.findings, "status", None) is None
        and error is not None
        and error.kind is FailureKind.RESPONSE_TIMEOUT
    )


def _misled(stages: Stages, failed: Stage) -> Stage | None:
    """Return the well-known stage, if it is why requests go to where nobody is."""
    well_known = stages[StageName.WELL_KNOWN]
    addresses = stages[StageName.ADDRESSES].findings
    if (
        failed.name not in (StageName.ADDRESSES, StageName.CONNECTIONS)
        or failed.kind not in _NOBODY_THERE
        or well_known.outcome is not StageOutcome.WARNING
        or well_known.kind is FailureKind.OTHER
        or not isinstance(well_known.findings, WellKnownFindings)
        or well_known.findings.delegated_to is not None
    ):
        return None
    if isinstance(addresses, AddressesFindings) and addresses.services_total:
        # They have said where they are, in the DNS.
        return None
    first = well_known.findings.requests[0]
    if first.error is not None and first.error.kind in _NOBODY_THERE:
        # Nobody is there either: the whole server is away.
        return None
    return well_known


def _weak_stage(stages: Stages) -> Stage | None:
    """Return the stage that shows best why federation does not always work."""
    for outcome in (StageOutcome.FAILED, StageOutcome.WARNING):
        for name in _WEAK:
            stage = stages[name]
            if stage.outcome is outcome and not _is_harmless(stage):
                return stage
    return None


def _is_harmless(stage: Stage) -> bool:
    """Tell whether a file that is wrong is only the page of some web site."""
    return (
        stage.outcome is StageOutcome.WARNING
        and isinstance(stage.findings, WellKnownFindings)
        and not stage.findings.suggests_delegation
    )


def _failing(stages: Stages, stage: Stage) -> Conclusion:
    failure = explained(stages, stage)
    remarks = []
    if stage.name is StageName.WELL_KNOWN and failure.kind is not FailureKind.OTHER:
        remarks.append(Remark.FILE_IS_WHY)
    if _fails_otherwise(stages, failure):
        remarks.append(Remark.OTHER_ADDRESSES)
    if (
        _stored(stages).reaches_us
        and failure.kind not in _NOT_FOR_REACH
        and not _is_reached(stages)
    ):
        remarks.append(Remark.THEY_REACH_US)
    situation = Situation(Effect.STOPS, failure, tuple(remarks))
    return Conclusion(Verdict.FAILING, situation)


def _degraded(stages: Stages, stage: Stage) -> Conclusion:
    failure = explained(stages, stage)
    remarks: tuple[Remark, ...] = ()
    if failure.kind is FailureKind.WELL_KNOWN_INVALID:
        remarks = (Remark.FOUND_WITHOUT_FILE,)
    effect = _effect_of(stage, failure)
    left_ms = _backoff_left_ms(stages)
    return Conclusion(
        Verdict.DEGRADED, Situation(effect, failure, remarks, backoff_left_ms=left_ms)
    )


def _effect_of(stage: Stage, failure: Failure) -> Effect:
    """Return what comes of something that does not always stop requests."""
    if stage.outcome is StageOutcome.WARNING and stage.name in (
        StageName.ADDRESSES,
        StageName.CONNECTIONS,
        StageName.VERSION,
    ):
        is_skipped = failure.kind in _NOBODY_THERE
        return Effect.NEXT_ADDRESS if is_skipped else Effect.SOME_REQUESTS
    if stage.name is StageName.VERSION:
        return Effect.NO_VERSION
    if stage.name is StageName.CONNECTIONS:
        return Effect.AT_TIMES
    return Effect.WORKS


def _is_reached(stages: Stages) -> bool:
    """Tell whether any request to the homeserver was answered at all."""
    return any(
        getattr(stages[name].findings, "status", None) is not None
        for name in (StageName.VERSION, StageName.KEYS, StageName.AUTHENTICATED)
    )


def _fails_otherwise(stages: Stages, failure: Failure) -> bool:
    """Tell whether addresses fail with another kind than the first."""
    return failure.facts.address != "" and not all(
        fails_with(connection, failure.kind)
        for connection in failed_connections(stages)
    )


def _stored(stages: Stages) -> StoredFindings:
    findings = stages[StageName.STORED].findings
    return findings if isinstance(findings, StoredFindings) else StoredFindings(False)


def _backoff_left_ms(stages: Stages) -> int | None:
    """Return for how long Synapse backs off still; None if it does not."""
    stored = _stored(stages)
    return stored.backoff_left_ms if stored.next_retry_ts else None
