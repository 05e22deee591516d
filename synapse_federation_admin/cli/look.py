# SPDX-License-Identifier: Apache-2.0
"""Commands that look at all servers, at our processes, and at what is on record."""

import sys
from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from synapse_federation_admin.cli.client import Client, Json
from synapse_federation_admin.cli.options import Asked, command
from synapse_federation_admin.cli.output import (
    DASH,
    Column,
    ago,
    escaped,
    grid,
    line,
    listed,
    pill,
    since,
    user,
)
from synapse_federation_admin.cli.words import (
    NARROW,
    SERVER,
    WHY,
    WIDE,
    exact,
    heat,
    how_far,
    next_try,
    run_line,
    senders,
    share,
    status_of,
    verdict_lines,
    waiting_rows,
)
from synapse_federation_admin.durations import duration
from synapse_federation_admin.wording import outcomes
from synapse_federation_admin.wording.amounts import count, counted
from synapse_federation_admin.wording.outcomes import under_way
from synapse_federation_admin.wording.servers import SENDERS, waiting
from synapse_federation_admin.wording.verdict import failing_of

# So many of those that matter most, where nobody says how many.
_FIRST = 10


@command()
def status(asked: Asked) -> None:
    """Is it us? What fails, what waits, and what is off.

    With `-o json` it writes the answers of the API to summary, status and runs, each
    under its name.
    """
    client = asked.client
    answers = {"summary": client.get("/summary"), "status": client.get("/status")}
    if runs := client.get_if_on("/runs", {"limit": 5}):
        answers["runs"] = runs
    out = asked.out
    out.answer(answers, lambda: out.show(*_status(answers, out.console.width)))


def _status(answers: Json, width: int) -> Iterator[RenderableType]:
    summary = answers["summary"]
    yield from verdict_lines(summary)
    by_kind = summary.get("failing_by_kind_and_age")
    if by_kind:
        yield Text("\nFailing, by cause and age", "bold")
        yield heat(by_kind, with_ages=width >= NARROW)
    elif by_kind is None and failing_of(summary):
        yield Text("\nFailing, by cause and age", "bold")
        yield Text("  Not known: why requests fail is not recorded here.", "dim")
    yield Text("\nWhat waits", "bold")
    yield grid(waiting_rows(summary))
    yield Text("\nOur senders", "bold")
    yield senders(summary)
    if runs := under_way(answers.get("runs", {}).get("runs", ())):
        yield Text("\nRun under way", "bold")
        yield grid((run_line(run),) for run in runs)
    indexes = summary.get("indexes") or {}
    if indexes.get("enabled") and not indexes.get("ready"):
        yield Text("\nOptional indexes are not ready", "bold")
        yield from (line(f"  {n}: {e}") for n, e in indexes.get("errors", {}).items())
    off = {
        name: state
        for name, state in answers["status"].get("features", {}).items()
        if not state.get("on")
    }
    if off:
        yield Text("\nFeatures that are off", "bold")
        yield grid(
            (pill("bad", name), str(state.get("reason"))) for name, state in off.items()
        )


@command("/destinations", "list")
def list_(asked: Asked, params: Json) -> None:
    """List the servers that the filters keep.

    Without filters, all of them. Durations are a number and one of s, m, h, d and w:
    `--failing-for 7d`. `--failing-for 0s` keeps whatever fails.
    """
    out = asked.out
    answer = _listed(asked, params)

    def human() -> None:
        rows = answer.get("destinations", ())
        if rows:
            width = out.console.width
            out.show(listed(rows, _columns(rows, width), width))
        if params.get("has_backlog"):
            if answer.get("as_of_ts") is None:
                out.note("It is being looked for what waits. Ask again in a moment.")
            elif answer.get("is_complete") is False:
                out.note("There was more than there is room to look at.")
        if "total" in answer:
            out.note(f"{count(answer['total'])} match.", "dim")
        elif not rows:
            none = "No server matches." if params else "No other server is known yet."
            out.note(none)
        out.tell_more(answer, len(rows))

    out.answer(answer, human)


def _listed(asked: Asked, params: Json) -> Json:
    """Return a page; for people, with why each fails, if that can be known."""
    if not asked.out.is_human:
        return asked.client.get("/destinations", params)
    return with_why(asked.client, params, "availability")


def with_why(client: Client, params: Json, *more: str) -> Json:
    """Return a page, with why each fails and what waits, if that can be known."""
    wanted = dict.fromkeys([*params.get("include", ()), "failure", "backlog", *more])
    page = client.get_if_on("/destinations", {**params, "include": list(wanted)})
    return page or client.get("/destinations", params)


def _columns(rows: list[Json], width: int) -> Iterator[Column]:
    yield SERVER
    yield Column("Status", status_of, is_whole=width >= NARROW)
    yield Column("Next try", next_try, WIDE)
    yield WHY
    yield Column("Waits", lambda row: waiting(row.get("backlog")), WIDE)
    if any(row.get("availability") for row in rows):
        yield Column("14 days", lambda row: share(row.get("availability")), WIDE)
    if any("local_users" in row for row in rows):
        yield Column(">Users", lambda row: _users(row.get("local_users")))


def _users(number: int | None) -> str:
    return DASH if number is None else count(number)


@command("/attention")
def attention(asked: Asked, params: Json) -> None:
    """Who needs you: failing servers that affect many users, or have much waiting."""
    params = {"limit": _FIRST, **params}
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
                Column("Status", status_of, is_whole=out.console.width >= NARROW),
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


@command()
def instances(asked: Asked) -> None:
    """Which processes of this homeserver run, and how far those are that send."""
    answer = asked.client.get("/instances")

    columns = (
        Column("Process", lambda each: str(each.get("instance"))),
        Column("State", _state),
        Column("Sends", lambda each: how_far(each["sender"]) if _sends(each) else DASH),
        Column("Seen", lambda each: ago(each.get("seen_ts"))),
        Column("Module", lambda each: each.get("module_version") or DASH, WIDE),
        Column("Synapse", lambda each: each.get("synapse_version") or DASH, WIDE),
        Column("In memory", _in_memory, WIDE),
        Column("Reactor late", _late, WIDE),
    )
    asked.out.answer_list(answer, "instances", columns, "None is known.")


def _sends(instance: Json) -> bool:
    return bool(instance.get("sender"))


def _state(instance: Json) -> Text:
    state = str(instance.get("state"))
    return pill(*SENDERS.get(state, ("muted", state)))


def _in_memory(instance: Json) -> str:
    held = instance.get("in_memory")
    if not held or not instance.get("sends"):
        return DASH
    return f"{counted(held['pdus'], 'event')}, {counted(held['edus'], 'EDU')}"


def _late(instance: Json) -> str:
    late_ms = instance.get("reactor_late_ms")
    return DASH if late_ms is None else duration(late_ms)


@command("/unlisted")
def unlisted(asked: Asked, params: Json) -> None:
    """Names for which something waits, but which Synapse has no row for."""
    answer = asked.client.get("/unlisted", params)
    waits = Column("Waits", lambda row: waiting(row.get("backlog")))
    asked.out.answer_list(answer, "unlisted", (SERVER, waits), "There are none.")


@command("/audit")
def audit(asked: Asked, params: Json) -> None:
    """Who changed what, when and why, and what came of it. The newest first."""
    answer = asked.client.get("/audit", params)
    is_wide = asked.out.console.width >= WIDE
    when = exact if is_wide else since
    columns = (
        Column("When" if is_wide else "Ago", lambda entry: when(entry["ts"])),
        Column("What", lambda entry: outcomes.action(entry["action"])),
        Column("Server", _server, is_name=True),
        Column("Who", lambda entry: _who(entry, is_wide)),
        Column("Outcome", _outcome),
        Column("Why", _why, WIDE),
    )
    none = "No entry matches." if params else "Nothing was done yet."
    asked.out.answer_list(answer, "entries", columns, none)


def _server(entry: Json) -> str:
    return str(entry.get("destination") or f"run {entry.get('run_id')}")


def _outcome(entry: Json) -> Text:
    return pill(*outcomes.outcome(entry["action"], entry["outcome"]))


def _who(entry: Json, is_wide: bool) -> Text:
    who = user(entry.get("user_id"), is_wide)
    if entry.get("puppeted_by"):
        return Text.assemble(who, " by ", user(entry["puppeted_by"], is_wide))
    return who


def _why(entry: Json) -> str:
    why = (entry.get("reason"), outcomes.why(entry.get("details", {})))
    return "; ".join(str(text) for text in why if text)


@command("/destinations/export")
def export(asked: Asked, params: Json) -> None:
    """Write all servers that the filters keep to stdout, however many they are.

    The exit status is 0 only if what was written is complete.
    """
    with asked.client.stream("/destinations/export", params) as pieces:
        # JSON stays what it is; in CSV the API shows it already.
        for text in pieces if params.get("format") == "csv" else map(escaped, pieces):
            sys.stdout.write(text)
    sys.stdout.flush()
