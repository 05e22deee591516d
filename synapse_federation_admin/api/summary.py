# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations in a few numbers."""

from collections.abc import Mapping
from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import AdminServlet
from synapse_federation_admin.api._parameters import require_known
from synapse_federation_admin.destinations.summary import BacklogSummary, Summary
from synapse_federation_admin.destinations.values import IndexState
from synapse_federation_admin.history.correlation import Correlation
from synapse_federation_admin.history.store import by_every_kind, if_readable
from synapse_federation_admin.storage.recent_attempts import RecentAttempts

# The keys of `backlog` beside `as_of_ts`, which are named as in the model.
_TOTALS = (
    "rooms",
    "rooms_never_caught_up",
    "to_device_messages",
    "oldest_to_device_ts",
    "device_list_updates",
)


class SummaryServlet(AdminServlet):
    """Count destinations by what matters, and all that waits for them.

    GET /_synapse/admin/v2/federation/summary

    200 OK

        {
            "as_of_ts": 1557332397936,
            "total": 1000000,
            "status": {
                "online": 800000,
                "unknown": 140000,
                "backing_off": 40000,
                "retry_due": 20000
            },
            "failing": {"<1h": 100, "<1d": 900, "<7d": 9000, ">=7d": 50000},
            "failing_by_kind": {"dns_not_found": 40000, "unknown": 20000},
            "outlook": {
                "verdict": "us",
                "explanation": "92 % of servers tried in the last 15 minutes ...",
                "last_hour": {
                    "tried": 500,
                    "failing": 300,
                    "began": 280,
                    "share": 0.6,
                    "shared": [
                        {
                            "type": "kind",
                            "value": "dns_failed",
                            "destinations": 290,
                            "began": 280
                        }
                    ]
                },
                "last_15_minutes": {...}
            },
            "backlog": {
                "as_of_ts": 1557332397936,
                "rooms": 1200,
                "rooms_never_caught_up": 30,
                "to_device_messages": 5000,
                "oldest_to_device_ts": 1557332397936,
                "device_list_updates": 7000
            },
            "unlisted": {"total": 1, "sample": ["new.example"]},
            "indexes": {
                "enabled": true,
                "ready": false,
                "states": {"federation_admin_failing": "building"},
                "errors": {}
            }
        }

    `failing` is by how long they have been failing, `failing_by_kind` by the kind of
    the last failure of a real request, those kinds that there are: `unknown` are those
    that have not failed since the module was installed. `outlook` tells whether servers
    began to fail together: `verdict` is `normal`, `us` (the cause is likely to be this
    homeserver's) or `shared` (one of theirs); of the servers tried, how many fail, how
    many of these began to in that time, and what they share, of `type` `kind`,
    `address` or `issuer`, that of certificates which are not trusted.

    Both are null where this module's tables cannot be read.

    A room counts in `backlog` once for
    each destination that has not got its newest event; `rooms_never_caught_up` are
    those that Synapse will not send by itself. `unlisted` are names for which something
    waits but which Synapse has no row for, so that they are in no list. In `indexes`,
    a state is `ready`, `building` or `missing`.

    `backlog` and `unlisted` are as of `backlog.as_of_ts`. Where it takes long to read
    what waits, this is older than the rest, or null while nothing is known yet: then so
    is all the rest of the two, but for `sample`, which is empty.

    Errors: 400 `M_INVALID_PARAM` for any query parameter, 401, 403.
    """

    PATH = "/v2/federation/summary"

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        await self._services.homeserver.require_admin(request)
        require_known(request, ())
        summary = await self._services.summary.get()
        services = self._services
        kinds = await if_readable(services.history.failing_by_kind(), None)
        outlook = await if_readable(services.recent_attempts.correlation(), None)
        indexes = self._services.indexes
        states = await indexes.states()
        return HTTPStatus.OK, {
            **_render(summary),
            "failing_by_kind": _render_kinds(summary, kinds),
            "outlook": None if outlook is None else _render_outlook(outlook),
            "indexes": {
                "enabled": indexes.enabled,
                "ready": all(state is IndexState.READY for state in states.values()),
                "states": {name: state.value for name, state in states.items()},
                "errors": dict(indexes.errors),
            },
        }


def _render(summary: Summary) -> JsonDict:
    counts = summary.counts
    return {
        "as_of_ts": counts.as_of_ts,
        "total": counts.total,
        "status": {status.value: count for status, count in counts.by_status.items()},
        "failing": {age.value: count for age, count in counts.failing_by_age.items()},
        **_render_backlog(summary.backlog),
    }


def _render_kinds(summary: Summary, known: Mapping[str, int] | None) -> JsonDict | None:
    if known is None:
        return None
    kinds = by_every_kind(summary.counts.failing, known)
    return {kind: count for kind, count in kinds.items() if count}


def _render_outlook(outlook: Correlation) -> JsonDict:
    return {
        "verdict": outlook.verdict.value,
        "explanation": outlook.explanation,
        "last_hour": _render_attempts(outlook.last_hour),
        "last_15_minutes": _render_attempts(outlook.lately),
    }


def _render_attempts(attempts: RecentAttempts) -> JsonDict:
    return {
        "tried": attempts.total,
        "failing": attempts.failing,
        "began": attempts.began,
        "share": None if attempts.share is None else round(attempts.share, 4),
        "shared": [
            {
                "type": cause.type.value,
                "value": cause.value,
                "destinations": cause.destinations,
                "began": cause.began,
            }
            for cause in attempts.causes
        ],
    }


def _render_backlog(backlog: BacklogSummary | None) -> JsonDict:
    if backlog is None:
        return {
            "backlog": dict.fromkeys(["as_of_ts", *_TOTALS]),
            "unlisted": {"total": None, "sample": []},
        }
    return {
        "backlog": {
            "as_of_ts": backlog.as_of_ts,
            **{name: getattr(backlog.totals, name) for name in _TOTALS},
        },
        "unlisted": {
            "total": backlog.unlisted.total,
            "sample": list(backlog.unlisted.sample),
        },
    }
