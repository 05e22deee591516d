# SPDX-License-Identifier: Apache-2.0
"""Commands about one server, but for `why`, and for what changes it."""

from collections.abc import Iterator

import click
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from synapse_federation_admin.cli.client import V1, Json, segment
from synapse_federation_admin.cli.options import Asked, command, name_argument
from synapse_federation_admin.cli.output import (
    Column,
    ago,
    grid,
    line,
    listed,
    plain,
    since,
)
from synapse_federation_admin.cli.words import (
    WIDE,
    exact,
    next_try,
    share,
    status_of,
    why_of,
)
from synapse_federation_admin.wording.amounts import count, counted
from synapse_federation_admin.wording.causes import advice, cause
from synapse_federation_admin.wording.servers import how_far, lasted

# So many outages and shared rooms are told.
_OUTAGES = 5
_ROOMS = 10


@command()
@name_argument
def show(asked: Asked, name: str) -> None:
    """Show everything that is known of a server; nothing is sent to it.

    `why` looks at the way to it now. With `-o json` it is the object of the API alone,
    without outages and shared rooms.
    """
    path = f"/destinations/{segment(name)}"
    found = asked.client.get(path)

    def human() -> None:
        outages = asked.client.get_if_on(f"{path}/outages", {"limit": _OUTAGES})
        rooms = {}
        if found.get("shared_rooms"):
            limit = {"limit": _ROOMS}
            rooms = asked.client.get_if_on(f"{path}/shared_rooms", limit)
        asked.out.show(*shown_server(found, outages, rooms))

    asked.out.answer(found, human)


def shown_server(server: Json, outages: Json, rooms: Json) -> Iterator[RenderableType]:
    """Write all that is known of a server.

    Args:
        server: The object of the API.
        outages: Its last outages, as the API has them; may be empty.
        rooms: Shared rooms; likewise.
    """
    yield line(server.get("destination"), "bold")
    yield grid(_facts(server))
    last = server.get("last_failure")
    if last and why_of(server):
        yield Padding(plain(f"{last.get('message')}."), (1, 0, 0, 2))
        if told := advice(str(last.get("kind"))):
            yield Padding(plain(f"→ {told}"), (0, 0, 0, 2))
    if failures := server.get("failures"):
        yield Text("\nWhy it failed", "bold")
        made = listed(failures, _FAILURES, WIDE)
        yield Padding(made, (0, 0, 0, 2))
    if outages.get("outages"):
        yield Text("\nOutages", "bold")
        yield Padding(listed(outages["outages"], _BY_OUTAGE, WIDE), (0, 0, 0, 2))
        if outages.get("next_token"):
            yield Text("  and earlier ones, which `outages` lists", "dim")
    if rooms.get("rooms"):
        yield Text("\nShared rooms", "bold")
        yield Padding(listed(rooms["rooms"], _BY_ROOM, WIDE), (0, 0, 0, 2))
        if more := server["shared_rooms"] - len(rooms["rooms"]):
            yield Text(f"  and {count(more)} more, which `shared-rooms` lists", "dim")


_FAILURES = (
    Column("Cause", lambda each: each["message"]),
    Column("First", lambda each: ago(each["first_ts"])),
    Column("Last", lambda each: ago(each["last_ts"])),
    Column(">Count", lambda each: count(each["count"])),
)


def _facts(server: Json) -> Iterator[tuple[RenderableType, ...]]:
    def known(key: str) -> str:
        value = server.get(key)
        return "not known" if value is None else count(value)

    yield "Status", status_of(server)
    if server.get("next_retry_ts") is not None:
        yield "Next try", next_try(server)
        yield "Failing since", exact(server.get("failure_ts"))
        yield "Last tried", exact(server.get("retry_last_ts"))
    availability = server.get("availability")
    unanswered = "not since that is recorded" if availability else "not recorded"
    yield "They answered us", ago(server.get("last_success_ts"), unanswered)
    reached = server.get("inbound", {}).get("last_transaction_ts")
    yield "They reached us", ago(reached, "by no transaction within the last day")
    days = f"not failing {share(availability)} of the time"
    if (known_share := (availability or {}).get("share")) in (None, 1):
        days = "not failing at any time" if known_share else "not recorded"
    yield "Last 14 days", days
    backlog = server.get("backlog")
    if backlog is None:
        yield "What waits", "not known"
    else:
        event = backlog.get("oldest_event_ts")
        yield (
            "Rooms that wait",
            count(backlog.get("rooms", 0))
            + (f", the oldest for at least {since(event)}" if event else ""),
        )
        oldest = backlog.get("oldest_to_device_ts")
        yield (
            "To-device messages",
            count(backlog.get("to_device_messages", 0))
            + (f", the oldest queued {ago(oldest)}" if oldest else ""),
        )
        yield "Device changes", count(backlog.get("device_list_updates", 0))
        never = server.get("never_delivered")
        if never and server.get("status") != "invalid":
            why = "no event was ever delivered to it, so Synapse does not catch up"
            yield "May never arrive", f"{counted(never, 'room')}: {why}"
        if gone := server.get("unsendable"):
            why = "the event is in the database no more; the console has what ends that"
            yield "Can never be sent", f"{counted(gone, 'room')}: {why}"
    yield "Not yet queued", known("not_yet_queued")
    yield "Your users", known("local_users")
    yield "Rooms shared", known("shared_rooms")
    sender = server.get("sender")
    if sender and server.get("status") != "invalid":
        state = str(sender.get("state")).replace("_", " ")
        far = f", {how_far(sender)}" if sender.get("position") is not None else ""
        yield "Sent by", f"{sender.get('instance') or 'nobody'}: {state}{far}"


def _kinds(outage: Json) -> Text:
    kinds = ", ".join(cause(str(kind)) for kind in outage.get("kinds", ())[:3])
    return line(kinds, "dim")


_BY_OUTAGE = (
    Column("Began", lambda outage: exact(outage["start_ts"])),
    Column("Lasted", lasted),
    Column("Causes", _kinds),
)


@command("/destinations/{destination}/outages")
@name_argument
def outages(asked: Asked, name: str, params: Json) -> None:
    """List when a server was failing, and for how long; the newest first."""
    answer = asked.client.get(f"/destinations/{segment(name)}/outages", params)
    asked.out.answer_list(answer, "outages", _BY_OUTAGE, "No outage is recorded.")


_BY_ROOM = (
    Column("Room", lambda room: room["room_id"], is_whole=True),
    Column("Name", lambda room: room.get("name") or ""),
    Column(">Yours", lambda room: count(room.get("local_members", 0))),
    Column(">Theirs", lambda room: count(room.get("their_members", 0))),
)


@command("/destinations/{destination}/shared_rooms", "shared-rooms")
@name_argument
def shared_rooms(asked: Asked, name: str, params: Json) -> None:
    """List the rooms shared with a server; those with most of your users first."""
    answer = asked.client.get(f"/destinations/{segment(name)}/shared_rooms", params)
    asked.out.answer_list(answer, "rooms", _BY_ROOM, "There are none.")


@command()
@name_argument
@click.option(
    "--contacts",
    is_flag=True,
    help="Ask their support file whom to tell, too: that may take ten seconds. With"
    " `-o json`, the answers of the API to tell and support are each under its name.",
)
def tell(asked: Asked, name: str, contacts: bool) -> None:
    """Write a message to the admins of a server, which says what is seen from here.

    Nothing is sent. Make a diagnosis first with `why`: then it says what is wrong.
    """
    out, path = asked.out, f"/destinations/{segment(name)}"
    message = asked.client.get(f"{path}/tell")
    support = asked.client.get(f"{path}/support") if contacts else None

    def human() -> None:
        if message.get("fault") == "us":
            out.note(
                "! The last diagnosis says that it is for us to act: there is no use in"
                " sending this.",
                "warn",
            )
        elif message.get("diagnosed_ts") is None:
            out.note("Diagnose it first: then this says what exactly is wrong.", "dim")
        if support is not None:
            for each in _contacts(support):
                out.note(each)
        out.show(f"Subject: {message.get('subject')}", "", soft=True)
        out.show(str(message.get("text")), soft=True)

    both = message if support is None else {"tell": message, "support": support}
    out.answer(both, human)


def _contacts(support: Json) -> Iterator[str]:
    for each in support.get("contacts", ()):
        addresses = [each.get("matrix_id"), each.get("email_address")]
        role = f" ({each['role']})" if each.get("role") else ""
        yield f"Tell {', '.join(str(a) for a in addresses if a)}{role}"
    if page := support.get("support_page"):
        yield f"Their page: {page}"
    if support.get("contacts") or support.get("support_page"):
        return
    if error := support.get("error"):
        yield f"Their support file cannot be read: {error.get('message')}."
    elif skipped := support.get("skipped"):
        yield f"{skipped}."
    else:
        yield "They name nobody in a support file."


@command()
@name_argument
def reset(asked: Asked, name: str) -> None:
    """Reset the connection to a server that fails: clear its backoff, and try it.

    This is `reset_connection` of Synapse's documented API, which answers before it is
    known what comes of it: `audit --destination NAME` has that. `reconnect` contacts
    the server first, and says at once.
    """
    path = f"{V1}/destinations/{segment(name)}/reset_connection"
    answer = asked.client.call("POST", path, body={})
    asked.out.answer(
        answer,
        lambda: asked.out.show(
            "Its backoff is cleared, and it is being tried. What comes of it:"
            f" audit --destination {name}",
            soft=True,
        ),
    )
