# SPDX-License-Identifier: Apache-2.0
"""The stage `clock`: a server's clock against ours."""

from synapse_federation_admin.diagnosis.findings import (
    ClockFindings,
    Stage,
    StageName,
    StageOutcome,
)
from synapse_federation_admin.failures.kinds import FailureKind

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
        return Stage(
            StageName.CLOCK,
            StageOutcome.SKIPPED,
            "No answer of the server tells the time",
        )
    ahead_ms = date_ts - received_ts
    if -_UNSURE_MS < ahead_ms < _UNSURE_MS:
        ahead_ms = 0
    findings = ClockFindings(date_ts, received_ts, ahead_ms)
    direction = "ahead of" if ahead_ms > 0 else "behind"
    message = (
        f"Its clock is {shown_duration(abs(ahead_ms))} {direction} ours"
        if ahead_ms
        else "Its clock and ours agree"
    )
    if abs(ahead_ms) < _MAX_DIFFERENCE_MS:
        return Stage(StageName.CLOCK, StageOutcome.OK, message, findings=findings)
    return Stage(
        StageName.CLOCK,
        StageOutcome.WARNING,
        message,
        FailureKind.OTHER,
        findings=findings,
    )


def shown_duration(duration_ms: int) -> str:
    """Return a duration as a person reads it: `3 days`, `31 h`, `5 min`, `12 s`."""
    seconds = duration_ms // 1000
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
