# SPDX-License-Identifier: Apache-2.0
"""A server's status and what waits for it, and a process of ours, in words. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from synapse_federation_admin.durations import duration
from synapse_federation_admin.wording.amounts import counted

STATUSES = {
    "invalid": ("bad", "no server name"),
    "online": ("good", "not failing"),
    "unknown": ("muted", "no event delivered yet"),
}
"""What is told of each status of what is not failing: its look, and a word."""

SENDERS = {
    "running": ("good", "running"),
    "late": ("warn", "late"),
    "nobody": ("bad", "no process sends"),
    "never_seen": ("bad", "never seen with this module"),
    "gone": ("bad", "gone"),
}
"""What is told of each state of a process that sends."""

# What was met this long before a server began to fail is why it fails.
_MOMENT_MS = 1000

NOT_ALLOWED = "not in federation_domain_whitelist"
"""What is told of a server that is shut out."""


def is_why(server: Mapping[str, Any]) -> bool:
    """Tell whether the last failure of a server is why it fails.

    What was met before it began to fail is not.
    """
    if not (last := server.get("last_failure")):
        return False
    since_ts = server.get("failure_ts") or server.get("retry_last_ts") or 0
    return bool(last["last_ts"] >= since_ts - _MOMENT_MS)


def is_unanswered(server: Mapping[str, Any]) -> bool:
    """Tell whether a server that is not in backoff has not answered since it failed.

    So it is after a reset, until a request gets through. That its outage has ended is
    found out up to a minute later.
    """
    if server.get("next_retry_ts") is not None:
        return False
    down_ts = (server.get("availability") or {}).get("down_since_ts") or 0
    failed_ts = max(down_ts, (server.get("last_failure") or {}).get("last_ts", 0))
    # Lists without failures do not have it.
    return bool(failed_ts > (server.get("last_success_ts", failed_ts) or 0))


def waiting(backlog: Mapping[str, Any] | None) -> str:
    """Return what waits for a server; a dash where nothing does."""
    words = {
        "rooms": "room",
        "to_device_messages": "message",
        "device_list_updates": "device change",
    }
    numbers = backlog or {}
    told = [
        counted(numbers[key], word) for key, word in words.items() if numbers.get(key)
    ]
    return ", ".join(told) or "\u2013"


def nothing_waits(senders: Iterable[Mapping[str, Any]] | None) -> tuple[str, str]:
    """Return what is told where nothing is queued: a look, and a sentence.

    What a process that sends has not come to is in no queue.

    Args:
        senders: As in the summary; None: that is not known.
    """
    unknown = [s for s in senders or ({},) if s.get("behind_events") is None]
    if not unknown:
        return "good", "Nothing waits."
    names = ", ".join(str(s["instance"]) for s in unknown if s.get("instance"))
    who = f"{names} {'has' if len(unknown) == 1 else 'have'}" if names else "we have"
    return "warn", f"Nothing is queued; how far {who} come with sending is not known."


def lasted(outage: Mapping[str, Any]) -> str:
    """Return how long an outage lasted, and how it ended, if not by itself."""
    is_over = outage.get("end_ts") is not None
    told = duration(outage["duration_ms"]) if is_over else "lasts"
    if up_ms := outage.get("up_ms"):
        told += f", {duration(up_ms)} of it not failing"
    ended = outage.get("ended")
    return f"{told}, {ended}" if ended and ended != "recovered" else told


def how_far(sender: Mapping[str, Any]) -> str:
    """Return how far a process that sends has come."""
    if ahead := sender.get("ahead_events"):
        events = counted(ahead, "event")
        return f"ahead by {events}: as many to come are not sent"
    if behind := sender.get("behind_events"):
        more = " or more" if behind >= 10_000 else ""
        late_ms = sender.get("behind_ms")
        by = f", {duration(late_ms)}" if late_ms else ""
        return f"{counted(behind, 'event')}{more} behind{by}"
    if not sender.get("instance"):
        return ""
    is_begun = sender.get("position") is not None
    return "0 events behind" if is_begun else "it has queued no event yet"
