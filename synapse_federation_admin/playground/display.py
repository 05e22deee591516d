# SPDX-License-Identifier: Apache-2.0
"""What the playground shows a person, on a terminal or in a file."""

import shlex
import time
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

from synapse_federation_admin.playground.check import CheckResult
from synapse_federation_admin.playground.client import (
    CONSOLE,
    FEDERATION,
    FEDERATION_V2,
    Json,
    quoted,
)
from synapse_federation_admin.playground.remote import Behaviour
from synapse_federation_admin.playground.world import Playground

_STYLES = {
    Behaviour.HEALTHY: "green",
    Behaviour.SLOW: "yellow",
}


class Progress:
    """Shows the steps one after another, with the time that each took.

    On a terminal the step at work has a spinner; elsewhere each step is one line when
    it begins and nothing is overwritten.
    """

    def __init__(self, console: Console) -> None:
        """Show on a console."""
        self._console = console
        self._step = ""
        self._began = 0.0
        self._status: Status | None = None

    def __call__(self, step: str) -> None:
        """Begin a step; this ends the one before."""
        self.done()
        self._step, self._began = step, time.monotonic()
        if self._console.is_terminal:
            self._status = self._console.status(Text(f"{step} …"))
            self._status.start()
        else:
            self._console.print(f"{step} ...", markup=False, highlight=False)

    def done(self) -> None:
        """End the step at work, if there is one; it succeeded."""
        step = self._end()
        if step and self._console.is_terminal:
            took = time.monotonic() - self._began
            line = Text.assemble(("✓ ", "green"), step, (f" ({took:.1f} s)", "dim"))
            self._console.print(line)

    def failed(self) -> None:
        """End the step at work, if there is one; it did not succeed."""
        step = self._end()
        if step and self._console.is_terminal:
            self._console.print(Text.assemble(("✗ ", "red"), step))

    def _end(self) -> str:
        if self._status is not None:
            self._status.stop()
            self._status = None
        step, self._step = self._step, ""
        return step


def ago(ts: int | None, now_ts: int) -> str:
    """Say how long ago a time was; both are milliseconds since the epoch."""
    return "never" if not ts else f"{duration(now_ts - ts)} ago"


def duration(ms: int) -> str:
    """Say how long a number of milliseconds is, in its largest two units."""
    seconds = max(0, round(ms / 1000))
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def destinations_table(
    rows: Iterable[Json],
    behaviour_of: Callable[[str], Behaviour | None],
    *,
    title: str | None = None,
) -> Table:
    """Make a table of destinations as the API gives them, and what each really does."""
    now_ts = int(time.time() * 1000)
    table = Table(title=title, title_justify="left", expand=False)
    table.add_column("destination", overflow="fold", min_width=15)
    # Headings in lines of their own: together they fit 80 columns.
    table.add_column("failure_ts", no_wrap=True)
    table.add_column("retry_last_ts", no_wrap=True)
    table.add_column("retry_\ninterval", no_wrap=True)
    table.add_column("last_\nsuccessful_\nstream_\nordering", justify="right")
    for row in rows:
        behaviour = behaviour_of(row["destination"])
        name = Text(row["destination"])
        if behaviour is not None:
            name.append(f"\n{behaviour.value}", _STYLES.get(behaviour, "red"))
        table.add_row(
            name,
            _two_lines(row["failure_ts"], ago(row["failure_ts"], now_ts)),
            _two_lines(row["retry_last_ts"], ago(row["retry_last_ts"], now_ts)),
            _two_lines(row["retry_interval"], duration(row["retry_interval"])),
            _value(row["last_successful_stream_ordering"]),
        )
    return table


def _two_lines(raw: int | None, human: str) -> Text:
    text = Text(_value(raw))
    if raw:
        text.append(f"\n{human}", "dim")
    return text


def _value(raw: int | None) -> str:
    return "null" if raw is None else str(raw)


def curl_lines(
    url: str, access_token: str, server_name: str, control_url: str
) -> list[tuple[str, str]]:
    """Make shell lines to play with, each with what it does.

    Args:
        url: the base URL of a listener.
        access_token: the admin's.
        server_name: the destination that they are about.
        control_url: the base URL of the switchboard.
    """
    token = shlex.quote(f"Authorization: Bearer {access_token}")
    base = f"{url}{FEDERATION}/destinations"
    one = f"{base}/{quoted(server_name)}"
    v2 = f"{url}{FEDERATION_V2}"
    one_v2 = f"{v2}/destinations/{quoted(server_name)}"
    # Synapse's answers do not end with a newline of their own.
    get = f"curl -sS -w '\\n' -H {token}"
    return [
        (
            "All destinations, the latest failure first",
            f"{get} {shlex.quote(f'{base}?order_by=failure_ts&dir=b')}",
        ),
        ("The one that is down", f"{get} {shlex.quote(one)}"),
        (
            "Why it fails, and what to do",
            f"{get} -X POST {shlex.quote(f'{one_v2}/diagnose')}",
        ),
        ("The rooms that it shares with us", f"{get} {shlex.quote(f'{one}/rooms')}"),
        (
            "Bring it up (or: down, slow, hanging, bad_gateway ...)",
            f"curl -sS -X PUT -d healthy {shlex.quote(f'{control_url}/{server_name}')}",
        ),
        (
            "Reset its connection: what waits for it is sent at once",
            f"{get} -X POST {shlex.quote(f'{one}/reset_connection')}",
        ),
        (
            "Or, before and after: contact it, and see what comes of it",
            f"{get} -X POST {shlex.quote(f'{one_v2}/reconnect')}",
        ),
        (
            "Reconnect all that fail, and look how it goes",
            f"{get} -d '{{\"all_failing\": true}}' {shlex.quote(f'{v2}/reconnect')}",
        ),
        ("", f"{get} {shlex.quote(f'{v2}/runs')}"),
        (
            "Who did what, and what came of it",
            f"{get} {shlex.quote(f'{v2}/audit')}",
        ),
    ]


def show_destinations(
    console: Console, playground: Playground, rows: list[Json], title: str
) -> None:
    """Print the table of destinations."""
    console.print()
    console.print(destinations_table(rows, playground.behaviour_of, title=title))


def show_diagnoses(console: Console, diagnoses: Iterable[Json]) -> None:
    """Print why servers fail, and what to do."""
    console.print()
    for diagnosis in diagnoses:
        plain(console, f"{diagnosis['destination']}  {diagnosis['kind']}")
        for text, style in (("explanation", ""), ("advice", "dim")):
            console.print(Padding(Text(diagnosis[text], style), (0, 0, 0, 2)))
    console.print()


def show_playground(
    console: Console, playground: Playground, control_url: str, sign_in_url: str
) -> None:
    """Print all that one needs to play: addresses, token, table, and curl lines."""
    show_destinations(
        console, playground, playground.destinations(), "Destinations, as the API says"
    )
    synapse = playground.synapse
    console.print()
    facts = [("homeserver", synapse.server_name)]
    facts += [(name, synapse.url(name)) for name in _admin_processes(playground)]
    facts += [
        ("admin", playground.admin.user_id),
        ("password", playground.admin.password),
        ("token", playground.admin.access_token),
        ("files", str(playground.folder)),
    ]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        plain(console, f"{name:<{width}}  {value}")
    down = playground.remotes[Behaviour.DOWN].server_name
    token = playground.admin.access_token
    for what, line in curl_lines(synapse.url(), token, down, control_url):
        if what:
            console.print()
            console.print(Text(f"# {what}:", "dim"))
        plain(console, line)
    console.print()
    console.print(Text("# The command line, in another terminal:", "dim"))
    plain(console, f"export FEDERATION_ADMIN_URL={shlex.quote(synapse.url())}")
    plain(console, f"export FEDERATION_ADMIN_TOKEN={shlex.quote(token)}")
    plain(console, "synapse-federation-admin status")
    plain(console, f"synapse-federation-admin why {shlex.quote(down)}")
    console.print()
    console.print(Text("# The console, and a link that signs you in, once:", "dim"))
    plain(console, f"{synapse.url()}{CONSOLE}")
    plain(console, sign_in_url)


def show_result(console: Console, playground: Playground, result: CheckResult) -> None:
    """Print what the main job has shown."""
    show_destinations(console, playground, [result.after], "After the reset")
    console.print()
    plain(
        console,
        f"{result.repaired} was down, is up, and its connection was reset.",
    )
    for what, seconds in (
        ("first contact", result.first_contact_s),
        ("the waiting event", result.pdu_s),
        ("the waiting to-device message", result.to_device_s),
    ):
        when = f"{seconds:.3f} s after" if seconds >= 0 else "even before"
        plain(console, f"  {what:<30} {when} the reset's answer")


def _admin_processes(playground: Playground) -> list[str]:
    """Return the processes whose client listeners serve the admin API."""
    return [
        name
        for name in playground.synapse.processes
        if not name.startswith("federation_sender")
    ]


def plain(console: Console, line: str) -> None:
    """Print a line to be copied: never wrapped, never styled."""
    console.print(
        line, soft_wrap=True, markup=False, highlight=False, emoji=False, style=None
    )
