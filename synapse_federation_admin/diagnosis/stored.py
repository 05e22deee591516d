# SPDX-License-Identifier: Apache-2.0
"""The stage `stored`: what Synapse holds of a server."""

from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.diagnosis.clock import shown_duration
from synapse_federation_admin.diagnosis.findings import (
    Stage,
    StageName,
    StageOutcome,
    StoredFindings,
)
from synapse_federation_admin.storage.failures import RecordedFailure


def check_stored(
    row: Destination | None,
    backlog: Backlog,
    last_inbound_ts: int | None,
    last_failure: RecordedFailure | None,
    *,
    now_ms: int,
) -> Stage:
    """Tell what is stored.

    Args:
        row: Synapse's row for the server; None if there is none.
        backlog: What waits for it.
        last_inbound_ts: When it last sent us a transaction, within the last day.
        last_failure: The last failure of a real request to it that was recorded.
        now_ms: The time, in ms since the epoch.
    """
    if row is None:
        findings = StoredFindings(
            is_known=False,
            backlog=backlog,
            last_inbound_ts=last_inbound_ts,
            reaches_us=last_inbound_ts is not None,
            last_failure=last_failure,
        )
        return Stage(
            StageName.STORED,
            StageOutcome.OK,
            "Synapse has never sent anything to it",
            findings=findings,
        )
    next_retry_ts = row.next_retry_ts
    left_ms = 0 if next_retry_ts is None else max(0, next_retry_ts - now_ms)
    is_failing = row.is_failing
    failing_since_ts = (row.failure_ts or 0) if is_failing else 0
    reaches_us = last_inbound_ts is not None and last_inbound_ts > failing_since_ts
    findings = StoredFindings(
        is_known=True,
        status=row.status(now_ms).value,
        failing_since_ts=row.failure_ts if is_failing else None,
        next_retry_ts=next_retry_ts,
        backoff_left_ms=left_ms,
        backlog=backlog,
        last_inbound_ts=last_inbound_ts,
        reaches_us=reaches_us,
        last_failure=last_failure,
    )
    if not is_failing:
        return Stage(
            StageName.STORED,
            StageOutcome.OK,
            "Synapse does not have it as failing",
            findings=findings,
        )
    since = (
        f"for {shown_duration(max(0, now_ms - row.failure_ts))}"
        if row.failure_ts
        else "for an unknown time"
    )
    message = f"Synapse has it as failing {since}, and tries it again "
    message += f"in {shown_duration(left_ms)}" if left_ms else "when something is due"
    if reaches_us and last_inbound_ts is not None:
        ago = shown_duration(max(0, now_ms - last_inbound_ts))
        message += f". It reaches us: it last did so {ago} ago"
    return Stage(StageName.STORED, StageOutcome.WARNING, message, findings=findings)
