# SPDX-License-Identifier: Apache-2.0
"""The stages `stored` and `sender`: what is known here of a server, and who sends."""

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.diagnosis.findings import (
    SenderFindings,
    StageOutcome,
    StoredFindings,
)
from synapse_federation_admin.diagnosis.stages import Stage, StageName
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.situation import LastRequest
from synapse_federation_admin.homeserver.process import stored_instance
from synapse_federation_admin.storage.instances import REACTOR_LATE_MS, InstanceState
from synapse_federation_admin.storage.records import Recorded

# Behind by so long, it does not get on.
_STUCK_MS = 3_600_000

_DOWN = {
    InstanceState.NOBODY: Reason.NOBODY_SENDS,
    InstanceState.NEVER_SEEN: Reason.SENDER_NEVER_SEEN,
}


def check_stored(
    row: Destination | None,
    backlog: Backlog,
    last_inbound_ts: int | None,
    recorded: Recorded | None,
    *,
    now_ms: int,
) -> Stage:
    """Tell what is stored.

    Args:
        row: Synapse's row for the server; None if there is none.
        backlog: What waits for it.
        last_inbound_ts: When it last sent us a transaction, within the last day.
        recorded: What real requests to it met; None: that is not known.
        now_ms: The time, in ms since the epoch.
    """
    is_failing = row is not None and row.is_failing
    since_ts = row.failure_ts if row and is_failing else None
    retry_ts = row.next_retry_ts if row else None
    known = recorded or Recorded()
    failures_ts = [
        ts
        for ts in (
            row.retry_last_ts if row and is_failing else None,
            known.failure.last_ts if known.failure else None,
        )
        if ts is not None
    ]
    failed_ts = max(failures_ts, default=None)
    findings = StoredFindings(
        is_known=row is not None,
        status=row.status(now_ms).value if row else None,
        failing_since_ts=since_ts,
        next_retry_ts=retry_ts,
        backoff_left_ms=0 if retry_ts is None else max(0, retry_ts - now_ms),
        backlog=backlog,
        last_inbound_ts=last_inbound_ts,
        reaches_us=last_inbound_ts is not None and last_inbound_ts > (since_ts or 0),
        last_failure=known.failure,
        refused_bytes=known.refused_bytes,
        last_success_ts=known.success_ts,
        last_request=_last(failed_ts, known.success_ts, is_recorded=bool(recorded)),
        last_failed_ago_ms=_ago_ms(failed_ts, now_ms),
        last_succeeded_ago_ms=_ago_ms(known.success_ts, now_ms),
    )
    outcome = StageOutcome.WARNING if is_failing else StageOutcome.OK
    return Stage(StageName.STORED, outcome, findings=findings)


def _last(
    failed_ts: int | None, success_ts: int | None, *, is_recorded: bool
) -> LastRequest:
    """Tell what came of the last real request: a failure before a success is over."""
    if failed_ts is not None and failed_ts >= (success_ts or 0):
        return LastRequest.FAILED
    if success_ts is not None:
        return LastRequest.SUCCEEDED
    return LastRequest.NONE if is_recorded else LastRequest.NOT_KNOWN


def _ago_ms(ts: int | None, now_ms: int) -> int | None:
    return None if ts is None else max(0, now_ms - ts)


def check_sender(sender: Sender, queued: int | None, *, now_ms: int) -> Stage:
    """Tell whether what is for a server leaves this homeserver.

    Args:
        sender: Who sends to it, and how far it has come.
        queued: Up to which event it is proven that the sender has queued all; None: not
            known.
        now_ms: The time, in ms since the epoch.
    """
    findings = SenderFindings(sender, queued)
    name = sender.instance or ""
    if sender.is_down:
        reason = _DOWN.get(sender.state, Reason.SENDER_GONE)
        # By the clock of the database, which may differ from ours.
        ago_ms = max(0, now_ms - sender.seen_ts) if sender.seen_ts else None
        facts = Facts(instance=name, ago_ms=ago_ms)
        failure = Failure(FailureKind.SENDER_DOWN, reason, facts)
        return Stage.failed(StageName.SENDER, failure, findings)
    if sender.ahead_events:
        known = Reason.POSITION_AHEAD if queued is not None else Reason.POSITION_LOST
        row = stored_instance(name).replace("'", "''")
        facts = Facts(instance=name, position=queued, target=row)
        failure = Failure(FailureKind.SENDER_BEHIND, known, facts)
        return Stage.failed(StageName.SENDER, failure, findings)
    behind_ms = sender.behind_ms or 0
    took_ms = sender.reactor_late_ms or 0
    known = Reason.SENDER_NOT_SEEN
    if took_ms >= REACTOR_LATE_MS:
        known = Reason.SENDER_OVERLOADED
    # One that is behind may be so for other reasons.
    most_ms = limits.BEHIND_MS if known is Reason.SENDER_OVERLOADED else _STUCK_MS
    if sender.is_late and behind_ms < most_ms:
        facts = Facts(instance=name, took_ms=took_ms)
        failure = Failure(FailureKind.SENDER_BEHIND, known, facts)
        return Stage.failed(StageName.SENDER, failure, findings, StageOutcome.WARNING)
    if behind_ms >= limits.BEHIND_MS:
        facts = Facts(instance=name, ago_ms=behind_ms)
        failure = Failure(FailureKind.SENDER_BEHIND, facts=facts)
        is_stuck = behind_ms >= _STUCK_MS
        outcome = StageOutcome.FAILED if is_stuck else StageOutcome.WARNING
        return Stage.failed(StageName.SENDER, failure, findings, outcome)
    return Stage(StageName.SENDER, StageOutcome.OK, findings=findings)
