# SPDX-License-Identifier: Apache-2.0
"""What the stages of a diagnosis mean, and what to do: pure functions of them."""

from http import HTTPStatus

from synapse_federation_admin.diagnosis.clock import shown_duration
from synapse_federation_admin.diagnosis.explanation import Stages, explain
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
from synapse_federation_admin.failures.classify import describe
from synapse_federation_admin.failures.kinds import TLS_KINDS, FailureKind
from synapse_federation_admin.failures.text import summary_of

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

_THEIRS = "Resetting the connection will not help."

# Of these a reset can be of use: nobody has to do anything before.
_HELPED_BY_RESET = (FailureKind.RATE_LIMITED,)

# With these, there is somebody who does not let us in, or who is not asked.
_NOT_FOR_REACH = (
    FailureKind.INVALID_NAME,
    FailureKind.NOT_ALLOWED,
    FailureKind.IP_BLOCKED,
    FailureKind.REJECTED,
    FailureKind.RATE_LIMITED,
    FailureKind.GONE,
)

# Longer than anybody waits: Synapse's backoff can be such that it never ends.
_NEVER_MS = 10 * 365 * 86_400_000


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
        return Conclusion(
            Verdict.DEGRADED,
            FailureKind.OTHER,
            f"This could not be found out: {_lowered(authenticated.message)}.",
            "Try again.",
        )
    weak = _uneven_stage(stages) or _weak_stage(stages)
    if weak is not None:
        return _degraded(stages, weak)
    return _ok(stages)


def _got_through(stages: Stages) -> bool:
    """Tell whether the homeserver has answered to a request of Synapse's own."""
    return stages[StageName.AUTHENTICATED].outcome in (
        StageOutcome.OK,
        StageOutcome.WARNING,
    )


def _failing_stage(stages: Stages) -> Stage | None:
    """Return the stage because of which requests fail; None if they do not."""
    failed = [
        stages[name] for name in _WAY if stages[name].outcome is StageOutcome.FAILED
    ]
    if _got_through(stages):
        # What else fails, fails at times.
        failed = [stage for stage in failed if stage.name in _DECISIVE]
    if _is_answered(stages):
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
    kind = stage.kind or FailureKind.OTHER
    explanation, advice = explain(stages, stage, kind)
    stored = _stored(stages)
    if stage.name is StageName.WELL_KNOWN and kind is not FailureKind.OTHER:
        explanation += ", so requests do not find the server"
    if stored.reaches_us and kind not in _NOT_FOR_REACH and not _is_reached(stages):
        explanation += "; they reach us, but we cannot reach them"
    if _is_for_clock(stages, kind):
        advice = f"{stages[StageName.CLOCK].message}: set whichever is wrong. {advice}"
    if kind in TLS_KINDS:
        advice = f"{advice} Nothing you do helps until then."
    if kind not in _HELPED_BY_RESET:
        advice = f"{advice} {_THEIRS}"
    return Conclusion(Verdict.FAILING, kind, f"{explanation}.", advice)


def _is_reached(stages: Stages) -> bool:
    """Tell whether any request to the homeserver was answered at all."""
    return any(
        getattr(stages[name].findings, "status", None) is not None
        for name in (StageName.VERSION, StageName.KEYS, StageName.AUTHENTICATED)
    )


def _is_for_clock(stages: Stages, kind: FailureKind) -> bool:
    """Tell whether the clocks may be the cause."""
    return stages[StageName.CLOCK].outcome is StageOutcome.WARNING and kind in (
        FailureKind.REJECTED,
        FailureKind.KEYS_EXPIRED,
    )


def _degraded(stages: Stages, stage: Stage) -> Conclusion:
    kind = stage.kind or FailureKind.OTHER
    explanation, advice = explain(stages, stage, kind)
    message = _lowered(stage.message)
    if stage.name is StageName.CLOCK:
        explanation = f"Requests get through, but {message}"
        advice = "Set the clock that is wrong; see whether this host uses NTP."
    elif stage.outcome is StageOutcome.WARNING and stage.name in (
        StageName.ADDRESSES,
        StageName.CONNECTIONS,
        StageName.VERSION,
    ):
        if kind in _NOBODY_THERE:
            explanation = f"It works, but not at every address: {message}"
            advice = (
                "Synapse goes on to the next address, which takes time, and if that "
                f"fails there is none left. {advice}"
            )
        else:
            explanation = f"It works for some and not for others: {message}"
            advice = (
                "Whether a request gets through depends on the address to which it is "
                f"sent. {advice}"
            )
    elif stage.name is StageName.VERSION:
        why = summary_of(describe(kind, stage.detail))
        explanation = f"Requests get through, but it does not tell its version: {why}"
        advice = (
            "Little depends on that. Tell them that /_matrix/federation/v1/version is "
            "not answered."
        )
    elif isinstance(stage.findings, AuthenticatedFindings):
        explanation = f"Requests get through, but: {message}"
        advice = (
            "There is nothing to do, unless messages do not arrive there: ask them."
        )
    elif stage.name is StageName.CONNECTIONS:
        explanation = f"Requests get through at times only: {_lowered(explanation)}"
    elif not isinstance(stage.findings, KeysFindings):
        explanation = f"Requests get through, but: {_lowered(explanation)}"
    if stage.name is StageName.WELL_KNOWN and kind is FailureKind.WELL_KNOWN_INVALID:
        advice += " Until then Synapse finds the server without it."
    return Conclusion(
        Verdict.DEGRADED, kind, f"{explanation}.", f"{advice}{_reset_advice(stages)}"
    )


def _ok(stages: Stages) -> Conclusion:
    remark = ""
    if _is_harmless(stages[StageName.WELL_KNOWN]):
        remark = (
            " What their web server has for /.well-known/matrix/server is of no use, "
            "but it needs none."
        )
    stored = _stored(stages)
    if not stored.next_retry_ts:
        return Conclusion(
            Verdict.OK,
            None,
            "Federation with this server works.",
            f"There is nothing to do.{remark}",
        )
    return Conclusion(
        Verdict.OK,
        None,
        "Federation with this server works, but Synapse still has it as failing.",
        f"Everything works now;{_reset_advice(stages)}{remark}",
    )


def _reset_advice(stages: Stages) -> str:
    """Return what to do about a backoff that is not needed any more."""
    stored = _stored(stages)
    if not stored.next_retry_ts:
        return ""
    if stored.backoff_left_ms > _NEVER_MS:
        when = "will never try again by itself"
    elif stored.backoff_left_ms:
        when = f"will not try again for {shown_duration(stored.backoff_left_ms)}"
    else:
        when = "will try again only when something is due"
    return f" Synapse {when}. Reset the connection."


def _stored(stages: Stages) -> StoredFindings:
    findings = stages[StageName.STORED].findings
    return findings if isinstance(findings, StoredFindings) else StoredFindings(False)


def _lowered(message: str) -> str:
    """Return a message as the end of a sentence."""
    if message.startswith("Synapse"):
        return message
    return message[:1].lower() + message[1:].rstrip(".")
