# SPDX-License-Identifier: Apache-2.0
"""What the stages of a diagnosis mean: pure functions of them.

One file of over 400 lines: which finding has the last word is one order of rules.
"""

from http import HTTPStatus

import attr

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.explained import (
    explained,
    is_chosen_bad,
    is_only_send,
    is_us,
    is_waited_for,
)
from synapse_federation_admin.diagnosis.findings import (
    ConnectionsFindings,
    KeysFindings,
    StageOutcome,
    StoredFindings,
)
from synapse_federation_admin.diagnosis.resolution import WellKnownFindings
from synapse_federation_admin.diagnosis.stages import Stage, StageName, Stages
from synapse_federation_admin.failures.kinds import (
    NOBODY_THERE,
    Facts,
    Failure,
    FailureKind,
    Reason,
)
from synapse_federation_admin.failures.situation import (
    Effect,
    LastRequest,
    RealTraffic,
    Remark,
    Situation,
)

# Where to look first for what does not always work: of the file, least of all.
_WEAK = (
    StageName.SENDER,
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

# With these it is told that no transaction is taken, or whom they do not take.
_TELLS_IT = (
    Reason.SIGNED_NOT_ROUTED,
    Reason.SIGNED_UNANSWERED,
    Reason.EMPTY_TOO_LARGE,
    Reason.SIGNATURE_REJECTED,
    Reason.SIGNATURE_REMOVED,
    Reason.OUR_KEY_NOT_FETCHED,
    Reason.OTHER_HOMESERVER,
    Reason.DENIED_BY_POLICY,
    Reason.CLOCK,
)

# Requests of Synapse's own client.
_ASKED = (StageName.KEYS, StageName.AUTHENTICATED)

# What comes of it where the server is still busy with a transaction of ours.
_BUSY = {Effect.NONE: Effect.BUSY, Effect.UNPROVEN: Effect.STAYS_BUSY}

# What is said of each address by itself.
_BY_ADDRESS = (StageName.ADDRESSES, StageName.CONNECTIONS, StageName.VERSION)

# With these it is this homeserver that sends nothing.
_NOT_SENT = (
    FailureKind.INVALID_NAME,
    FailureKind.NOT_ALLOWED,
    FailureKind.IP_BLOCKED,
)

# Of these the small requests of a diagnosis prove nothing: real ones go elsewhere, are
# larger, or come at another time.
_BY_ANSWER = (
    FailureKind.REJECTED,
    FailureKind.RATE_LIMITED,
    FailureKind.GONE,
    FailureKind.HTTP_ERROR,
    FailureKind.RESPONSE_TIMEOUT,
    FailureKind.INVALID_RESPONSE,
    FailureKind.OTHER,
)

# A request that failed so shortly before contradicts the stages, whatever it met; and
# why may not be written yet.
_JUST_NOW_MS = 15_000


def conclude(stages: Stages, own_name: str = "") -> Situation:
    """Tell what the stages mean.

    Args:
        stages: All of them.
        own_name: The name of this homeserver.
    """
    stored, sent = stages.seen(StoredFindings), stages[StageName.AUTHENTICATED]
    # A real transaction that has ended meanwhile is the last.
    if stages.sent.is_real and sent.outcome is StageOutcome.OK:
        stored = (stored or StoredFindings(is_known=True))._replace(
            next_retry_ts=None,
            last_request=LastRequest.SUCCEEDED,
            last_succeeded_ago_ms=0,
        )
    real = stored.real if stored else RealTraffic(LastRequest.NOT_KNOWN)
    if stages.sent.is_real and sent.outcome is StageOutcome.FAILED:
        real = real._replace(last=LastRequest.FAILED, failed_ago_ms=0, kind=sent.kind)
    found = attr.evolve(_by_stages(stages, stored, own_name), real=real)
    sender = stages.get(StageName.SENDER)
    if sender is not None and sender.reason is Reason.SENDER_OVERLOADED:
        remarks = (*found.remarks, Remark.SENDER_OVERLOADED)
        return attr.evolve(found, remarks=remarks)
    if sender is None or sender.outcome is not StageOutcome.FAILED:
        return found
    if found.effect is Effect.STOPS and found.kind in _NOT_SENT:
        return found
    # Nothing leaves, whatever the network says; what that says is told, too.
    also = found.failure if found.effect is Effect.STOPS else None
    return Situation(
        Effect.STOPS, sender.failure, also=also, real=real, may_connect=True
    )


def _by_stages(
    stages: Stages, stored: StoredFindings | None, own_name: str
) -> Situation:
    if (us := is_us(stages, own_name)) is not None:
        return Situation(Effect.STOPS, us)
    failing = _failing_stage(stages)
    if failing is not None:
        return _failing(stages, failing)
    authenticated = stages[StageName.AUTHENTICATED]
    if authenticated.outcome is StageOutcome.SKIPPED:
        failure = authenticated.failure or Failure(FailureKind.INTERNAL)
        return Situation(Effect.NOT_KNOWN, failure)
    left_ms = stored.backoff_left_ms if stored and stored.next_retry_ts else None
    real_effect, kind = _met_by_real(stored)
    last = stored.last_met if stored else None
    met = last.message if last and kind and last.kind == kind.value else ""
    if real_effect in (Effect.REFUSES, Effect.REFUSES_LARGE):
        found = kind and Failure(kind)
        return Situation(real_effect, found, may_connect=True, met=met)
    weak = _uneven_stage(stages) or _weak_stage(stages)
    took_ms = _slow_ms(stages)
    if took_ms and (weak is None or weak.name is StageName.VERSION):
        slow = Failure(FailureKind.OTHER, Reason.SLOW, Facts(took_ms=took_ms))
        return Situation(Effect.WORKS, slow, (), left_ms)
    if weak is None:
        is_busy = stages.status(StageName.AUTHENTICATED) == HTTPStatus.TOO_MANY_REQUESTS
        if is_busy:
            real_effect = _BUSY.get(real_effect, real_effect)
        found, remarks = kind and Failure(kind), _harmless(stages)
        return Situation(real_effect, found, remarks, left_ms, met=met)
    failure = explained(stages, weak)
    is_file = failure.kind is FailureKind.WELL_KNOWN_INVALID
    remarks = (Remark.FOUND_WITHOUT_FILE,) if is_file else ()
    effect = _effect_of(stages, weak, failure)
    return Situation(effect, failure, remarks, left_ms)


def _met_by_real(stored: StoredFindings | None) -> tuple[Effect, FailureKind | None]:
    """Return what real requests add to stages in order: what comes of it, and why."""
    if stored is None:
        return Effect.NONE, None
    if stored.last_request is not LastRequest.FAILED:
        if stored.refused_bytes:
            # That a small one was accepted since disproves nothing.
            return Effect.REFUSES_LARGE, FailureKind.TOO_LARGE
        return Effect.NONE, None
    kind = stored.last_kind
    if kind is FailureKind.TOO_LARGE:
        return Effect.REFUSES, kind
    # That a connection, a name or a certificate is bad, the stages have disproved.
    is_just_now = (stored.last_failed_ago_ms or 0) < _JUST_NOW_MS
    if kind in _BY_ANSWER or is_just_now:
        return Effect.UNPROVEN, kind
    return Effect.NONE, None


def _working(stages: Stages) -> int:
    """Return at how many addresses a homeserver answers."""
    found = stages.seen(ConnectionsFindings)
    return sum(
        c.outcome is StageOutcome.OK and not (c.version and c.version.error)
        for c in (found.connections if found else ())
    )


def _may_connect(stages: Stages, stage: Stage) -> bool:
    """Tell whether a reconnect may get through where a stage fails.

    Its contact takes no keys, is small, and does not go by what Synapse has cached of a
    file.
    """
    is_taken = stages[StageName.AUTHENTICATED].outcome is StageOutcome.OK
    is_cached = stage.name is StageName.WELL_KNOWN and stage.kind is FailureKind.OTHER
    return is_taken or is_cached or stages.sent.is_real


def _failing(stages: Stages, stage: Stage) -> Situation:
    failure = explained(stages, stage)
    stored = stages.seen(StoredFindings)
    remarks = []
    also = _also(stages, stage)
    is_told = failure.reason in _TELLS_IT or failure.kind is FailureKind.RATE_LIMITED
    if is_only_send(stages, stage) and not is_told and not stages.sent.is_real:
        remarks.append(Remark.ONLY_SEND)
    working = _working(stages)
    if stage.outcome is StageOutcome.WARNING and stage.name in _BY_ADDRESS and working:
        remarks.append(Remark.ANOTHER_WORKS)
    if is_only_send(stages, stage) and working > 1:
        remarks.append(Remark.ONE_OF_SEVERAL)
    if also is not None and stage.name is StageName.WELL_KNOWN:
        remarks.append(Remark.FILE_IS_WHY)
    elif stage.kind is FailureKind.WELL_KNOWN_UNREACHABLE:
        remarks.append(Remark.FILE_IS_LATE)
    is_reached = any(stages.status(name) for name in (StageName.VERSION, *_ASKED))
    if (
        stored is not None
        # That they did before it failed says nothing: they may have gone down since.
        and stored.failing_since_ts is not None
        and stored.reaches_us
        and failure.kind not in _NOT_SENT
        and not is_reached
    ):
        remarks.append(Remark.THEY_REACH_US)
    may_connect = _may_connect(stages, stage)
    return Situation(
        Effect.STOPS, failure, tuple(remarks), also=also, may_connect=may_connect
    )


def _also(stages: Stages, stage: Stage) -> Failure | None:
    """Return the second of two facts.

    Of the file, and of where requests go without; of what we send, and of their keys.
    """
    keys = stages[StageName.KEYS]
    if stage.name is StageName.AUTHENTICATED:
        is_another = _met(keys) is not stage.kind
        is_failed = keys.outcome is StageOutcome.FAILED
        return keys.failure if is_failed and is_another else None
    file, found = stages[StageName.WELL_KNOWN], stages.seen(WellKnownFindings)
    if stage is file:
        others = (stages[name] for name in _BY_ADDRESS[:2])
        failed = (s.failure for s in others if s.outcome is StageOutcome.FAILED)
        return next(failed, None)
    web = found.requests[-1].error if found else None
    is_told = (
        stage.name in _BY_ADDRESS[:2]
        and file.outcome is StageOutcome.WARNING
        and file.kind is not FailureKind.OTHER
        and not _is_harmless(stages, file)
        and not stages.is_led_elsewhere
        # One fault at both places is one fact.
        and not (web is not None and web.kind is stage.kind)
    )
    return file.failure if is_told else None


# Which stage counts.


def _failing_stage(stages: Stages) -> Stage | None:
    """Return the stage because of which requests fail; None if they do not."""
    authenticated = stages[StageName.AUTHENTICATED]
    failed = [
        stages[name] for name in _WAY if stages[name].outcome is StageOutcome.FAILED
    ]
    file = stages[StageName.WELL_KNOWN]
    if file in failed and authenticated.outcome is not StageOutcome.OK:
        # What answers is at a path that the file names, and no homeserver.
        return file
    if authenticated.outcome is StageOutcome.OK:
        # A request got through: what else fails, fails at times. But without its keys,
        # nothing that the server sends can be verified.
        failed = [stages[StageName.KEYS]] if stages[StageName.KEYS] in failed else []
    has_keys = stages.status(StageName.KEYS) == HTTPStatus.OK
    if has_keys or stages.sent.errcode or authenticated.is_ours:
        # Without its version a homeserver can do.
        failed = [stage for stage in failed if stage.name is not StageName.VERSION]
    uneven = _uneven_stage(stages)
    if not failed or uneven is not None:
        is_always = authenticated.outcome is StageOutcome.FAILED
        return uneven if failed and is_always and is_chosen_bad(stages) else None
    first = failed[0]
    if first.name is StageName.KEYS and authenticated in failed:
        # Whatever the keys are, nothing arrives there.
        first = authenticated
    if _is_file_why(stages, first):
        return stages[StageName.WELL_KNOWN]
    return first


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
            and stages.status(failed.name) is None
        )
    # Requests go to where nobody is; but there is a web server.
    web = file.requests[0].error
    return (
        failed.name in _BY_ADDRESS[:2]
        and failed.kind in NOBODY_THERE
        and stage.outcome is StageOutcome.WARNING
        and stage.kind is not FailureKind.OTHER
        and not stages.is_led_elsewhere
        and not (web is not None and web.kind in NOBODY_THERE)
    )


def _uneven_stage(stages: Stages) -> Stage | None:
    """Return the stage in which only some addresses are bad, if Synapse met those.

    Else None: Synapse's own requests go to one address each, and have failed by luck.
    """
    asked = [stages[name] for name in _ASKED]
    met = {_met(stage) for stage in asked if stage.outcome is StageOutcome.FAILED}
    uneven = [
        stages[name]
        for name in _BY_ADDRESS[1:]
        if stages[name].outcome is StageOutcome.WARNING
    ]
    kinds = {
        kind
        for stage in uneven
        if stage.failure
        for kind in (stage.kind, *stage.failure.facts.also)
    }
    return uneven[0] if met and met <= kinds else None


def _weak_stage(stages: Stages) -> Stage | None:
    """Return the stage that shows best why federation does not always work."""
    for outcome in (StageOutcome.FAILED, StageOutcome.WARNING):
        for name in _WEAK:
            stage = stages[name]
            if stage.outcome is outcome and not _is_harmless(stages, stage):
                return stage
    return None


def _harmless(stages: Stages) -> tuple[Remark, ...]:
    """Return what to say of their web server where it does no harm."""
    stage = stages[StageName.WELL_KNOWN]
    if not _is_harmless(stages, stage):
        return ()
    is_tls = stage.failure is not None and stage.failure.facts.cause is not None
    return (Remark.HARMLESS_TLS if is_tls else Remark.HARMLESS_PAGE,)


def _slow_ms(stages: Stages) -> int:
    """Return how long a signed request took to be answered, if that is slow; else 0."""
    version, addresses = stages[StageName.VERSION], stages[StageName.ADDRESSES]
    if version.outcome is StageOutcome.FAILED and (
        version.kind is not FailureKind.RESPONSE_TIMEOUT
    ):
        return 0
    # It begins with the same look-ups.
    took_ms = stages[StageName.AUTHENTICATED].duration_ms - addresses.duration_ms
    return took_ms if took_ms >= limits.SLOW_MS else 0


def _is_harmless(stages: Stages, stage: Stage) -> bool:
    """Tell whether something does no harm: the page of some web site, not a file.

    Or that a sender is overloaded that has come to all events so far.
    """
    if stage.reason is Reason.SENDER_OVERLOADED:
        return True
    file = stages.seen(WellKnownFindings)
    return (
        stage.name is StageName.WELL_KNOWN
        and stage.outcome is StageOutcome.WARNING
        and file is not None
        and not file.suggests_delegation
    )


def _effect_of(stages: Stages, stage: Stage, failure: Failure) -> Effect:
    """Return what comes of something that does not always stop requests."""
    if stage.outcome is StageOutcome.WARNING and stage.name in _BY_ADDRESS:
        if failure.kind is FailureKind.OTHER:
            return Effect.WORKS
        if failure.kind is FailureKind.CONNECTION_TIMEOUT and is_waited_for(stages):
            return Effect.WAITS_FOR_ADDRESS
        is_skipped = failure.kind in NOBODY_THERE
        return Effect.NEXT_ADDRESS if is_skipped else Effect.SOME_REQUESTS
    if stage.name is StageName.VERSION:
        return Effect.NO_VERSION
    if failure.reason is Reason.NOT_YET_ANSWERED:
        return Effect.ANSWERS_SOME
    return Effect.AT_TIMES if stage.name is StageName.CONNECTIONS else Effect.WORKS


def _met(stage: Stage) -> FailureKind | None:
    """Return what a request has met: of that for keys, not what it means for them."""
    findings = stage.findings
    if isinstance(findings, KeysFindings) and findings.error is not None:
        return findings.error.kind
    return stage.kind
