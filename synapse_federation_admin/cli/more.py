# SPDX-License-Identifier: Apache-2.0
"""Commands that look at one thing: `attention`, `instances`, `unlisted`."""

from typing import Any

import click
from rich.text import Text

from synapse_federation_admin.cli import options
from synapse_federation_admin.cli.look import (
    NARROW,
    WIDE,
    how_far,
    status_of,
    why_of,
)
from synapse_federation_admin.cli.options import Asked, pass_asked, query, shared
from synapse_federation_admin.cli.output import DASH, ago, keep_names, line, pill, table
from synapse_federation_admin.wording.amounts import count, duration
from synapse_federation_admin.wording.servers import SENDERS, waiting

# So many of those that matter most, where nobody says how many.
_FIRST = 10


@click.command()
@options.from_api(options.ATTENTION)
@shared
@pass_asked
def attention(asked: Asked, /, **given: Any) -> None:
    """Who needs you: failing servers that affect many users, or have much waiting."""
    params = {"limit": _FIRST, **query(given, options.ATTENTION)}
    answer = asked.client.get("/attention", params)
    out = asked.out

    def human() -> None:
        rows = answer.get("destinations", ())
        if answer.get("as_of_ts") is None:
            out.note("It is not known yet: it is being read. Ask again in a moment.")
        elif not rows:
            out.note("No server that fails affects anybody, and nothing waits for any.")
        else:
            has_room = out.console.width >= NARROW
            made = table(
                *("Server", "Status", "Why", ">Users"), *(["Waits"] * has_room)
            )
            names = [row["destination"] for row in rows]
            keep_names(made.columns[0], names, out.console.width)
            for row in rows:
                made.add_row(
                    line(row["destination"]),
                    status_of(row),
                    line(why_of(row)),
                    Text(count(row.get("local_users", 0))),
                    *([Text(waiting(row.get("backlog")))] * has_room),
                )
            out.show(made)
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

    def human() -> None:
        is_wide = out.console.width >= WIDE
        heads = ["Process", "State", "Sends", "Seen"]
        heads += ["Module", "Synapse", "Reactor late"] if is_wide else []
        made = table(*heads)
        for each in answer.get("instances", ()):
            state = str(each.get("state"))
            look, word = SENDERS.get(state, ("muted", state))
            sender, late_ms = each.get("sender"), each.get("reactor_late_ms")
            cells = [
                line(each.get("instance")),
                pill(look, word),
                Text(how_far(sender) if sender else DASH),
                Text(ago(each.get("seen_ts"))),
            ]
            if is_wide:
                cells += [
                    line(each.get("module_version") or DASH),
                    line(each.get("synapse_version") or DASH),
                    Text(DASH if late_ms is None else duration(late_ms)),
                ]
            made.add_row(*cells)
        out.show(made)

    out.answer(answer, human)


@click.command()
@options.from_api(options.PAGES)
@shared
@pass_asked
def unlisted(asked: Asked, /, **given: Any) -> None:
    """Names for which something waits, but which Synapse has no row for."""
    answer = asked.client.get("/unlisted", query(given, options.PAGES))
    out = asked.out

    def human() -> None:
        rows = answer.get("unlisted", ())
        if not rows:
            out.note("There are none.")
            return
        made = table("Name", "Waits")
        for row in rows:
            made.add_row(line(row["destination"]), Text(waiting(row.get("backlog"))))
        out.show(made)
        out.tell_more(answer, len(rows))

    out.answer(answer, human)
