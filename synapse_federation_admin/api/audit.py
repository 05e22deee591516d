# SPDX-License-Identifier: Apache-2.0
"""v2: who did what through this module."""

from collections.abc import Sequence
from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import (
    AdminServlet,
    Services,
    invalid_param,
    parse_choice,
    parse_count,
    parse_text,
)
from synapse_federation_admin.api._page_token import Seal
from synapse_federation_admin.api._parameters import (
    parse_choices,
    parse_limit,
    require_known,
)
from synapse_federation_admin.destinations.values import Direction
from synapse_federation_admin.storage.audit_entry import (
    AuditAction,
    AuditEntry,
    AuditFilter,
)

_DEFAULT_LIMIT = 100
_MAX_LIMIT = 1000

_PARAMETERS = (
    *("destination", "user", "action", "outcome", "run_id"),
    *("since_ts", "until_ts", "dir", "limit", "from"),
)


class AuditServlet(AdminServlet):
    """Read who did what, when, why, and what came of it.

    GET /_synapse/admin/v2/federation/audit?destination=matrix.example.org

    Query parameters, all optional; any other is an error:
        destination: the exact name
        user: the user, or the admin who acted as that user
        action: `reset`, `reconnect`, `bulk_reconnect`, `cancel`, `clamp`, `forget` or
            `bulk_forget`; may be repeated
        outcome: the outcome
        run_id: the bulk run
        since_ts, until_ts: when it began: then or later, and before then; in ms
        dir: `b`, the newest first, or `f` (`b`)
        limit: the most entries to return, from 1 to 1000 (100)
        from: the `next_token` of the page before

    200 OK

        {
            "entries": [
                {
                    "entry_id": "f2a4c3f19a2b77e0",
                    "ts": 1795475024352,
                    "ended_ts": 1795475024397,
                    "action": "reconnect",
                    "destination": "matrix.example.org",
                    "user_id": "@admin:example.com",
                    "puppeted_by": null,
                    "instance": "main",
                    "reason": "They told us that they are back",
                    "outcome": "connected",
                    "run_id": null,
                    "details": {...}
                }
            ],
            "next_token": "xBp0..."
        }

    `outcome` is `pending` while it goes on, and `interrupted` if the process was ended
    before. `next_token` is absent on the last page.

    Errors: 400 `M_INVALID_PARAM` for a bad parameter, 401, 403.
    """

    PATH = "/v2/federation/audit"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._seal = Seal(services.homeserver.secret_for("audit token"))

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        await self._services.homeserver.require_admin(request)
        require_known(request, _PARAMETERS, repeatable=("action",))
        wanted = AuditFilter(
            destination=_text(request, "destination"),
            user_id=_text(request, "user"),
            actions=frozenset(parse_choices(request, "action", tuple(AuditAction))),
            outcome=_text(request, "outcome"),
            run_id=_text(request, "run_id"),
            since_ts=_time(request, "since_ts"),
            until_ts=_time(request, "until_ts"),
        )
        direction = parse_choice(request, "dir", default=Direction.BACKWARDS)
        limit = parse_limit(request, default=_DEFAULT_LIMIT, highest=_MAX_LIMIT)
        listing = _listing(wanted, direction)
        after = self._seal.position(listing, request)
        found = await self._services.audit.read(
            wanted, (after[0], after[1]) if after else None, limit + 1, direction
        )
        answer: JsonDict = {"entries": [_render(entry) for entry in found[:limit]]}
        if len(found) > limit:
            last = found[limit - 1]
            answer["next_token"] = self._seal.make(listing, [last.ts, last.entry_id])
        return HTTPStatus.OK, answer


def _listing(wanted: AuditFilter, direction: Direction) -> Sequence[object]:
    return [
        wanted.destination,
        wanted.user_id,
        sorted(action.value for action in wanted.actions),
        wanted.outcome,
        wanted.run_id,
        wanted.since_ts,
        wanted.until_ts,
        direction.value,
    ]


def _text(request: SynapseRequest, name: str) -> str | None:
    if name.encode() not in (request.args or {}):
        return None
    text = parse_text(request, name)
    if "\0" in text:
        raise invalid_param(f"Query parameter '{name}' must not contain NUL")
    return text


def _time(request: SynapseRequest, name: str) -> int | None:
    if name.encode() not in (request.args or {}):
        return None
    return parse_count(request, name, default=0)


def _render(entry: AuditEntry) -> JsonDict:
    return {
        "entry_id": entry.entry_id,
        "ts": entry.ts,
        "ended_ts": entry.ended_ts,
        "action": entry.action,
        "destination": entry.destination,
        "user_id": entry.actor.user_id,
        "puppeted_by": entry.actor.puppeted_by,
        "instance": entry.instance,
        "reason": entry.reason,
        "outcome": entry.outcome,
        "run_id": entry.run_id,
        "details": entry.details,
    }
