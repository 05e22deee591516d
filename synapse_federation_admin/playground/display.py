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
from synapse_federation_admin.playground.configuration import FEDERATION_SENDERS
from synapse_federation_admin.playground.remote import Behaviour
from synapse_federation_admin.playground.world import Playground

NAME = "synapse-federation-admin"

_STYLES = {
    Behaviour.HEALTHY: "green",
    Behaviour.SLOW: "yellow",
}


def show(*lines: str) -> None:
    """Print lines to be copied: never wrapped, never styled."""
    _print(Console(), *lines)


def note(*lines: str) -> None:
    """Likewise, on stderr."""
    _print(Console(stderr=True), *lines)


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)


def fail(text: str) -> None:
    """Tell an error, whose first line says what it is."""
    first, _, rest = text.rstrip().partition("\n")
    error = Text.assemble(("Error: ", "bold red"), first)
    Console(stderr=True).print(error, soft_wrap=True)
    if rest:
        note(rest)


def progress() -> Callable[[str], None]:
    """Return what shows a step when it begins, with the time that has passed."""
    began = time.monotonic()
    return lambda step: show(f"{time.monotonic() - began:5.1f} s  {step}")


def show_diagnoses(diagnoses: Iterable[Json]) -> None:
    """Print why servers fail, and what to do."""
    show("")
    for diagnosis in diagnoses:
        show(f"{diagnosis['destination']}  {diagnosis['kind']}")
        for text, style in (("explanation", ""), ("advice", "dim")):
            Console().print(Padding(Text(diagnosis[text], style), (0, 0, 0, 2)))
    show("")


def show_failing(playground: Playground, rows: list[Json]) -> None:
    """Print the servers that fail, what each really does, and since when.

    Args:
        playground: whose servers they are.
        rows: as v1 gives them.
    """
    total, now_ms = len(playground.servers), int(time.time() * 1000)
    show("", f"{len(rows)} of {total} servers are failing, each in its own way:")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in ("  Server", "What it does", "Failing for"):
        table.add_column(head, overflow="fold")
    for row in rows:
        behaviour = playground.behaviour_of(row["destination"]) or Behaviour.HEALTHY
        table.add_row(
            f"  {row['destination']}",
            Text(behaviour.value, _STYLES.get(behaviour, "red")),
            duration(max(now_ms - row["failure_ts"], SECOND_MS)),
        )
    Console().print(table)


def show_playground(playground: Playground, control_url: str, sign_in_url: str) -> None:
    """Print all that one needs to play: what fails, addresses, and lines to paste.

    Args:
        playground: prepared.
        control_url: the base URL of the switchboard.
        sign_in_url: signs a browser in.
    """
    rows = playground.destinations()
    show_failing(playground, [row for row in rows if row["failure_ts"]])
    synapse, admin, url = playground.synapse, playground.admin, playground.synapse.url()
    token = shlex.quote(f"Authorization: Bearer {admin.access_token}")
    # Synapse's answers do not end with a newline of their own.
    ask = f"curl -sS -w '\\n' -H {token} {url}"
    down = playground.remotes[Behaviour.DOWN].server_name
    folder = shlex.quote(str(Path(sys.executable).parent))
    for what, *commands in (
        ("The console, and a link that signs you in, once", url + CONSOLE, sign_in_url),
        (
            "The command line, in another terminal",
            *([] if shutil.which(NAME) else [f"export PATH={folder}:$PATH"]),
            f"export FEDERATION_ADMIN_URL={url}",
            f"export FEDERATION_ADMIN_TOKEN={shlex.quote(admin.access_token)}",
            f"{NAME} status",
            f"{NAME} top",
        ),
        ("One that is down: why, and what to do", f"{NAME} why {down}"),
        (
            "Bring it up (or: down, slow, hanging, bad_gateway ...), and reconnect it",
            f"curl -sS -X PUT -d healthy {control_url}/{down}",
            f"{NAME} reconnect {down}",
        ),
        ("Who did what, and what came of it", f"{NAME} audit"),
        (
            "The API: all in a few numbers; all servers as Synapse's own API has them",
            f"{ask}{FEDERATION_V2}/summary",
            f"{ask}{FEDERATION}/destinations",
        ),
    ):
        show("")
        Console().print(Text(f"# {what}:", "dim"))
        show(*commands)
    # Those of the federation senders have no admin API.
    facts = [
        (name, synapse.url(name))
        for name in synapse.processes
        if name not in FEDERATION_SENDERS
    ]
    facts += [("admin", f"{admin.user_id}, password {admin.password}")]
    facts += [("files", str(playground.folder))]
    width = max(len(name) for name, _ in facts)
    show("", *(f"{name:<{width}}  {value}" for name, value in facts))


def show_result(result: CheckResult) -> None:
    """Print what the main job has shown."""
    show("", f"{result.repaired} was down, is up, and its connection was reset.")
    for what, seconds in (
        ("first contact", result.first_contact_s),
        ("the waiting event", result.pdu_s),
        ("the waiting to-device message", result.to_device_s),
    ):
        when = f"{seconds:.3f} s after" if seconds >= 0 else "even before"
        show(f"  {what:<30} {when} the reset's answer")
