# SPDX-License-Identifier: Apache-2.0
"""Exit statuses, and what ends a command with one of them."""

from enum import IntEnum
from typing import IO, Any

import click

from synapse_federation_admin.failures.bounds import shown


class Exit(IntEnum):
    """What a command tells a script."""

    FINE = 0
    FAILED = 1
    USAGE = 2
    DESTINATION_FAILS = 3
    NOT_ALLOWED = 4
    UNREACHABLE = 5


class FailedError(click.ClickException):
    """A command cannot do what it was asked to.

    Attributes:
        exit_code: One of `Exit`.
        answer: The object with which the API has said so; empty if it is not the API.
    """

    def __init__(
        self, message: str, status: Exit = Exit.FAILED, answer: Any = None
    ) -> None:
        super().__init__(message)
        self.exit_code = int(status)  # type: ignore[misc]
        self.answer: dict[str, Any] = answer if isinstance(answer, dict) else {}

    def show(self, file: IO[Any] | None = None) -> None:
        """Write it to stderr."""
        click.echo(f"Error: {shown(self.message)}", file=file, err=file is None)
