# SPDX-License-Identifier: Apache-2.0
"""Us: whether it is this homeserver, its senders and processes, what works here."""

from typing import Any

from synapse_federation_admin.api.instances import list_instances
from synapse_federation_admin.api.status import get_status
from synapse_federation_admin.api.summary import summarize
from synapse_federation_admin.console.visit import Answered, Page, Visit
from synapse_federation_admin.history.correlation import CorrelationVerdict
from synapse_federation_admin.storage.instances import InstanceState

STATES = {
    InstanceState.RUNNING: ("good", "runs"),
    InstanceState.LATE: ("warn", "late"),
    InstanceState.GONE: ("bad", "gone"),
    InstanceState.NEVER_SEEN: ("bad", "never seen"),
    InstanceState.NOBODY: ("bad", "nobody sends"),
}
"""What is told of each state of a process: its sign, and a word."""

OUTLOOKS = {
    CorrelationVerdict.NORMAL: ("good", "✓", "Nothing points to us"),
    CorrelationVerdict.US: ("bad", "✗", "It is likely to be us"),
    CorrelationVerdict.SHARED: (
        "warn",
        "!",
        "Servers fail together, for a cause that they share",
    ),
}
"""What is told of each verdict of the outlook: its class, its sign, a sentence."""


async def show_us(visit: Visit) -> Answered:
    """Show what is known of this homeserver itself.

    GET /_synapse/admin/federation/us
    """
    summary = await visit.ask_if_on(summarize)
    instances = await visit.ask_if_on(list_instances)
    status = await visit.ask(get_status)
    outlook = summary and summary.outlook
    return Page(
        "us.html",
        {
            "title": "Us",
            "outlook": outlook,
            "told": told_of(outlook) if outlook else None,
            "senders": (summary and summary.senders) or [],
            "not_yet_queued": summary and summary.not_yet_queued,
            "indexes": summary and summary.indexes,
            "instances": instances and instances.instances,
            "status": status,
            "states": STATES,
        },
    )


def told_of(outlook: Any) -> tuple[str, str, str]:
    """Return what is told of the outlook: its class, its sign, a sentence."""
    tried = outlook.last_hour
    is_normal = outlook.verdict is CorrelationVerdict.NORMAL
    if is_normal and tried.tried and not tried.failing:
        return "good", "✓", "Nothing that was tried lately fails"
    if is_normal and not outlook.can_be_told:
        return "muted", "?", "Too few servers were tried lately to tell"
    return OUTLOOKS[outlook.verdict]
