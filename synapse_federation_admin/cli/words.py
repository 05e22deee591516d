# SPDX-License-Identifier: Apache-2.0
"""What the API answers, as a terminal tells it: servers, runs, senders, what waits."""

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from synapse_federation_admin.cli.client import Json
from synapse_federation_admin.cli.output import (
    DASH,
    STYLES,
    Column,
    ago,
    grid,
    line,
    now_ms,
    pill,
    since,
    table,
    until,
)
from synapse_federation_admin.durations import duration, utc
from synapse_federation_admin.wording import outcomes, servers
from synapse_federation_admin.wording.amounts import count, counted
from synapse_federation_admin.wording.causes import AGES, cause, heat_table
from synapse_federation_admin.wording.servers import NOT_ALLOWED, SENDERS, STATUSES
from synapse_federation_admin.wording.verdict import failing_of, how_many, verdict_of

# From what width on a table has the columns that are good to have.
WIDE = 120

# Below this there is room for what is most needed only.
NARROW = 70

# How strong a number among others is shown, by its heat: 0 to 9.
_HEAT = (
    "dim",
    *("default", "default", "yellow", "yellow", "yellow"),
    *("dark_orange", "dark_orange", "red", "bold red"),
)


def verdict_lines(summary: Json) -> Iterator[RenderableType]:
    """Write whether it is us, and how many fail."""
    verdict = verdict_of(summary, "the features that are off say why")
    many = how_many(summary.get("total", 0), failing_of(summary))
    look = STYLES.get(verdict.look, "")
    yield Text.assemble(
        (f"{verdict.sign} ", look), (f"{many} {verdict.sentence}", "bold")
    )
    yield grid([(Text(verdict.why),)])


def heat(
    by_kind: Json, with_ages: bool = True, lines: int | None = None
) -> RenderableType:
    """Return what fails by cause and age, as a table.

    Args:
        by_kind: As in the summary.
        with_ages: Whether there is room for the ages.
        lines: For how many lines there is room; None: for all.
    """
    ages = AGES if with_ages else ()
    made = table("  Cause", *(f">{column.label}" for column in ages), ">all")
    rows = heat_table(by_kind)
    # One for the heads, and one for what is left out.
    room = len(rows) if lines is None or len(rows) < lines else max(lines - 2, 0)
    for row in rows[:room]:
        cells = [
            Text(count(number), _HEAT[strength]) if number else Text("·", "dim")
            for number, strength in row.cells[: len(ages)]
        ]
        made.add_row(line(f"  {cause(row.kind)}"), *cells, Text(count(row.total)))
    if others := rows[room:]:
        told = Text(f"  {counted(len(others), 'other cause')}", "dim")
        total = Text(count(sum(row.total for row in others)))
        made.add_row(told, *(Text() for _ in ages), total)
    for column in made.columns[1:]:
        # Where there is no room a cause is folded: a number that is cut is a wrong one.
        column.min_width = max(len(str(e)) for e in (column.header, *column.cells))
    return made


def waiting_rows(summary: Json) -> Iterator[tuple[RenderableType, ...]]:
    """Write what waits for all of them."""
    backlog = summary.get("backlog", {})
    if backlog.get("as_of_ts") is None:
        yield (Text("Not known yet: it is being read.", "dim"),)
        return
    event, oldest = backlog.get("oldest_event_ts"), backlog.get("oldest_to_device_ts")
    rows = [
        (
            "Rooms",
            backlog.get("rooms"),
            (f"the oldest for at least {since(event)}; " if event else "")
            + "each counts once for each server",
        ),
        (
            "To-device messages",
            backlog.get("to_device_messages"),
            f"the oldest for {since(oldest)}" if oldest else "",
        ),
        ("Device changes", backlog.get("device_list_updates"), ""),
        (
            "Never sent by itself",
            backlog.get("rooms_never_caught_up"),
            "rooms; no event was delivered to these servers yet",
        ),
        ("Not yet queued", summary.get("not_yet_queued"), "of our own events"),
        (
            "For names not listed",
            summary.get("unlisted", {}).get("total"),
            "the command unlisted names them",
        ),
    ]
    found = [row for row in rows if row[1]]
    if not found:
        yield (pill(*servers.nothing_waits(summary.get("senders"))),)
    for name, number, more in found:
        yield (name, Text(count(number), justify="right"), line(more, "dim"))


def senders(summary: Json) -> RenderableType:
    """Return the processes that send, and how far they are."""
    found = summary.get("senders")
    if found is None:
        return Text("  Not known: the module's own tables cannot be read.", "dim")
    return grid(
        (
            line(sender.get("instance") or "nobody"),
            pill(*SENDERS.get(str(sender["state"]), ("muted", str(sender["state"])))),
            Text(how_far(sender), "dim"),
        )
        for sender in found
    )


def how_far(sender: Json) -> str:
    """Return how far a process that sends has come, and when a late one was seen."""
    seen = sender.get("seen_ts")
    is_late = seen and sender.get("state") != "running"
    told = f"seen {ago(seen)}; " if is_late else ""
    return told + servers.how_far(sender)


def run_line(run: Json) -> Text:
    """Return how far a run is, on one line."""
    parts = [f"{outcomes.action(run['action'])} {run['id']}: {outcomes.done(run)}"]
    parts += [
        f"· {count(number)} {outcomes.outcome(run['action'], name).word}"
        for name, number in run.get("outcomes", {}).items()
    ]
    if ends := run.get("estimated_end_ts"):
        parts.append(f"· ends {until(ends)}")
    return line(" ".join(parts))


def status_of(row: Json) -> Text:
    """Return the status of a server, in words."""
    found = str(row.get("status"))
    if found in ("backing_off", "retry_due"):
        began = row.get("failure_ts") or row.get("retry_last_ts")
        told = pill("bad", f"down for {since(began)}")
    elif found != "invalid" and servers.is_unanswered(row):
        told = pill("warn", "not in backoff, no success since")
    else:
        told = pill(*STATUSES.get(found, ("muted", found)))
    if row.get("allowed") is False:
        told = Text.assemble(told, (f" ! {NOT_ALLOWED}", "yellow"))
    return told


def next_try(row: Json) -> str:
    """Return when Synapse tries a server that fails again."""
    if row.get("next_retry_ts") is None:
        return DASH
    return until(row["next_retry_ts"]) if row["status"] == "backing_off" else "when due"


def why_of(row: Json) -> str:
    """Return why a server fails, in a few words; "" if it does not."""
    if row.get("next_retry_ts") is None:
        return ""
    if not servers.is_why(row):
        return "not known" if "last_failure" in row else ""
    return cause(str(row["last_failure"]["kind"]))


SERVER = Column("Server", lambda row: str(row["destination"]), is_name=True)

WHY = Column("Why", why_of)


def share(availability: Json | None) -> str:
    """Return how much of the last days a server was not failing."""
    found = (availability or {}).get("share")
    return DASH if found is None else f"{int(found * 1000) / 10:.1f} %"


def exact(ts: Any) -> str:
    """Return a time, exactly and relatively."""
    when = utc(ts)
    if when is None:
        return str(ts)
    told = f"in {duration(ts - now_ms())}" if ts > now_ms() + 1000 else ago(ts)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC ({told})"
