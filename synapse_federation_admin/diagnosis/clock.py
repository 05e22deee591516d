# SPDX-License-Identifier: Apache-2.0
"""The stage `clock`: a server's clock against ours."""

from synapse_federation_admin.diagnosis.findings import (
    ClockFindings,
    KeysFindings,
    SkipReason,
    Stage,
    StageName,
    StageOutcome,
    Stages,
    VersionFindings,
)
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason

# `Date` is to the second, and the answer took its time.
_UNSURE_MS = 2000

# From here on it is told as a warning: certificates and keys that have just been made
# are not valid yet, and the times of events are visibly wrong.
_MAX_DIFFERENCE_MS = 60_000


def check_clock(stages: Stages) -> Stage:
    """Compare clocks by the first answer of the homeserver that tells the time."""
    for found in (stages.seen(VersionFindings), stages.seen(KeysFindings)):
        if found and found.date_ts is not None and found.received_ts is not None:
            return _compare(found.date_ts, found.received_ts)
    return Stage.skip(StageName.CLOCK, SkipReason.NO_DATE)


def _compare(date_ts: int, received_ts: int) -> Stage:
    ahead_ms = date_ts - received_ts
    if -_UNSURE_MS < ahead_ms < _UNSURE_MS:
        ahead_ms = 0
    findings = ClockFindings(date_ts, received_ts, ahead_ms)
    if abs(ahead_ms) < _MAX_DIFFERENCE_MS:
        return Stage(StageName.CLOCK, StageOutcome.OK, findings=findings)
    failure = Failure(FailureKind.OTHER, Reason.CLOCK, Facts(ahead_ms=ahead_ms))
    return Stage.failed(StageName.CLOCK, failure, findings, StageOutcome.WARNING)
