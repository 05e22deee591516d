# SPDX-License-Identifier: Apache-2.0
"""One server: what is wrong, since when, for whom, and what to do."""

from urllib.parse import quote

from synapse_federation_admin.console.render import segment
from synapse_federation_admin.console.visit import Answered, Page, See, Visit
from synapse_federation_admin.destinations.backlog import mend_unsendable
from synapse_federation_admin.homeserver.server_name import is_server_name
from synapse_federation_admin.wording import causes, servers

# So many outages, entries of the audit, and shared rooms are shown.
_OUTAGES = 10
_ENTRIES = 10
_ROOMS = 10

# What is kept for the page that it leads to, as the parameters of its address have it.
_DIAGNOSIS = "diagnosis"
_RECONNECT = "reconnect"
_FLUSH = "flush"
_KEPT = (_DIAGNOSIS, _RECONNECT, _FLUSH)


async def show_server(visit: Visit) -> Answered:
    """Show everything that is known of a server.

    GET /_synapse/admin/federation/servers/<name>?contacts=yes&rooms=<token>&outages=

    With `contacts` the server is asked whom to tell: that may take ten seconds. A
    diagnosis, and a reconnect, lead here with the ID of what came of them.
    """
    name = visit.parameters["name"]
    kept = {what: visit.kept.find(f"{what} {name}", visit.text(what)) for what in _KEPT}
    diagnosis = kept[_DIAGNOSIS]
    server = await visit.ask("get_destination", destination=name)
    outages = await visit.ask_if_on(
        "list_outages",
        {"limit": _OUTAGES, "from": visit.text("outages")},
        destination=name,
    )
    audit = await visit.ask_if_on(
        "read_audit", {"limit": _ENTRIES, "destination": name}
    )
    rooms = None
    if server["shared_rooms"]:
        rooms = await visit.ask_if_on(
            "list_shared_rooms",
            {"limit": _ROOMS, "from": visit.text("rooms")},
            destination=name,
        )
    is_failing = server["next_retry_ts"] is not None
    # There is nothing to tell of what does not fail, and nobody of what is no server.
    message = None
    if is_server_name(name) and (is_failing or (diagnosis and diagnosis["kind"])):
        message = await visit.ask("tell", destination=name)
    support = None
    if message and visit.text("contacts"):
        support = await visit.ask_if_on("get_support", {}, destination=name)
    last = server["last_failure"] if servers.is_why(server) else None
    return Page(
        "server.html",
        {
            "title": name,
            "server": server,
            "path": f"/servers/{segment(name)}",
            "is_failing": is_failing,
            "not_proven": servers.is_unanswered(server),
            "lost": [what for what in kept if visit.text(what) and not kept[what]],
            "last": last,
            "advice": causes.advice(last["kind"]) if last else "",
            "outages": outages,
            "rooms": rooms,
            "from_": {what: visit.text(what) for what in ("outages", "rooms")},
            "message": message,
            "support": support,
            "entries": audit and audit["entries"],
            "diagnosis": diagnosis,
            "reconnected": kept[_RECONNECT],
            "flushed": kept[_FLUSH],
            "mend": mend_unsendable(name) if is_server_name(name) else "",
            "api_path": "/_synapse/admin/v2/federation/destinations/"
            + quote(name, safe=""),
        },
    )


async def diagnose(visit: Visit) -> Answered:
    """Diagnose a server, and lead to where what was found is above what is known.

    POST /_synapse/admin/federation/servers/<name>/diagnose
    """
    return await _do(visit, "diagnose", _DIAGNOSIS)


async def reconnect(visit: Visit) -> Answered:
    """Reconnect a server, and lead to what came of it.

    POST /_synapse/admin/federation/servers/<name>/reconnect
    """
    return await _do(visit, "reconnect", _RECONNECT)


async def flush_caches(visit: Visit) -> Answered:
    """Have every process forget what it keeps of a server, and lead to who was told.

    POST /_synapse/admin/federation/servers/<name>/flush
    """
    return await _do(visit, "flush_caches", _FLUSH)


async def _do(visit: Visit, operation: str, what: str) -> See:
    """Do something to a server, keep what came of it, and lead to that."""
    name = visit.parameters["name"]
    found = await visit.ask(operation, destination=name)
    key = visit.kept.keep(f"{what} {name}", found)
    return See(f"/servers/{segment(name)}?{what}={key}")
