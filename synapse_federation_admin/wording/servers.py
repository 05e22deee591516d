# SPDX-License-Identifier: Apache-2.0
"""A server's status and what waits for it, and a process of ours, in words. Pure."""

from collections.abc import Mapping
from typing import Any

from synapse_federation_admin.durations import duration
from synapse_federation_admin.wording.amounts import counted

STATUSES = {
    "invalid": ("bad", "no server name"),
    "online": ("good", "not failing"),
    "unknown": ("muted", "nothing sent yet"),
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

NOT_ALLOWED = "not in federation_domain_whitelist"
"""What is told of a server that is shut out."""


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
    return "0 events behind" if is_begun else "it has never begun to send"
