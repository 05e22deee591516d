# SPDX-License-Identifier: Apache-2.0
"""What `top` reads, and tells of it in a line."""

from collections.abc import Sequence

import attr
from rich.console import RenderableType
from rich.text import Text

from synapse_federation_admin.cli.client import Client, Json
from synapse_federation_admin.cli.look import with_why
from synapse_federation_admin.cli.output import line, pill
from synapse_federation_admin.wording.outcomes import under_way
from synapse_federation_admin.wording.servers import SENDERS, waiting

# So many servers are shown.
ROWS = 500


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Seen:
    """What was read.

    Attributes:
        summary: The summary.
        rows: The servers that fail, the last to begin first.
        is_all: Whether those are all.
        runs: The runs under way.
    """

    summary: Json
    rows: Sequence[Json]
    is_all: bool
    runs: Sequence[Json]


def read(client: Client, name: str) -> Seen:
    """Read all that the screen shows.

    Args:
        client: Whom to ask.
        name: Which servers: a text, or a pattern; "" for all.

    Raises:
        FailedError: It cannot be read.
    """
    params: Json = {
        "failing_for": "0s",
        "order_by": "failure_ts",
        "dir": "b",
        "limit": ROWS,
        "destination": name or None,
    }
    page = with_why(client, params)
    runs = client.get_if_on("/runs", {"limit": 5}).get("runs", ())
    return Seen(
        client.get("/summary"),
        page.get("destinations", ()),
        "next_token" not in page,
        under_way(runs),
    )


def brief(summary: Json) -> RenderableType:
    """Return what waits, and how our senders are, in a line."""
    backlog = summary.get("backlog", {})
    is_known = backlog.get("as_of_ts") is not None
    waits = waiting(backlog) if is_known else "not known yet"
    told = Text.assemble(("Waits: ", "bold"), waits, ("  Senders: ", "bold"))
    for sender in summary.get("senders") or ():
        look, word = SENDERS.get(str(sender.get("state")), ("muted", ""))
        name = line(sender.get("instance") or "nobody").plain
        told.append_text(pill(look, f"{name} {word} "))
    return told
