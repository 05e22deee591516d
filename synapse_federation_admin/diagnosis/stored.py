# SPDX-License-Identifier: Apache-2.0
"""The stage `stored`: what Synapse holds of a server."""

from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.diagnosis.findings import (
    Stage,
    StageName,
    StageOutcome,
    StoredFindings,
)
from synapse_federation_admin.storage.records import RecordedFailure


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
    is_failing = row is not None and row.is_failing
    since_ts = row.failure_ts if row and is_failing else None
    retry_ts = row.next_retry_ts if row else None
    findings = StoredFindings(
        is_known=row is not None,
        status=row.status(now_ms).value if row else None,
        failing_since_ts=since_ts,
        next_retry_ts=retry_ts,
        backoff_left_ms=0 if retry_ts is None else max(0, retry_ts - now_ms),
        backlog=backlog,
        last_inbound_ts=last_inbound_ts,
        reaches_us=last_inbound_ts is not None and last_inbound_ts > (since_ts or 0),
        last_failure=last_failure,
    )
    outcome = StageOutcome.WARNING if is_failing else StageOutcome.OK
    return Stage(StageName.STORED, outcome, findings=findings)
