# SPDX-License-Identifier: Apache-2.0
"""What is on record: `audit` and `export`."""

import sys

from rich.text import Text

from synapse_federation_admin.cli.client import Json
from synapse_federation_admin.cli.options import Asked, command
from synapse_federation_admin.cli.output import (
    Column,
    escaped,
    pill,
    since,
    user,
)
from synapse_federation_admin.cli.words import WIDE, exact
from synapse_federation_admin.wording import outcomes


@command("/audit")
def audit(asked: Asked, params: Json) -> None:
    """Who changed what, when and why, and what came of it. The newest first."""
    answer = asked.client.get("/audit", params)
    is_wide = asked.out.console.width >= WIDE
    when = exact if is_wide else since
    columns = (
        Column("When" if is_wide else "Ago", lambda entry: when(entry["ts"])),
        Column("What", lambda entry: outcomes.action(entry["action"])),
        Column("Server", _server, is_name=True),
        Column("Who", lambda entry: _who(entry, is_wide)),
        Column("Outcome", _outcome),
        Column("Why", _why, WIDE),
    )
    none = "No entry matches." if params else "Nothing was done yet."
    asked.out.answer_list(answer, "entries", columns, none)


def _server(entry: Json) -> str:
    return str(entry.get("destination") or f"run {entry.get('run_id')}")


def _outcome(entry: Json) -> Text:
    told = outcomes.outcome(entry["action"], entry["outcome"])
    return pill(told.sign, told.word)


def _who(entry: Json, is_wide: bool) -> Text:
    who = user(entry.get("user_id"), is_wide)
    if entry.get("puppeted_by"):
        return Text.assemble(who, " by ", user(entry["puppeted_by"], is_wide))
    return who


def _why(entry: Json) -> str:
    why = (entry.get("reason"), outcomes.why(entry.get("details", {})))
    return "; ".join(str(text) for text in why if text)


@command("/destinations/export")
def export(asked: Asked, params: Json) -> None:
    """Write all servers that the filters keep to stdout, however many they are.

    The exit status is 0 only if what was written is complete.
    """
    with asked.client.stream("/destinations/export", params) as pieces:
        # JSON stays what it is; in CSV the API shows it already.
        for text in pieces if params.get("format") == "csv" else map(escaped, pieces):
            sys.stdout.write(text)
    sys.stdout.flush()
