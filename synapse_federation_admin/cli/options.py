# SPDX-License-Identifier: Apache-2.0
"""Options that many commands have, and those that are parameters of the API.

The API's stand in tables, by which a test holds them against its own description.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import attr
import click
from click.shell_completion import CompletionItem

from synapse_federation_admin.cli.client import V1, Client
from synapse_federation_admin.cli.connection import find_connection
from synapse_federation_admin.cli.exits import FailedError
from synapse_federation_admin.cli.output import FORMATS, Output
from synapse_federation_admin.destinations.values import (
    DestinationOrder,
    DestinationStatus,
    Direction,
)
from synapse_federation_admin.failures.kinds import FAILURE_KINDS
from synapse_federation_admin.storage.audit_entry import AuditAction

F = TypeVar("F", bound=Callable[..., Any])

# A shell that completes a word has no use for what comes later.
_HURRY_S = 3.0


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Parameter:
    """A parameter of the API, which becomes an option.

    Attributes:
        name: Its name there: `order_by` becomes `--order-by`.
        help: What it does.
        choices: The values that this release knows; none: any.
        is_many: Whether it may be given repeatedly.
        is_flag: Whether it is `true` or left out.
        least: The least number; None: it is no number.
        most: The largest.
    """

    name: str
    help: str
    choices: tuple[str, ...] = ()
    is_many: bool = False
    is_flag: bool = False
    least: int | None = None
    most: int | None = None


FILTERS = (
    Parameter(
        "status",
        "Keep what has one of these statuses.",
        tuple(each.value for each in DestinationStatus),
        is_many=True,
    ),
    Parameter(
        "destination",
        "Keep the names that contain this text or, if `*` (any text) or `?` (any "
        "character) is in it, match it as a whole; in any case of ASCII letters.",
    ),
    Parameter("failing_for", "Keep what has been failing for at least so long."),
    Parameter("failing_under", "Keep what has been failing for less than so long."),
    Parameter(
        "failure",
        "Keep what is failing, and whose last real request failed with one of these "
        "kinds; `unknown` stands for what has not failed since the module was "
        "installed.",
        tuple(FAILURE_KINDS),
        is_many=True,
    ),
)
"""Which destinations: of lists, exports and runs."""

SORT = (
    Parameter(
        "order_by",
        "What to sort by; `null` comes last in both directions, and equal values are "
        "sorted by name.",
        tuple(each.value for each in DestinationOrder),
    ),
    Parameter(
        "dir",
        "`f`: ascending; `b`: descending.",
        tuple(each.value for each in Direction),
    ),
    Parameter(
        "has_backlog",
        "Keep what is failing, and for which something waited when that was last "
        "looked for: the most first, whatever `order_by` and `dir` say.",
        is_flag=True,
    ),
)

PAGES = (
    Parameter("limit", "The most rows to return.", least=1, most=1000),
    Parameter("from", "The `next_token` of the page before."),
)

LIST = (
    *FILTERS,
    *SORT,
    *PAGES,
    Parameter(
        "include",
        "Adds to each destination what waits for it (`backlog`), why a real request to "
        "it last failed (`failure`), how much of the last 14 days it was not failing "
        "(`availability`), how many users of this server it affects (`local_users`).",
        ("backlog", "failure", "availability", "local_users"),
        is_many=True,
    ),
    Parameter(
        "total",
        "Adds how many rows the filters keep, counted at the first page that asks for "
        "it.",
        is_flag=True,
    ),
)

EXPORT = (
    *FILTERS,
    *SORT,
    Parameter(
        "format",
        "`ndjson`: an object as in the list in every line; `csv`: a table whose first "
        "line names the columns, those of the backlog without `backlog.`.",
        ("ndjson", "csv"),
    ),
    Parameter(
        "include", "Adds what waits for each destination.", ("backlog",), is_many=True
    ),
)

AUDIT = (
    *PAGES,
    Parameter("destination", "The exact name."),
    Parameter("user", "The user who did it, or the admin who acted as that user."),
    Parameter(
        "action",
        "Keep what has one of these actions.",
        tuple(each.value for each in AuditAction),
        is_many=True,
    ),
    Parameter("outcome", "The outcome."),
    Parameter("run_id", "What belongs to a run."),
    Parameter("since_ts", "Keep what began then or later.", least=0),
    Parameter("until_ts", "Keep what began before.", least=0),
)

ATTENTION = (
    Parameter(
        "order_by",
        "What to sort by, the most first: `local_users`, or `waiting`.",
        ("local_users", "waiting"),
    ),
    Parameter("limit", "The most to return.", least=1, most=50),
)

RUNS = (
    Parameter("limit", "The most runs to return.", least=1, most=100),
    Parameter("from", "The `next_token` of the page before."),
)


class _Known(click.ParamType):  # type: ignore[type-arg]
    """A value of which some are known: completed, and told.

    The API says which it takes: a later one may take more.
    """

    name = "value"

    def __init__(self, parameter: Parameter) -> None:
        self._known = parameter.choices
        self.name = "duration" if parameter.name.startswith("failing_") else "text"

    def get_metavar(
        self,
        param: click.Parameter,  # noqa: ARG002
        ctx: click.Context | None = None,  # noqa: ARG002
    ) -> str | None:
        if self._known and len(self._known) <= 3:
            return f"[{'|'.join(self._known)}]"
        return "VALUE" if self._known else self.name.upper()

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        return [CompletionItem(e) for e in self._known if e.startswith(incomplete)]


def from_api(parameters: Iterable[Parameter]) -> Callable[[F], F]:
    """Decorate a command with parameters of the API; it gets them by their names."""

    def decorate(function: F) -> F:
        for parameter in reversed(tuple(parameters)):
            function = _option(parameter)(function)
        return function

    return decorate


def _option(parameter: Parameter) -> Callable[[F], F]:
    name = parameter.name
    told = parameter.help
    if len(parameter.choices) > 3:
        told = f"{told} One of {', '.join(parameter.choices)}."
    kind: Any = _Known(parameter)
    if parameter.least is not None:
        kind = click.IntRange(parameter.least, parameter.most)
    flags: dict[str, Any] = {"type": kind}
    if parameter.is_flag:
        flags = {"is_flag": True}
    elif parameter.least is not None:
        flags["metavar"] = "NUMBER"
    return click.option(
        f"--{name.replace('_', '-')}",
        # `from` is no name that Python takes.
        f"{name}_" if name == "from" else name,
        help=told,
        # What stands twice is seen to, rather than the last one taken.
        multiple=not parameter.is_flag,
        **flags,
    )


def query(given: Mapping[str, Any], parameters: Iterable[Parameter]) -> dict[str, Any]:
    """Return what was given of parameters of the API, as the API names them.

    Raises:
        UsageError: One is empty, as of a shell's variable that is not set, or stands
            twice: without it a filter would keep more than was meant.
    """
    found: dict[str, Any] = {}
    for parameter in parameters:
        name = parameter.name
        value = given[f"{name}_" if name == "from" else name]
        if not value:
            continue
        if parameter.is_flag:
            found[name] = True
            continue
        if "" in value or (len(value) > 1 and not parameter.is_many):
            why = "is empty" if "" in value else "is given twice"
            raise click.UsageError(f"--{name.replace('_', '-')} {why}.")
        found[name] = list(value) if parameter.is_many else value[0]
    return found


# -- where, who, and how ---------------------------------------------------------------


class Asked:
    """What a command is given: whom to ask, and where to write.

    It is made of the options of the command and of those before it.
    """

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    @cached_property
    def out(self) -> Output:
        """Where to write."""
        return Output(self.given.get("output") or FORMATS[0])

    @cached_property
    def client(self) -> Client:
        """Whom to ask."""
        found = find_connection(
            self.given.get("url"),
            self.given.get("homeserver_yaml") or (),
        )
        client = Client(found)
        context = click.get_current_context(silent=True)
        if context is not None:
            context.find_root().call_on_close(client.close)
        return client


pass_asked = click.make_pass_decorator(Asked, ensure=True)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value not in (None, ()):
        ctx.ensure_object(Asked).given[str(param.name)] = value


def shared(function: F) -> F:
    """Decorate a command, or the group, with the options that all have."""
    for option in reversed(
        (
            click.option(
                "-o",
                "--output",
                type=click.Choice(FORMATS),
                callback=_keep,
                expose_value=False,
                help="How to write what was found. `human`, the default, is for people"
                " and changes between releases; `json` is the API's own answer, and"
                " `minified` the same on one line.",
            ),
            click.option(
                "--url",
                metavar="URL",
                callback=_keep,
                expose_value=False,
                help="Where the homeserver is: https://matrix.example.org, or"
                " unix:/run/synapse/main.sock.",
            ),
            click.option(
                "-c",
                "--homeserver-yaml",
                metavar="FILE",
                type=click.Path(path_type=Path),
                multiple=True,
                callback=_keep,
                expose_value=False,
                help="On the homeserver's own machine: its homeserver.yaml, which says"
                " where it listens. A worker's file, or a folder, may follow.",
            ),
        )
    ):
        function = option(function)
    return function


def complete_names(
    ctx: click.Context,
    param: click.Parameter,  # noqa: ARG001
    incomplete: str,
) -> list[CompletionItem]:
    """Return the names of servers that begin with a text; none if nobody answers."""
    try:
        with closing(ctx.ensure_object(Asked).client) as client:
            client.wait_for(_HURRY_S)
            answer = client.call(
                "GET",
                f"{V1}/destinations",
                params={"destination": incomplete, "limit": 200},
            )
        names = [str(row["destination"]) for row in answer["destinations"]]
    except (FailedError, KeyError, TypeError):
        return []
    return [
        CompletionItem(name)
        for name in names
        if name.startswith(incomplete) and name.isprintable()
    ]


class _Name(click.ParamType):  # type: ignore[type-arg]
    """What something is called: never nothing, as of a variable that is not set."""

    name = "name"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        return value or self.fail("it is empty.", param, ctx)


NAME = _Name()


def name_argument(function: F) -> F:
    """Decorate a command with the name of a server."""
    return click.argument(
        "name", metavar="NAME", type=NAME, shell_complete=complete_names
    )(function)
