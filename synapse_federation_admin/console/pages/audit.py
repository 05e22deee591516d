# SPDX-License-Identifier: Apache-2.0
"""The audit: who did what, when, why, and what came of it."""

from datetime import datetime, timedelta, timezone
from typing import Any

from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.console.visit import Answered, Page, Visit
from synapse_federation_admin.storage.values import AuditAction
from synapse_federation_admin.wording import outcomes

# How many rows a page has.
_ROWS = 30

# What the form offers; the API takes every text.
_OUTCOMES = tuple(outcomes.OUTCOMES)

_TEXTS = ("destination", "user", "outcome", "run_id")


async def show_audit(visit: Visit) -> Answered:
    """Show a page of the audit, the newest first.

    GET /_synapse/admin/federation/audit?destination=&user=&action=&outcome=&run_id=

    Beside those of the API there are `since` and `until`: days such as 2026-11-27, of
    UTC, both included. An empty parameter is as none.
    """
    given = {name: visit.text(name).strip() for name in (*_TEXTS, "since", "until")}
    actions = [each for each in visit.texts("action") if each]
    start = visit.text("from")
    query: dict[str, Any] = {
        **{name: given[name] for name in _TEXTS},
        "action": actions,
        "since_ts": _day_ts(given["since"], "since"),
        "until_ts": _day_ts(given["until"], "until", later=1),
        "limit": _ROWS,
        "from": start,
    }
    filters = {name: value for name, value in given.items() if value}
    page = await visit.ask("read_audit", query)
    return Page(
        "audit.html",
        {
            "title": "Audit",
            "page": page,
            "filters": {**filters, "action": actions},
            "shown": {**given, "action": actions[0] if actions else ""},
            "is_filtered": bool(filters or actions),
            "is_first": not start,
            "actions": {
                each.value: outcomes.action(each.value) for each in AuditAction
            },
            "outcomes": {each: outcomes.outcome("", each).word for each in _OUTCOMES},
        },
    )


def _day_ts(text: str, name: str, *, later: int = 0) -> int | None:
    """Return when a day of UTC begins, or one that is so many days later.

    None if no day is said.
    """
    if not text:
        return None
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=timezone.utc)
        return int((day + timedelta(days=later)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise SynapseError(
            400,
            f"Parameter '{name}' must be a day such as 2026-11-27",
            Codes.INVALID_PARAM,
        ) from None
