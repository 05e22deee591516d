# SPDX-License-Identifier: Apache-2.0
"""What the commands say of themselves, and the man page that is made of it."""

from collections.abc import Iterator, Sequence

import click

from synapse_federation_admin import __version__

NAME = "synapse-federation-admin"

SHARED = ("output", "url", "homeserver_yaml", "help")
"""The options that every command has, by their names in Python."""


def commands(group: click.Group) -> dict[str, click.Command]:
    """Return all commands by name; the group itself under ""."""
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


# -- the man page ----------------------------------------------------------------------


def man_page(group: click.Group) -> Iterator[str]:
    """Write the man page, for section 1, line by line."""
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
    for name, command in group.commands.items():
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
@click.pass_context
def man(ctx: click.Context) -> None:
    """Write the man page: `synapse-federation-admin man | man -l -`."""
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    click.echo("\n".join(man_page(group)))
