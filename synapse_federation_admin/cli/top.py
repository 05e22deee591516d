# SPDX-License-Identifier: Apache-2.0
"""`top`: a live screen of what fails, as it comes and goes.

One file of over 400 lines: what the screen shows and what its keys do is one state.
"""

import time
from collections.abc import Callable
from typing import Any, ClassVar

import attr
from rich.console import Group, RenderableType
from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Resize
from textual.widgets import DataTable, Footer, Input, Static

from synapse_federation_admin.cli.change import reconnected
from synapse_federation_admin.cli.client import Client, segment
from synapse_federation_admin.cli.exits import FailedError
from synapse_federation_admin.cli.one import shown_server
from synapse_federation_admin.cli.output import grid, line, now_ms, since
from synapse_federation_admin.cli.top_parts import (
    ROWS,
    Box,
    Question,
    Seen,
    brief,
    read,
)
from synapse_federation_admin.cli.why import diagnosis
from synapse_federation_admin.cli.words import (
    NARROW,
    heat,
    next_try,
    run_line,
    senders,
    verdict_lines,
    waiting_rows,
    why_of,
)
from synapse_federation_admin.durations import duration
from synapse_federation_admin.failures.bounds import shown
from synapse_federation_admin.wording.amounts import count, cut, middle
from synapse_federation_admin.wording.outcomes import under_way
from synapse_federation_admin.wording.servers import waiting

# How often it asks what has changed; the API reads that once in five seconds for all.
_CHANGES_S = 5.0

# After how long all is read anew, where something has changed, and where nothing has.
_AFTER_CHANGE_S = 10.0
_AFTER_NOTHING_S = 30.0

# An answer that takes longer is told as missing.
_SILENT_S = 10.0

# So long those that have come or gone are marked.
_NEW_S = 60

# From what width on the parts at the top are side by side, and all columns are shown.
_WIDE = 110

# What a narrow table has beside names and why they fail: a mark, for how long, spaces,
# and a bar.
_BESIDE = 21

_KEYS = (
    ("↑ ↓ PgUp PgDn", "choose a server"),
    ("Enter", "show all that is known of it"),
    ("d", "diagnose it: why it fails, and what to do"),
    ("r", "contact it, and reconnect it if it answers"),
    ("/", "keep the names that contain a text, or match `*` and `?`"),
    ("Esc", "keep all again; close what is open"),
    ("g", "read all anew"),
    ("?", "these keys"),
    ("q", "end"),
)


class Top(App[None]):
    """The screen."""

    TITLE = "synapse-federation-admin"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #verdict, #run, #trouble, #brief, #which { height: auto; padding: 0 1; }
    #trouble { color: $error; display: none; }
    #parts { height: auto; max-height: 45%; }
    #parts > VerticalScroll { width: 3fr; height: auto; max-height: 100%; }
    #side { width: 2fr; height: auto; }
    #parts Static { height: auto; padding: 0 1; }
    #brief, #which { display: none; }
    .narrow #parts { max-height: 35%; }
    .narrow #brief { display: block; }
    .narrow #side { display: none; }
    #filter { display: none; height: 3; }
    #servers { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        # Before the table takes it: what is typed right after it is the filter's.
        Binding("slash", "filter", "Filter", key_display="/", priority=True),
        Binding("d", "diagnose", "Diagnose"),
        Binding("r", "reconnect", "Reconnect"),
        Binding("g", "read", "Read anew", show=False),
        Binding("question_mark", "keys", "Keys", key_display="?"),
        Binding("escape", "all", "All", show=False),
        Binding("q,ctrl+c", "quit", "Quit", key_display="q"),
    ]

    def __init__(self, client: Client, looking: Client) -> None:
        """Make the screen.

        Args:
            client: Whom to ask for what a key asks for.
            looking: Whom to ask for what is shown; it does not wait for long.
        """
        super().__init__()
        self._client = client
        self._looking = looking
        self._wanted = ""
        self._since: int | None = None
        self._seen: Seen | None = None
        self._read_at = 0.0
        self._has_changed = False
        # When each was said to have begun to fail, or to be back.
        self._failed: dict[str, int] = {}
        self._back: dict[str, int] = {}
        # Since when an answer is waited for; None: for none.
        self._waits_since: float | None = None

    def compose(self) -> ComposeResult:
        """Make the parts of the screen."""
        yield Static(Text("Reading …", "dim"), id="verdict")
        yield Static(id="trouble")
        with Horizontal(id="parts"):
            with VerticalScroll(can_focus=False):
                yield Static(id="heat")
            with Vertical(id="side"):
                yield Static(id="waiting")
                yield Static(id="senders")
        yield Static(id="brief")
        yield Static(id="run")
        yield Static(id="which")
        yield Input(placeholder="a part of the name, or * and ?", id="filter")
        yield DataTable(id="servers", cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self.query_one(DataTable).focus()
        self.set_interval(_CHANGES_S, self._look)
        self.set_interval(1.0, self._show_ages)
        self._look()

    def on_resize(self, event: Resize) -> None:
        """Put what has no room side by side one below the other."""
        self.set_class(event.size.width < _WIDE, "narrow")
        self.call_after_refresh(self._show)

    # -- what is read ------------------------------------------------------------------

    @work(thread=True, exclusive=False, group="look")
    def _look(self) -> None:
        """Ask what has changed; read all, if that says so or it is long ago."""
        if self._waits_since is not None:
            return
        self._waits_since = time.monotonic()
        try:
            self._look_once()
        except FailedError as e:
            told = f"{e.message} Trying again."
            self.call_from_thread(self._tell_trouble, told)
        finally:
            self._waits_since = None

    def _look_once(self) -> None:
        changes = self._looking.get("/changes", {"since": self._since})
        is_first = self._since is None
        self._since = changes.get("as_of_ts")
        if not is_first:
            self._failed |= {e["destination"]: e["ts"] for e in changes["failed"]}
            self._back |= {e["destination"]: e["ts"] for e in changes["came_back"]}
        self._has_changed |= any(
            changes.get(what) for what in ("failed", "came_back", "runs", "audit")
        ) or not changes.get("is_complete", True)
        ago_s = time.monotonic() - self._read_at
        after_s = _AFTER_CHANGE_S if self._has_changed else _AFTER_NOTHING_S
        if self._seen is None or ago_s >= after_s:
            self._has_changed = False
            self._seen = read(self._looking, self._wanted)
            self._read_at = time.monotonic()
        elif changes.get("runs"):
            self._seen = attr.evolve(self._seen, runs=under_way(changes["runs"]))
        self.call_from_thread(self._show)

    def action_read(self) -> None:
        """Read all anew."""
        self._read_at = float("-inf")
        self._look()

    # -- what is shown -----------------------------------------------------------------

    def _tell_trouble(self, text: str) -> None:
        if not self.query("#trouble"):
            # It has ended meanwhile.
            return
        trouble = self.query_one("#trouble", Static)
        trouble.display = bool(text)
        trouble.update(line(f"✗ {text}") if text else "")

    def _show(self) -> None:
        seen = self._seen
        if seen is None or not self.query("#trouble"):
            return
        self._tell_trouble("")
        summary = seen.summary
        self._update("#verdict", *verdict_lines(summary))
        by_kind = summary.get("failing_by_kind_and_age")
        if by_kind:
            has_room = self.size.width >= NARROW
            # As the style sheet has it, of all but the line of keys.
            share = 0.45 if self.size.width >= _WIDE else 0.35
            lines = int((self.size.height - 1) * share)
            self._update("#heat", heat(by_kind, with_ages=has_room, lines=lines))
        else:
            self._update("#heat", Text())
        self._update(
            "#waiting", Text("What waits", "bold"), grid(waiting_rows(summary))
        )
        self._update("#senders", Text("Our senders", "bold"), senders(summary))
        self._update("#brief", brief(summary))
        self._update("#run", *(run_line(run) for run in seen.runs))
        self.query_one("#run").display = bool(seen.runs)
        self._show_rows(seen)

    def _update(self, selector: str, *what: RenderableType) -> None:
        self.query_one(selector, Static).update(Group(*what))

    def _show_rows(self, seen: Seen) -> None:
        table = self.query_one(DataTable)
        chosen, at = self.chosen, table.cursor_row
        table.clear(columns=True)
        is_wide = self.size.width >= _WIDE
        table.add_columns("", "Server", "Down for", "Why")
        if is_wide:
            table.add_columns("Next try", "Waits")
        whys = [why_of(row) for row in seen.rows]
        # The end of a name is its owner's, and why it fails has to be seen.
        room, longest = self.size.width - _BESIDE, 60
        if not is_wide:
            most = max(map(len, whys), default=0)
            longest = max(room - most, self.size.width // 3)
            whys = [cut(why, room - longest) for why in whys]
        failing = {str(row["destination"]) for row in seen.rows}
        newest = now_ms() - _NEW_S * 1000
        self._back = {n: ts for n, ts in self._back.items() if ts >= newest}
        self._failed = {n: ts for n, ts in self._failed.items() if ts >= newest}
        for name in self._back:
            if name not in failing and self._is_kept(name):
                cells = [
                    Text("✓", "green"),
                    line(middle(shown(name), longest), "green"),
                    Text(),
                    Text("is back"),
                ]
                table.add_row(*cells, *([Text(), Text()] if is_wide else []), key=name)
        for row, why in zip(seen.rows, whys, strict=True):
            name = str(row["destination"])
            began = row.get("failure_ts") or row.get("retry_last_ts") or 0
            is_new = began >= newest
            mark = Text("▲", "bold red") if is_new else Text(" ")
            if not is_new and name in self._failed:
                mark = Text("·", "red")
            cells = [
                mark,
                line(middle(shown(name), longest), "bold" if is_new else ""),
                Text(since(began)),
                line(why),
            ]
            if is_wide:
                cells += [Text(next_try(row)), Text(waiting(row.get("backlog")))]
            table.add_row(*cells, key=name)
        keys = [str(key.value) for key in table.rows]
        if chosen in keys:
            at = keys.index(chosen)
        if keys:
            table.move_cursor(row=min(at, len(keys) - 1), animate=False)
        self._tell_which(seen)

    def _is_kept(self, name: str) -> bool:
        """Tell whether a name that came back is one of those looked at."""
        wanted = self._wanted.lower()
        return "*" not in wanted and "?" not in wanted and wanted in name.lower()

    def _tell_which(self, seen: Seen) -> None:
        """Tell which of those that fail are shown, if not all are."""
        parts = []
        if self._wanted:
            parts.append(f"names like “{self._wanted}” (Esc: all)")
        if not seen.is_all:
            parts.append(f"the {count(ROWS)} that began last")
        which = self.query_one("#which", Static)
        which.display = bool(parts)
        which.update(line(f"Shown: {', '.join(parts)}", "yellow"))

    def _show_ages(self) -> None:
        """Let time pass where nothing is read."""
        if not self.query("#trouble"):
            # It has ended meanwhile.
            return
        if self._waits_since is not None:
            waited_s = time.monotonic() - self._waits_since
            if waited_s > _SILENT_S:
                told = duration(waited_s * 1000)
                self._tell_trouble(f"No answer for {told}: this is what was before.")
        if self._seen is not None and len(self.screen_stack) == 1:
            table = self.query_one(DataTable)
            for row in self._seen.rows:
                began = row.get("failure_ts") or row.get("retry_last_ts") or 0
                if now_ms() - began < 600_000 and row["destination"] in table.rows:
                    column = list(table.columns)[2]
                    table.update_cell(row["destination"], column, Text(since(began)))

    @property
    def chosen(self) -> str | None:
        """The name of the server that is chosen."""
        table = self.query_one(DataTable)
        if not table.row_count:
            return None
        row = min(table.cursor_row, table.row_count - 1)
        return str(list(table.rows)[row].value)

    # -- keys --------------------------------------------------------------------------

    def action_keys(self) -> None:
        """Tell the keys."""
        self.push_screen(Box(Text("Keys", "bold"), grid(_KEYS)))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Tell whether a key is ours: one for the filter, or for a box, is not."""
        is_elsewhere = isinstance(self.focused, Input) or isinstance(self.screen, Box)
        if action == "filter" and is_elsewhere:
            return False
        return super().check_action(action, parameters)

    def action_filter(self) -> None:
        """Ask which servers to show."""
        asked = self.query_one("#filter", Input)
        asked.value = self._wanted
        asked.display = True
        self.screen.set_focus(asked)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Show those whose names were asked for."""
        self._keep(event.value.strip())

    def action_all(self) -> None:
        """Show all servers again."""
        self._keep("")

    def _keep(self, name: str) -> None:
        self.query_one("#filter").display = False
        self.query_one(DataTable).focus()
        if name != self._wanted:
            self._wanted = name
            self.action_read()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Show all that is known of a server."""
        name = str(event.row_key.value)

        def ask() -> list[RenderableType]:
            server = self._client.get(f"/destinations/{segment(name)}")
            return list(shown_server(server, {}, {}))

        self._ask(f"Reading {name} …", ask)

    def action_diagnose(self) -> None:
        """Diagnose the server that is chosen."""
        name = self.chosen
        if name is not None:
            path = f"/destinations/{segment(name)}/diagnose"
            self._ask(
                f"Looking at the way to {name} …",
                lambda: list(diagnosis(self._client.post(path))),
            )

    def action_reconnect(self) -> None:
        """Contact the server that is chosen, if that is meant."""
        name = self.chosen
        if name is None:
            return

        def ask() -> list[RenderableType]:
            path = f"/destinations/{segment(name)}/reconnect"
            return list(reconnected(name, self._client.post(path)))

        def answered(is_meant: bool | None) -> None:
            if is_meant:
                self._ask(f"Contacting {name} …", ask, then=self.action_read)

        question = Question(
            line(f"Reconnect {name}?", "bold"),
            Text("It is contacted, and changed only if it answers."),
            Text("y: yes   n: no", "dim"),
        )
        self.push_screen(question, answered)

    def _ask(
        self,
        told: str,
        ask: Callable[[], list[RenderableType]],
        then: Callable[[], Any] | None = None,
    ) -> None:
        """Show what is asked for, once it is there."""
        box = Box(line(told, "dim"))
        self.push_screen(box)
        self._answer(box, ask, then)

    @work(thread=True, group="ask")
    def _answer(
        self,
        box: Box,
        ask: Callable[[], list[RenderableType]],
        then: Callable[[], Any] | None,
    ) -> None:
        try:
            what = ask()
        except FailedError as e:
            what = [line(f"✗ {e.message}", "red")]
        self.call_from_thread(self._answered, box, what)
        if then is not None:
            self.call_from_thread(then)

    def _answered(self, box: Box, what: list[RenderableType]) -> None:
        # Who has closed it does not want to see it any more.
        if box in self.screen_stack:
            box.replace(*what)
