# SPDX-License-Identifier: Apache-2.0
"""All commands in one group."""

import sys
from contextlib import closing
from pathlib import Path

import click

from synapse_federation_admin import __version__
from synapse_federation_admin.cli.change import (
    cap_backoff,
    flush_caches,
    forget,
    reconnect,
)
from synapse_federation_admin.cli.client import Client
from synapse_federation_admin.cli.login import login, logout
from synapse_federation_admin.cli.look import (
    attention,
    audit,
    export,
    instances,
    list_,
    status,
    unlisted,
)
from synapse_federation_admin.cli.manual import NAME, man
from synapse_federation_admin.cli.one import outages, reset, shared_rooms, show, tell
from synapse_federation_admin.cli.options import Asked, command, shared
from synapse_federation_admin.cli.runs import cancel, runs, watch
from synapse_federation_admin.cli.why import why


class _Group(click.Group):
    """Tells the whole first sentence of each command, however long the line."""

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  # click gives it
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the table of commands: see click."""
        told = [
            (name, command.get_short_help_str(limit=1000))
            for name, command in self.commands.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(told)


@click.group(
    name=NAME, cls=_Group, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name=NAME)
def group() -> None:
    """See, explain and repair Matrix federation.

    What it writes for people may change between releases: scripts use `-o json`.

    Exit status: 0 fine, 1 failed, 2 wrong usage, 3 the destination fails, 4 not
    allowed, 5 the homeserver cannot be reached.
    """


@command()
def top(asked: Asked) -> None:
    """Look at what fails, live: a screen that is kept up to date.

    Is it us; what fails by cause and age; servers as they come and go; what waits, our
    senders, and the run under way. `?` tells the keys.
    """
    from synapse_federation_admin.cli.top import Top

    if not sys.stdout.isatty():
        raise click.UsageError("This needs a terminal; `status` does not.")
    client = asked.client
    with closing(Client(client.connection)) as looking:
        # Who hangs for longer may be back, and takes another request.
        looking.wait_for(30)
        # What is wrong is told before the screen changes.
        with asked.out.waiting(f"Asking {client.connection.url}"):
            looking.get("/status")
        Top(client, looking).run()


group.params += shared()


@group.result_callback()
@click.pass_context
def _exit(ctx: click.Context, status: int | None) -> None:
    """End with what a command has returned."""
    ctx.exit(status or 0)


@click.command()
@click.option(
    "--workers",
    is_flag=True,
    help="Run main, a generic worker and two federation senders on PostgreSQL "
    "and Redis, rather than one process on SQLite.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Do the main job and exit: find the failing destinations, bring the "
    "server that is down up, reset its connection, and see what was waiting for "
    "it arrive. The exit status is 0 only if all of that happened.",
)
@click.option(
    "--keep",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep configuration, logs and database in FOLDER, which must be empty "
    "or not there yet.",
)
def playground(workers: bool, check: bool, keep: Path | None) -> int:
    """Try the module on a real Synapse with remote servers that misbehave.

    Starts a Synapse and thirty remote servers on 127.0.0.x, most of which fail,
    in many ways; shows the destinations and the commands to try; and goes
    on until Ctrl-C. Then nothing is left behind.
    """
    from synapse_federation_admin.playground.session import run

    return run(workers=workers, check_only=check, keep=keep)


for _command in (
    *(status, top, list_, attention, show, outages, shared_rooms, why, tell),
    *(reconnect, reset, flush_caches, forget, cap_backoff),
    *(runs, watch, cancel, audit, export),
    *(instances, unlisted),
    *(login, logout, man, playground),
):
    group.add_command(_command)
