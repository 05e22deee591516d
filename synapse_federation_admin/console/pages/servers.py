# SPDX-License-Identifier: Apache-2.0
"""The list of servers: filters in the URL, any order, a selection."""

from collections.abc import Iterable
from typing import Any

from markupsafe import escape

from synapse_federation_admin.api.schemas.destinations import Filter
from synapse_federation_admin.console.render import segment
from synapse_federation_admin.console.visit import Answered, Page, Visit
from synapse_federation_admin.destinations.values import DestinationOrder
from synapse_federation_admin.failures.bounds import shown
from synapse_federation_admin.failures.kinds import FAILURE_KINDS
from synapse_federation_admin.homeserver.features import Feature
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.wording import causes, outcomes
from synapse_federation_admin.wording.amounts import middle

# How many rows a page has; of servers fewer where their names are so long that they
# would be more than so many bytes, of which each row takes some beside the name.
_ROWS = 50
_ROWS_BYTES = 50_000
_ROW_BYTES = 720

SPANS = {
    "0s": "0 seconds",
    "1h": "1 hour",
    "1d": "1 day",
    "7d": "7 days",
    "30d": "30 days",
}
"""What the filters by time offer."""

# The columns whose heads sort, and what by; those that the API orders by beside them
# are offered in the filters.
ORDERS = {
    "destination": "name",
    "failure_ts": "failing since",
    "next_retry_ts": "next try",
    "retry_last_ts": "last try",
    "retry_interval": "time between tries",
    "last_successful_stream_ordering": "last event delivered",
}

# What the API takes to filter.
_FILTERS = tuple(Filter.model_fields)
_REPEATED = ("status", "failure")


async def list_servers(visit: Visit) -> Answered:
    """Show a page of the list.

    GET /_synapse/admin/federation/servers?failing_for=7d&failure=tls_expired

    The parameters are those of the API's list. An empty one is as none.
    """
    query = query_of(visit)
    includes = _backlog_of(visit)
    is_on = visit.services.features.is_on
    if is_on(Feature.HISTORY):
        includes += ["failure", "availability"]
    if is_on(Feature.SHARED_ROOMS) and is_on(Feature.BACKLOG):
        includes.append("local_users")
    start = visit.text("from")
    # Which servers: what is on the address for the next page, and another order.
    waiting = _waiting_of(visit)
    more = {"include": includes, "limit": _ROWS, "total": True, "from": start}
    page = await visit.ask("list_destinations", {**query, **waiting, **more})
    most = how_many_fit(row["destination"] for row in page["destinations"])
    if most < len(page["destinations"]):
        # They are not counted once more.
        more |= {"limit": most, "total": False}
        fewer = await visit.ask("list_destinations", {**query, **waiting, **more})
        page = {**fewer, "total": page["total"]}
    filters = {key: value for key, value in query.items() if key in _FILTERS}
    return Page(
        "servers.html",
        {
            "title": "Servers",
            "page": page,
            "query": query,
            "name": query.get("destination", ""),
            "wanted": outcomes.which(criteria.shown(Filter(**filters).wanted)),
            "waiting_only": waiting,
            "filters": filters,
            "is_first": not start,
            "includes": includes,
            "statuses": outcomes.STATUSES,
            "causes": {kind: causes.cause(kind) for kind in FAILURE_KINDS},
            "spans": SPANS,
            "orders": {
                order.value: ORDERS.get(order.value, order.value)
                for order in DestinationOrder
            },
        },
    )


def how_many_fit(names: Iterable[str]) -> int:
    """Return for how many of the names there is room on a page: at least for one."""
    left = _ROWS_BYTES
    fits = 0
    for name in names:
        shown_names = [escape(shown(middle(name, most))) for most in (40, 60)]
        texts = (escape(name), segment(name), *shown_names)
        left -= _ROW_BYTES + sum(len(text.encode()) for text in texts)
        if left < 0:
            break
        fits += 1
    return max(fits, 1)


async def export(visit: Visit) -> Answered:
    """Send what the filters keep as a file; the parameters are those of the list.

    GET /_synapse/admin/federation/servers/export?format=csv&failing_for=7d
    """
    await visit.ask(
        "export_destinations",
        {
            **query_of(visit),
            **_waiting_of(visit),
            "format": visit.text("format", "csv"),
            "include": _backlog_of(visit),
        },
    )
    return None


async def show_unlisted(visit: Visit) -> Answered:
    """List the names for which something waits, and which are in no list.

    GET /_synapse/admin/federation/unlisted?from=
    """
    start = visit.text("from")
    page = await visit.ask("list_unlisted", {"limit": _ROWS, "from": start})
    return Page(
        "unlisted.html",
        {"title": "Names not listed", "page": page, "is_first": not start},
    )


def query_of(visit: Visit) -> dict[str, Any]:
    """Return the filters and the order of a visit, as the API takes them."""
    query: dict[str, Any] = {}
    for name in (*_FILTERS, "order_by", "dir"):
        values = [value for value in visit.texts(name) if value]
        if values:
            query[name] = values if name in _REPEATED else values[0]
    return query


def _waiting_of(visit: Visit) -> dict[str, str]:
    """Return what has a list keep that for which something waits, if it is to."""
    return {"has_backlog": "true"} if visit.text("has_backlog") else {}


def _backlog_of(visit: Visit) -> list[str]:
    """Return what has a list include what waits, if that can be told."""
    return ["backlog"] if visit.services.features.is_on(Feature.BACKLOG) else []
