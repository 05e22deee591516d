# SPDX-License-Identifier: Apache-2.0
"""The stage `clock`: a server's clock against ours."""

from synapse_federation_admin.diagnosis.findings import (
    ClockFindings,
    SkipReason,
    Stage,
    StageName,
    StageOutcome,
)
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason

# `Date` is to the second, and the answer took its time.
_UNSURE_MS = 2000

# From here on it is told as a warning: certificates and keys that have just been made
# are not valid yet, and the times of events are visibly wrong.
_MAX_DIFFERENCE_MS = 60_000


def check_clock(date_ts: int | None, received_ts: int | None) -> Stage:
    """Compare clocks.

    Args:
        date_ts: The time by the server's clock, in ms since the epoch.
        received_ts: The time by ours when that came.
    """
    if date_ts is None or received_ts is None:
        return Stage.skip(StageName.CLOCK, SkipReason.NO_DATE)
    ahead_ms = date_ts - received_ts
    if -_UNSURE_MS < ahead_ms < _UNSURE_MS:
        ahead_ms = 0
    findings = ClockFindings(date_ts, received_ts, ahead_ms)
    if abs(ahead_ms) < _MAX_DIFFERENCE_MS:
        return Stage(StageName.CLOCK, StageOutcome.OK, findings=findings)
    failure = Failure(FailureKind.OTHER, Reason.CLOCK, Facts(ahead_ms=ahead_ms))
    return Stage.failed(StageName.CLOCK, failure, findings, StageOutcome.WARNING)
