# SPDX-License-Identifier: Apache-2.0
"""Commands that look at one thing: `attention`, `instances`, `unlisted`."""

from typing import Any

import click
from rich.text import Text

from synapse_federation_admin.cli.client import Json
from synapse_federation_admin.cli.look import (
    NARROW,
    SERVER,
    WHY,
    WIDE,
    how_far,
    status_of,
)
from synapse_federation_admin.cli.options import (
    Asked,
    from_api,
    pass_asked,
    query,
    shared,
)
from synapse_federation_admin.cli.output import DASH, Column, ago, listed, pill
from synapse_federation_admin.wording.amounts import count, duration
from synapse_federation_admin.wording.servers import SENDERS, waiting

# So many of those that matter most, where nobody says how many.
_FIRST = 10


@click.command()
@from_api("/attention")
@shared
@pass_asked
def attention(asked: Asked, /, **given: Any) -> None:
    """Who needs you: failing servers that affect many users, or have much waiting."""
    params = {"limit": _FIRST, **query(given, "/attention")}
    answer = asked.client.get("/attention", params)
    out = asked.out

    def human() -> None:
        rows = answer.get("destinations", ())
        if answer.get("as_of_ts") is None:
            out.note("It is not known yet: it is being read. Ask again in a moment.")
        elif not rows:
            out.note("No server that fails affects anybody, and nothing waits for any.")
        else:
            columns = (
                SERVER,
                Column("Status", status_of),
                WHY,
                Column(">Users", lambda row: count(row.get("local_users", 0))),
                Column("Waits", lambda row: waiting(row.get("backlog")), NARROW),
            )
            out.show(listed(rows, columns, out.console.width))
            if len(rows) == params["limit"]:
                out.note(f"These {len(rows)} matter most; --limit shows more.", "dim")
        if answer.get("is_complete") is False:
            out.note("There was more than there is room to look at.")

    out.answer(answer, human)


@click.command()
@shared
@pass_asked
def instances(asked: Asked) -> None:
    """Which processes of this homeserver run, and how far those are that send."""
    answer = asked.client.get("/instances")
    out = asked.out

    found = answer.get("instances", ())
    columns = (
        Column("Process", lambda each: str(each.get("instance"))),
        Column("State", _state),
        Column("Sends", lambda each: how_far(each["sender"]) if _sends(each) else DASH),
        Column("Seen", lambda each: ago(each.get("seen_ts"))),
        Column("Module", lambda each: each.get("module_version") or DASH, WIDE),
        Column("Synapse", lambda each: each.get("synapse_version") or DASH, WIDE),
        Column("Reactor late", _late, WIDE),
    )
    out.answer(answer, lambda: out.show(listed(found, columns, out.console.width)))


def _sends(instance: Json) -> bool:
    return bool(instance.get("sender"))


def _state(instance: Json) -> Text:
    state = str(instance.get("state"))
    return pill(*SENDERS.get(state, ("muted", state)))


def _late(instance: Json) -> str:
    late_ms = instance.get("reactor_late_ms")
    return DASH if late_ms is None else duration(late_ms)


@click.command()
@from_api("/unlisted")
@shared
@pass_asked
def unlisted(asked: Asked, /, **given: Any) -> None:
    """Names for which something waits, but which Synapse has no row for."""
    answer = asked.client.get("/unlisted", query(given, "/unlisted"))
    out = asked.out

    def human() -> None:
        rows = answer.get("unlisted", ())
        if not rows:
            out.note("There are none.")
            return
        waits = Column("Waits", lambda row: waiting(row.get("backlog")))
        out.show(listed(rows, (SERVER, waits), out.console.width))
        out.tell_more(answer, len(rows))

    out.answer(answer, human)
