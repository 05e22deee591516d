# SPDX-License-Identifier: Apache-2.0
"""The stage `sender`: the process of this homeserver that sends to a server."""

from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.diagnosis.findings import SenderFindings, StageOutcome
from synapse_federation_admin.diagnosis.stages import Stage, StageName
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.process import stored_instance
from synapse_federation_admin.storage.instances import (
    REACTOR_LATE_MS,
    InstanceState,
)

# Behind by so long, events are late; or it does not get on. One that keeps up takes
# less, and one that hangs is known as gone only after a minute.
_LATE_MS = 15_000
_STUCK_MS = 3_600_000

_DOWN = {
    InstanceState.NOBODY: Reason.NOBODY_SENDS,
    InstanceState.NEVER_SEEN: Reason.SENDER_NEVER_SEEN,
}


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
    most_ms = _LATE_MS if known is Reason.SENDER_OVERLOADED else _STUCK_MS
    if sender.is_late and behind_ms < most_ms:
        facts = Facts(instance=name, took_ms=took_ms)
        failure = Failure(FailureKind.SENDER_BEHIND, known, facts)
        return Stage.failed(StageName.SENDER, failure, findings, StageOutcome.WARNING)
    if behind_ms >= _LATE_MS:
        facts = Facts(instance=name, ago_ms=behind_ms)
        failure = Failure(FailureKind.SENDER_BEHIND, facts=facts)
        is_stuck = behind_ms >= _STUCK_MS
        outcome = StageOutcome.FAILED if is_stuck else StageOutcome.WARNING
        return Stage.failed(StageName.SENDER, failure, findings, outcome)
    return Stage(StageName.SENDER, StageOutcome.OK, findings=findings)
