# SPDX-License-Identifier: Apache-2.0
"""The values that travel between the rooms: frozen, slotted, with their units.

A name that ends in `_ts` is a time in ms since the Unix epoch, one that ends in `_ms`
a duration in ms.
"""

from synapse_federation_admin.models.audit import (
    AUDIT_FAILED,
    AUDIT_INTERRUPTED,
    AUDIT_PENDING,
    Actor,
    AuditAction,
    AuditEntry,
    AuditFilter,
)
from synapse_federation_admin.models.destinations import (
    NULL_IS_ZERO,
    Backlog,
    BacklogSummary,
    BacklogTotals,
    Counts,
    Destination,
    DestinationFilter,
    DestinationOrder,
    DestinationRoom,
    DestinationStatus,
    Direction,
    FailureAge,
    IndexState,
    Page,
    Position,
    Reach,
    Sort,
    Summary,
    Unlisted,
)
from synapse_federation_admin.models.failure import (
    Failure,
    FailureKind,
)
from synapse_federation_admin.models.removal import (
    Clamped,
    Forgotten,
    ManyForgotten,
    Waiting,
)
from synapse_federation_admin.models.repair import (
    Contact,
    ReconnectOutcome,
    ResetOutcome,
    Told,
)
from synapse_federation_admin.models.runs import (
    Queued,
    Run,
    RunCriteria,
    RunError,
    RunErrors,
    RunOutcome,
    RunResult,
    RunStatus,
)

__all__ = [
    "AUDIT_FAILED",
    "AUDIT_INTERRUPTED",
    "AUDIT_PENDING",
    "NULL_IS_ZERO",
    "Actor",
    "AuditAction",
    "AuditEntry",
    "AuditFilter",
    "Backlog",
    "BacklogSummary",
    "BacklogTotals",
    "Clamped",
    "Contact",
    "Counts",
    "Destination",
    "DestinationFilter",
    "DestinationOrder",
    "DestinationRoom",
    "DestinationStatus",
    "Direction",
    "Failure",
    "FailureAge",
    "FailureKind",
    "Forgotten",
    "IndexState",
    "ManyForgotten",
    "Page",
    "Position",
    "Queued",
    "Reach",
    "ReconnectOutcome",
    "ResetOutcome",
    "Run",
    "RunCriteria",
    "RunError",
    "RunErrors",
    "RunOutcome",
    "RunResult",
    "RunStatus",
    "Sort",
    "Summary",
    "Told",
    "Unlisted",
    "Waiting",
]
