# SPDX-License-Identifier: Apache-2.0
"""What the playground shows a person, on a terminal or in a file."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from synapse_federation_admin.durations import SECOND_MS, duration
from synapse_federation_admin.playground.check import CheckResult
from synapse_federation_admin.playground.client import (
    CONSOLE,
    FEDERATION,
    FEDERATION_V2,
    Json,
)
from synapse_federation_admin.playground.remote import Behaviour
from synapse_federation_admin.playground.world import Playground

NAME = "synapse-federation-admin"

_STYLES = {
    Behaviour.HEALTHY: "green",
    Behaviour.SLOW: "yellow",
}


class Progress:
    """Shows the steps one after another, a line each, with the time that has passed."""

    def __init__(self, console: Console) -> None:
        """Show on a console."""
        self._console = console
        self._began = time.monotonic()

    def __call__(self, step: str) -> None:
        """Begin a step."""
        plain(self._console, f"{time.monotonic() - self._began:5.1f} s  {step}")


def servers_table(
    rows: Iterable[Json], behaviour_of: Callable[[str], Behaviour | None]
) -> Table:
    """Make a table of destinations: what each really does, and for how long it fails.

    Args:
        rows: as v1 gives them.
        behaviour_of: how the server of a name behaves.
    """
    now_ms = int(time.time() * 1000)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in ("  Server", "What it does", "Failing for"):
        table.add_column(head, overflow="fold")
    for row in rows:
        behaviour = behaviour_of(row["destination"]) or Behaviour.HEALTHY
        began = row["failure_ts"]
        table.add_row(
            f"  {row['destination']}",
            Text(behaviour.value, _STYLES.get(behaviour, "red")),
            "" if began is None else duration(max(now_ms - began, SECOND_MS)),
        )
    return table


def to_try(
    url: str, access_token: str, server_name: str, control_url: str
) -> list[tuple[str, list[str]]]:
    """Make shell lines to play with, under what they do.

    Args:
        url: the base URL of a listener.
        access_token: the admin's.
        server_name: the destination that they are about.
        control_url: the base URL of the switchboard.
    """
    token = shlex.quote(f"Authorization: Bearer {access_token}")
    # Synapse's answers do not end with a newline of their own.
    ask = f"curl -sS -w '\\n' -H {token}"
    name = shlex.quote(server_name)
    folder = shlex.quote(str(Path(sys.executable).parent))
    return [
        (
            "The command line, in another terminal",
            [
                *([] if shutil.which(NAME) else [f"export PATH={folder}:$PATH"]),
                f"export FEDERATION_ADMIN_URL={shlex.quote(url)}",
                f"export FEDERATION_ADMIN_TOKEN={shlex.quote(access_token)}",
                f"{NAME} status",
                f"{NAME} top",
            ],
        ),
        ("One that is down: why, and what to do", [f"{NAME} why {name}"]),
        (
            "Bring it up (or: down, slow, hanging, bad_gateway ...), and reconnect it",
            [
                f"curl -sS -X PUT -d healthy {shlex.quote(f'{control_url}/')}{name}",
                f"{NAME} reconnect {name}",
            ],
        ),
        ("Who did what, and what came of it", [f"{NAME} audit"]),
        (
            "The API: all in a few numbers; all servers as Synapse's own API has them",
            [
                f"{ask} {url}{FEDERATION_V2}/summary",
                f"{ask} {url}{FEDERATION}/destinations",
            ],
        ),
    ]


def show_diagnoses(console: Console, diagnoses: Iterable[Json]) -> None:
    """Print why servers fail, and what to do."""
    console.print()
    for diagnosis in diagnoses:
        plain(console, f"{diagnosis['destination']}  {diagnosis['kind']}")
        for text, style in (("explanation", ""), ("advice", "dim")):
            console.print(Padding(Text(diagnosis[text], style), (0, 0, 0, 2)))
    console.print()


def show_failing(console: Console, playground: Playground, rows: list[Json]) -> None:
    """Print the servers that fail, and how many do."""
    total = len(playground.servers)
    console.print()
    plain(console, f"{len(rows)} of {total} servers are failing, each in its own way:")
    console.print(servers_table(rows, playground.behaviour_of))


def show_playground(
    console: Console, playground: Playground, control_url: str, sign_in_url: str
) -> None:
    """Print all that one needs to play: what fails, addresses, and lines to paste."""
    rows = playground.destinations()
    show_failing(console, playground, [row for row in rows if row["failure_ts"]])
    synapse, admin = playground.synapse, playground.admin
    down = playground.remotes[Behaviour.DOWN].server_name
    lines = to_try(synapse.url(), admin.access_token, down, control_url)
    console_lines = [f"{synapse.url()}{CONSOLE}", sign_in_url]
    lines.insert(0, ("The console, and a link that signs you in, once", console_lines))
    for what, commands in lines:
        console.print()
        console.print(Text(f"# {what}:", "dim"))
        for command in commands:
            plain(console, command)
    console.print()
    facts = [(name, synapse.url(name)) for name in _admin_processes(playground)]
    facts += [("admin", f"{admin.user_id}, password {admin.password}")]
    facts += [("files", str(playground.folder))]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        plain(console, f"{name:<{width}}  {value}")


def show_result(console: Console, result: CheckResult) -> None:
    """Print what the main job has shown."""
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
