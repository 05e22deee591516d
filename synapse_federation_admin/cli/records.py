# SPDX-License-Identifier: Apache-2.0
"""What is on record: `audit` and `export`."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click
from rich.text import Text

from synapse_federation_admin.cli import options
from synapse_federation_admin.cli.look import WIDE, exact
from synapse_federation_admin.cli.options import Asked, pass_asked, query, shared
from synapse_federation_admin.cli.output import (
    escaped,
    keep_names,
    line,
    pill,
    since,
    table,
    user,
)
from synapse_federation_admin.wording import outcomes
from synapse_federation_admin.wording.amounts import shown


@click.command()
@options.from_api(options.AUDIT)
@shared
@pass_asked
def audit(asked: Asked, /, **given: Any) -> None:
    """Who changed what, when and why, and what came of it. The newest first."""
    answer = asked.client.get("/audit", query(given, options.AUDIT))
    out = asked.out

    def human() -> None:
        entries = answer.get("entries", ())
        if not entries:
            out.note("Nothing was done that this keeps.")
            return
        is_wide = out.console.width >= WIDE
        heads = ["When" if is_wide else "Ago", "What", "Server", "Who", "Outcome"]
        made = table(*heads, *(["Why"] if is_wide else []))
        names = [e.get("destination") or f"run {e.get('run_id')}" for e in entries]
        keep_names(made.columns[2], names, out.console.width)
        for each, name in zip(entries, names, strict=True):
            told = outcomes.outcome(each["action"], each["outcome"])
            who = user(each.get("user_id"), is_wide)
            if each.get("puppeted_by"):
                who = Text.assemble(who, " by ", user(each["puppeted_by"], is_wide))
            cells = [
                Text(exact(each["ts"]) if is_wide else since(each["ts"])),
                line(outcomes.action(each["action"])),
                line(name),
                who,
                pill(told.sign, told.word),
            ]
            if is_wide:
                why = (each.get("reason"), outcomes.why(each.get("details", {})))
                cells.append(line("; ".join(str(text) for text in why if text)))
            made.add_row(*cells)
        out.show(made)
        out.tell_more(answer, len(entries))

    out.answer(answer, human)


@click.command()
@options.from_api(options.EXPORT)
@shared
@pass_asked
def export(asked: Asked, /, **given: Any) -> None:
    """Write all servers that the filters keep to stdout, however many they are.

    The exit status is 0 only if what was written is complete.
    """
    params = query(given, options.EXPORT)
    is_csv = params.get("format") == "csv"
    with asked.client.stream("/destinations/export", params) as pieces:
        # JSON stays what it is.
        for text in _csv_shown(pieces) if is_csv else map(escaped, pieces):
            sys.stdout.write(text)
    sys.stdout.flush()


def _csv_shown(pieces: Iterable[str]) -> Iterator[str]:
    """Show what no terminal should obey, which CSV has no way to write, in each row."""
    rest = ""
    for piece in pieces:
        *rows, rest = (rest + piece).split("\r\n")
        yield "".join(f"{shown(row)}\r\n" for row in rows)
    yield shown(rest)
