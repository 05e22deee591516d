# SPDX-License-Identifier: Apache-2.0
"""What `top` reads, and tells of it in a line; and the boxes on top of its screen."""

from collections.abc import Sequence
from typing import ClassVar

import attr
from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

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


class Box(ModalScreen[bool]):
    """Something on top of the screen, until a key closes it."""

    DEFAULT_CSS = """
    Box { align: center middle; }
    Box > VerticalScroll {
        width: 90%; max-width: 120; height: auto; max-height: 90%;
        border: round $primary; background: $surface; padding: 0 1;
    }
    Box Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "close(False)", "Close")
    ]

    def __init__(self, *what: RenderableType) -> None:
        super().__init__()
        self._what = what

    def compose(self) -> ComposeResult:
        """Make its parts."""
        with VerticalScroll():
            yield Static(Group(*self._what), id="what")
        yield Footer()

    def replace(self, *what: RenderableType) -> None:
        """Show something else in it."""
        self._what = what
        self.query_one("#what", Static).update(Group(*what))

    def action_close(self, answer: bool) -> None:
        """Close it, with an answer."""
        self.dismiss(answer)


class Question(Box):
    """Something that is asked."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "close(True)", "Yes"),
        Binding("n,escape,q", "close(False)", "No"),
    ]
