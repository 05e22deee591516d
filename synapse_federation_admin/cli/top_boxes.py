# SPDX-License-Identifier: Apache-2.0
"""What `top` shows on top of its screen."""

from typing import ClassVar

from rich.console import Group, RenderableType
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Static


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
