# SPDX-License-Identifier: Apache-2.0
"""The audit: who did what, when, why, and the outcome."""

from collections.abc import Mapping
from enum import Enum
from typing import Annotated

import attr


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Actor:
    """Who makes a change.

    Attributes:
        user_id: The user whose access token it was.
        puppeted_by: Who acts as that user with a token from Synapse's admin API; None
            if nobody does.
    """

    user_id: str
    puppeted_by: str | None = None


class AuditAction(Enum):
    """What was done through this module."""

    # v1's reset_connection.
    RESET = "reset"

    # One destination was contacted, removed, or had its backoff shortened: by itself or
    # in a run.
    RECONNECT = "reconnect"
    FORGET = "forget"
    CAP_BACKOFF = "cap_backoff"

    # What processes keep in memory of one destination was dropped.
    FLUSH_CACHES = "flush_caches"

    # A run as a whole, and that it was cancelled.
    BULK_RECONNECT = "bulk_reconnect"
    BULK_FORGET = "bulk_forget"
    BULK_CAP_BACKOFF = "bulk_cap_backoff"
    CANCEL = "cancel"


# With what the action of a run as a whole begins.
WHOLE = "bulk_"

# The outcome of what has not come to its end yet, and of what never will, because the
# process that did it has ended.
AUDIT_PENDING = "pending"
AUDIT_INTERRUPTED = "interrupted"

# The outcome of what has gone wrong on our side.
AUDIT_FAILED = "failed"

# The outcome of a destination that was forgotten.
AUDIT_FORGOTTEN = "forgotten"

# The outcome of a flush, if all processes were told, and if some were not.
AUDIT_FLUSHED = "flushed"
AUDIT_FLUSHED_IN_PART = "flushed_in_part"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AuditEntry:
    """One thing that was done through this module.

    Attributes:
        entry_id: The entry's ID.
        ts: When it began, in ms since the epoch.
        action: What was done.
        actor: Who did it.
        instance: The process; the main process is `main`.
        outcome: What came of it; `pending` while that is not known, `interrupted` if
            its process ended before, or if it was not known after a day, `failed` if
            the database failed at its end.
        destination: The destination; None if it was done to many.
        reason: Why, as the admin said; None if not said.
        run_id: The run that it belongs to, or is; None if there is none.
        ended_ts: When it ended; None if it has not. Of what is `pending`: when the
            retry timings were cleared, since when it waits for the first real request.
        details: What else there is to know, depending on the action; as JSON has it.
    """

    entry_id: str
    ts: int
    action: Annotated[str, AuditAction]
    actor: Actor
    instance: str
    outcome: str
    destination: str | None = None
    reason: str | None = None
    run_id: str | None = None
    ended_ts: int | None = None
    details: Mapping[str, object] = attr.Factory(dict)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AuditFilter:
    """Which entries of the audit to read: those that meet every condition.

    Attributes:
        destination: The exact name of the destination; None: any.
        user_id: The user, or the admin who acted as that user; None: any.
        actions: The actions; empty: all.
        outcome: The outcome; None: any.
        run_id: The bulk run; None: any.
        since_ts: Keep what began then or later.
        until_ts: Keep what began before.
    """

    destination: str | None = None
    user_id: str | None = None
    actions: frozenset[AuditAction] = frozenset()
    outcome: str | None = None
    run_id: str | None = None
    since_ts: int | None = None
    until_ts: int | None = None
