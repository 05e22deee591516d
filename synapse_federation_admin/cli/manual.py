# SPDX-License-Identifier: Apache-2.0
"""The man page, and the parts of docs/cli.md that are made from the commands.

`python -m synapse_federation_admin.cli.manual docs` writes the latter anew.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from synapse_federation_admin import __version__
from synapse_federation_admin.cli.entry import NAME, command_line
from synapse_federation_admin.cli.options import FILTERS

_BEGIN = re.compile(
    r"(<!-- command: ([a-z-]*) -->\n).*?(<!-- end of command -->)", re.DOTALL
)

# As a table of Markdown has it in a cell.
BAR = "\\|"

SHARED = ("output", "url", "homeserver_yaml", "help")
"""The options that every command has, by their names in Python."""


def commands() -> dict[str, click.Command]:
    """Return all commands by name; the group itself under ""."""
    group = command_line()
    return {"": group, **group.commands}


def options_of(name: str, command: click.Command) -> list[click.Option]:
    """Return the options of a command that not all have; of the group, those."""
    options = [p for p in command.params if isinstance(p, click.Option)]
    return [o for o in options if not name or o.name not in SHARED]


def usage(name: str, command: click.Command) -> str:
    """Return how a command is written."""
    context = click.Context(command, info_name=f"{NAME} {name}".rstrip())
    return f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"


def paragraphs(command: click.Command) -> list[str]:
    """Return what a command does, a line for each paragraph."""
    text = (command.help or "").strip()
    return [" ".join(each.split()) for each in text.split("\n\n")]


def written(option: click.Option) -> str:
    """Return how an option is written: `-o, --output FORMAT`."""
    context = click.Context(click.Command("x"))
    record = option.get_help_record(context)
    return record[0].replace("  ", " ") if record else ""


# -- docs/cli.md -----------------------------------------------------------------------


def with_tables(text: str) -> str:
    """Return docs/cli.md with what is made from the commands made anew."""
    known = commands()

    def section(found: "re.Match[str]") -> str:
        name = found[2]
        return found[1] + "\n".join(_markdown(name, known[name])) + "\n" + found[3]

    return _BEGIN.sub(section, text)


def _markdown(name: str, command: click.Command) -> Iterator[str]:
    if name:
        yield f"    {usage(name, command)}"
        yield ""
        for each in paragraphs(command):
            yield each
            yield ""
    options = options_of(name, command)
    filters = {each.name for each in FILTERS}
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


# -- the man page ----------------------------------------------------------------------


def man_page() -> str:
    """Return the man page, for section 1."""
    return "\n".join(_man(commands())) + "\n"


def _man(known: dict[str, click.Command]) -> Iterator[str]:
    group = known[""]
    first, *rest = paragraphs(group)
    yield f'.TH {NAME.upper()} 1 "" "{_roff(f"{NAME} {__version__}")}"'
    yield ".SH NAME"
    yield f"{_roff(NAME)} \\- {_roff(first.rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield _roff(usage("", group))
    yield ".SH DESCRIPTION"
    yield from _paragraphs(rest)
    yield ".SH OPTIONS OF ALL COMMANDS"
    yield from _options(options_of("", group))
    yield ".SH COMMANDS"
    for name, command in known.items():
        if name:
            yield f".SS {_roff(usage(name, command))}"
            yield from _paragraphs(paragraphs(command))
            yield from _options(options_of(name, command))
    yield ".SH FILES"
    yield ".TP"
    yield _roff("$XDG_CONFIG_HOME/synapse-federation-admin/login.json")
    yield "What login has kept."
    yield ".SH ENVIRONMENT"
    yield _roff("FEDERATION_ADMIN_URL, FEDERATION_ADMIN_TOKEN, NO_COLOR")


def _paragraphs(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield ".PP"
        yield _roff(text)


def _options(options: Sequence[click.Option]) -> Iterator[str]:
    for option in options:
        yield ".TP"
        yield f"\\fB{_roff(written(option))}\\fR"
        yield _roff(option.help or "")


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return f"\\&{text}" if text.startswith((".", "'")) else text


@click.command()
def man() -> None:
    """Write the man page: `synapse-federation-admin man | man -l -`."""
    click.echo(man_page(), nl=False)


if __name__ == "__main__":
    _path = Path(sys.argv[1]) / "cli.md"
    _path.write_text(with_tables(_path.read_text()))
