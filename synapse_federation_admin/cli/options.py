# SPDX-License-Identifier: Apache-2.0
"""Options that many commands have, and those that are parameters of the API."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timezone
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import click
from click.shell_completion import CompletionItem

from synapse_federation_admin.cli.client import V1, Client
from synapse_federation_admin.cli.connection import find_connection
from synapse_federation_admin.cli.exits import FailedError
from synapse_federation_admin.cli.output import FORMATS, Output

F = TypeVar("F", bound=Callable[..., Any])

Parameter: TypeAlias = Mapping[str, Any]

# A shell that completes a word has no use for what comes later.
_HURRY_S = 3.0


PARAMETERS: Mapping[str, Sequence[Parameter]] = json.loads(
    Path(__file__).with_name("parameters.json").read_text("utf-8")
)
"""What each path of the API takes, as its own description has it; `filter`: what says
which destinations, of lists, exports and runs. `docs/_made.py` writes the file."""


class _Time(click.ParamType):  # type: ignore[type-arg]
    """A time in ms since the epoch, or as `2026-11-27T14:30`, of UTC."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if value.isascii() and value.isdigit():
            return int(value)
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is neither ms nor a time such as 2026-11-27.", param, ctx
            )
        return int(when.replace(tzinfo=when.tzinfo or timezone.utc).timestamp() * 1000)


def _option(parameter: Parameter) -> click.Option:
    name, schema = parameter["name"], parameter["schema"]
    known = schema.get("items", schema).get("enum", ())
    told = parameter["description"]
    if len(known) > 3:
        told = f"{told} One of {', '.join(known)}."
    flags: dict[str, Any]
    if schema["type"] == "boolean":
        flags = {"is_flag": True}
    elif schema["type"] == "integer":
        most = schema["maximum"]
        numbers = click.IntRange(schema["minimum"], most if most < 2**53 else None)
        flags = {"type": numbers, "metavar": "NUMBER"}
        if name.endswith("_ts"):
            told += " Or a day or a time of UTC: `2026-11-27`, `2026-11-27T14:30`."
            flags = {"type": _Time(), "metavar": "TIME"}
    else:
        flags = {"metavar": "DURATION" if name.startswith("failing_") else "TEXT"}
        if known:
            metavar = "VALUE" if len(known) > 3 else None
            flags = {"type": click.Choice(known), "metavar": metavar}
    return click.Option(
        [f"--{name.replace('_', '-')}", _in_python(name)],
        help=told,
        # What stands twice is seen to, rather than the last one taken.
        multiple="is_flag" not in flags,
        **flags,
    )


def _in_python(name: str) -> str:
    # `from` is no name that Python takes.
    return f"{name}_" if name == "from" else name


def _query(given: dict[str, Any], path: str) -> dict[str, Any]:
    """Take what was given of the parameters of a path, and name it as the API does.

    Raises:
        UsageError: One is empty, as of a shell's variable that is not set, or stands
            twice: without it a filter would keep more than was meant.
    """
    found: dict[str, Any] = {}
    for parameter in PARAMETERS[path]:
        name, kind = parameter["name"], parameter["schema"]["type"]
        value = given.pop(_in_python(name))
        if not value:
            continue
        if kind == "boolean":
            found[name] = True
            continue
        if "" in value or (len(value) > 1 and kind != "array"):
            why = "is empty" if "" in value else "is given twice"
            raise click.UsageError(f"--{name.replace('_', '-')} {why}.")
        found[name] = list(value) if kind == "array" else value[0]
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


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value not in (None, ()):
        ctx.ensure_object(Asked).given[str(param.name)] = value


def shared() -> list[click.Parameter]:
    """Return the options that all commands have, and the group before them."""
    kept: dict[str, Any] = {"callback": _keep, "expose_value": False}
    return [
        click.Option(
            ["-o", "--output"],
            type=click.Choice(FORMATS),
            help="How to write what was found. `human`, the default, is for people and"
            " changes between releases; `json` is the API's own answer, and `minified`"
            " the same on one line.",
            **kept,
        ),
        click.Option(
            ["--url"],
            metavar="URL",
            help="Where the homeserver is: https://matrix.example.org, or"
            " unix:/run/synapse/main.sock.",
            **kept,
        ),
        click.Option(
            ["-c", "--homeserver-yaml"],
            metavar="FILE",
            type=click.Path(path_type=Path),
            multiple=True,
            help="On the homeserver's own machine: its homeserver.yaml, which says"
            " where it listens. A worker's file, or a folder, may follow.",
            **kept,
        ),
    ]


def command(
    path: str = "", name: str | None = None
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a command that is given whom to ask, and has the options that all have.

    Args:
        path: Of the API, whose parameters become options, and `params` of the function.
        name: Of the command; that of the function by default.
    """

    def made(function: Callable[..., int | None]) -> click.Command:
        @click.make_pass_decorator(Asked, ensure=True)
        @wraps(function)
        def called(asked: Asked, /, **given: Any) -> int | None:
            if path:
                given["params"] = _query(given, path)
            return function(asked, **given)

        taken = [_option(parameter) for parameter in PARAMETERS.get(path, ())]
        found = click.command(name, params=taken)(called)
        found.params += shared()
        return found

    return made


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
