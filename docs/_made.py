# SPDX-License-Identifier: Apache-2.0
"""Write what is made of the code: `python docs/_made.py`.

That is openapi.json, the tables of the API's models, what cli.md has of commands, and
the parameters of the API that the command line makes options of.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attr
import click

import synapse_federation_admin
from synapse_federation_admin.api import ROUTES
from synapse_federation_admin.api._openapi import declared_for, document
from synapse_federation_admin.api._operation import json_schema
from synapse_federation_admin.api.schemas.destinations import Filter
from synapse_federation_admin.cli import command_line
from synapse_federation_admin.cli.manual import (
    commands,
    options_of,
    paragraphs,
    usage,
    written,
)
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.text import advice_of, fault_of, gist_of

# A table stands between two lines. The first names a route, for its parameters or its
# body (`<!-- table: GET /v2/federation/audit -->`), or an object
# (`<!-- table: Backlog -->`; `Destination beside V1Destination`: what that lacks), or
# the kinds and the reasons of failures, with examples.
_TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

_COMMAND = re.compile(
    r"(<!-- command: ([a-z-]*) -->\n).*?(<!-- end of command -->)", re.DOTALL
)

PARAMETERS = Path(synapse_federation_admin.__file__).parent / "cli/parameters.json"

# As a table of Markdown has it in a cell.
BAR = "\\|"


def openapi_json() -> str:
    """Return docs/openapi.json."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def parameters_json() -> str:
    """Return what the command line makes options of: of each path, what it takes."""
    taken = {
        path.removeprefix("/_synapse/admin/v2/federation"): found
        for path, methods in document()["paths"].items()
        if "/v2/" in path
        and (
            found := [
                p
                for p in methods.get("get", {}).get("parameters", ())
                if p["in"] == "query"
            ]
        )
    }
    filters = [p for p in taken["/destinations"] if p["name"] in Filter.model_fields]
    return json.dumps({"filter": filters, **taken}, indent=1, ensure_ascii=False) + "\n"


def with_tables(text: str) -> str:
    """Return a page of docs/ with its tables as the models have them.

    Raises:
        KeyError: A table is of a route or an object that there is not.
    """
    return _TABLE.sub(lambda match: match[1] + _table(match[2]) + match[3], text)


# What is particular of the failures that are told as examples.
_EXAMPLE = Facts(
    host="matrix.example.org",
    target="host.example.net",
    status=404,
    issuer="CN=R3",
    subject="CN=R3",
    server="nginx",
    names=("www.example.org",),
    ago_ms=259_200_000,
    left_ms=43_200_000,
    until_ts=1_795_475_024_352,
    took_ms=7_000,
    most_bytes=51_200,
    instance="federation_sender1",
    position=4711,
    ahead_ms=7_200_000,
)

_SAID = {
    Reason.M_SERVER_INVALID: "https://matrix.example.org",
    Reason.M_SERVER_NOT_A_STRING: "a number",
    Reason.NOT_JSON: "Not found",
    Reason.CACHED_DELEGATION: "old.example.org",
    Reason.DEFAULT_CERTIFICATE: "Traefik",
    Reason.OTHER_SERVER_NAME: "other.example.org",
    Reason.REDIRECT: "www.example.org",
}

# What an answer has that is not 404.
_STATUS = {Reason.NO_FILE_IN_IT: 204, Reason.ODD_STATUS: 204, Reason.SENT_AGAIN: 503}


def _kinds() -> str:
    """Return the table of kinds: an example, who has to act, and what to do."""
    rows = []
    for kind in FailureKind:
        failure = Failure(kind, None, attr.evolve(_EXAMPLE, status=410))
        told = (gist_of(failure), fault_of(failure).value, advice_of(failure))
        rows.append((kind.value, *told))
    return _rows(("kind", "such as", "whose fault", "what to do"), rows)


def _reasons() -> str:
    """Return the table of reasons; "" where something is that of the kind."""
    rows = []
    for reason in Reason:
        said = _SAID.get(reason, "ed25519:a")
        status = _STATUS.get(reason, _EXAMPLE.status)
        facts = attr.evolve(_EXAMPLE, said=said, status=status)
        failure = Failure(FailureKind.OTHER, reason, facts)
        told = gist_of(failure).removeprefix(f"{FailureKind.OTHER.headline}: ")
        whose = reason.fault.value if reason.fault else ""
        advice = advice_of(failure) if reason.advice else ""
        rows.append((reason.value, told, whose, advice))
    return _rows(("reason", "such as", "whose fault", "what to do"), rows)


def _table(name: str) -> str:
    if name in ("kinds", "reasons"):
        return _kinds() if name == "kinds" else _reasons()
    name, _, other = name.partition(" beside ")
    method, _, path = name.partition(" ")
    if not path:
        schemas = document()["components"]["schemas"]
        rows = [
            (key, _type(field, schemas), field["description"])
            for key, field in schemas[name]["properties"].items()
            if not other or key not in schemas[other]["properties"]
        ]
        return _rows(("key", "type", "meaning"), rows)
    declared = {(route.method, route.path): declared_for(route) for route in ROUTES}
    schema = json_schema(declared[method, f"/_synapse/admin{path}"].takes)
    is_query = method != "POST"
    rows = [
        (
            key,
            _meaning(field, schema.get("$defs", {}), is_query=is_query),
            "required"
            if key in schema.get("required", ())
            else _default(field.get("default")),
        )
        for key, field in schema["properties"].items()
    ]
    head = "parameter" if is_query else "key of the body"
    return _rows((head, "meaning", "default"), rows)


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head)]
    lines += [(f"`{key}`", *cells) for key, *cells in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("|  |", "| |")


def _default(value: Any) -> str:
    return "" if value in (None, "", []) else f"`{json.dumps(value).strip(chr(34))}`"


def _meaning(field: dict[str, Any], schemas: dict[str, Any], *, is_query: bool) -> str:
    """Return what a parameter means, and which values it may have."""
    text: str = field["description"]
    values = _resolved(field.get("items", field), schemas)
    if "enum" in values:
        # The kinds are many, and have a table of their own.
        words = [f"`{word}`" for word in values["enum"] if f"`{word}`" not in text]
        if words and len(words) < 10:
            text += f" One of {', '.join(words)}."
    if "minimum" in field and "maximum" in field and field["maximum"] < 2**53:
        text += f" From {field['minimum']:g} to {field['maximum']:g}."
    if field.get("type") == "array":
        most = f" of at most {field['maxItems']}" if "maxItems" in field else ""
        text += " May be given repeatedly." if is_query else f" A list{most}."
    return text


def _type(field: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Return a key's type in words."""
    if "anyOf" in field:
        kinds = [_type(kind, schemas) for kind in field["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    field = _resolved(field, schemas)
    if field.get("type") == "array":
        return f"list of {_type(field['items'], schemas)}s"
    return str(field.get("type", "any"))


def _resolved(field: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = field
    if "$ref" in field:
        found = schemas[field["$ref"].rpartition("/")[2]]
    return found


# -- cli.md ----------------------------------------------------------------------------


def with_commands(text: str) -> str:
    """Return docs/cli.md with what is made from the commands made anew."""
    known = commands(command_line())

    def section(found: "re.Match[str]") -> str:
        name = found[2]
        return found[1] + "\n".join(_markdown(name, known[name])) + "\n" + found[3]

    return _COMMAND.sub(section, text)


def _markdown(name: str, command: click.Command) -> Iterator[str]:
    if name:
        yield f"    {usage(name, command)}"
        yield ""
        for each in paragraphs(command):
            yield each
            yield ""
    options = options_of(name, command)
    filters = {*Filter.model_fields}
    if name != "list" and filters <= {option.name for option in options}:
        yield "Takes the filters of [`list`](#list): all options down to `--failure`."
        yield ""
        options = [option for option in options if option.name not in filters]
    if options:
        yield "| option | |"
        yield "| --- | --- |"
        for option in options:
            cells = (f"`{written(option)}`", option.help or "")
            yield f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def main(folder: Path) -> None:
    """Write all of it."""
    (folder / "openapi.json").write_text(openapi_json())
    # Before the commands are loaded, whose options it makes.
    PARAMETERS.write_text(parameters_json())
    for page in sorted(folder.glob("*.md")):
        page.write_text(with_commands(with_tables(page.read_text())))


if __name__ == "__main__":
    main(Path(__file__).parent)
