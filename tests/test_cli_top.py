# SPDX-License-Identifier: Apache-2.0
"""`top`, on a terminal of a test's own, wide and narrow."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import pytest
from deadlines import SOON_S
from rich.console import Console
from textual.containers import VerticalScroll
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from synapse_federation_admin.cli import top
from synapse_federation_admin.cli.exits import Exit, FailedError
from synapse_federation_admin.wording import causes

pytestmark = pytest.mark.one_synapse

HOSTILE = "[red]evil[/red]\x1b[2J.example"


class Homeserver:
    """Answers as the API does, and keeps what it was asked."""

    def __init__(self) -> None:
        self.failing = ["down.example", HOSTILE]
        self.changes: dict[str, Any] = {}
        self.asked: list[tuple[str, Any]] = []
        self.is_away = False
        self.answers = threading.Event()
        self.answers.set()
        self.runs: list[Any] = []

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        self.asked.append((path, params))
        assert self.answers.wait(2 * SOON_S)
        if self.is_away:
            raise FailedError("It cannot be reached.", Exit.UNREACHABLE)
        if path == "/changes":
            now = int(time.time() * 1000)
            lists = dict.fromkeys(("failed", "came_back", "runs", "audit"), ())
            return {"as_of_ts": now, "is_complete": True, **lists, **self.changes}
        if path == "/destinations":
            wanted = (params or {}).get("destination") or ""
            names = [name for name in self.failing if wanted in name]
            return {"destinations": [row(name) for name in names]}
        if path == "/runs":
            return {"runs": self.runs}
        if path == "/summary":
            return summary(len(self.failing))
        return row("down.example")

    get_if_on = get

    def post(self, path: str, body: Any = None) -> Any:
        self.asked.append((path, body))
        if path.endswith("/reconnect"):
            return {"outcome": "connected", "contact": {"duration_ms": 7}}
        return {"verdict": "failing", "explanation": "It is down.", "stages": []}


def row(name: str) -> dict[str, Any]:
    return {
        "destination": name,
        "status": "backing_off",
        "failure_ts": 1,
        "retry_last_ts": 2,
        "next_retry_ts": 3,
        "last_failure": {"kind": "connection_refused", "last_ts": 2, "message": "x"},
    }


def summary(failing: int) -> dict[str, Any]:
    ages = {"<1h": failing, "<1d": 0, "<7d": 0, "<30d": 0, ">=30d": 0}
    return {
        "total": 5,
        "failing": ages,
        "failing_by_kind_and_age": {"connection_refused": ages},
        "outlook": {
            "verdict": "normal",
            "explanation": "2 of 5",
            "can_be_told": True,
            "last_hour": {"tried": 5},
        },
        "senders": [{"instance": "main", "state": "running", "position": 1}],
        "backlog": {"as_of_ts": 1, "rooms": 3},
    }


def on_screen(pilot: "Pilot[None]") -> str:
    """Return all that the screen says."""
    found = []
    console = Console(width=200, file=None, force_terminal=False)
    for widget in pilot.app.screen.query(Static):
        with console.capture() as captured:
            console.print(widget.visual if widget.content is None else widget.content)
        found.append(captured.get())
    for table in pilot.app.screen.query(DataTable):
        for key in table.rows:
            found.append(" ".join(str(cell) for cell in table.get_row(key)))
    return "\n".join(found)


async def until(pilot: "Pilot[None]", is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + SOON_S
    while not is_so():
        assert time.monotonic() < deadline, on_screen(pilot)
        await pilot.pause(0.02)


def play(
    homeserver: Homeserver,
    act: Callable[["Pilot[None]"], Coroutine[Any, Any, None]],
    width: int = 160,
) -> None:
    async def run() -> None:
        app = top.Top(homeserver, homeserver)  # type: ignore[arg-type]
        async with app.run_test(size=(width, 40)) as pilot:
            await until(pilot, lambda: "down.example" in on_screen(pilot))
            await act(pilot)

    asyncio.run(run())


@pytest.fixture
def homeserver() -> Homeserver:
    return Homeserver()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often."""
    monkeypatch.setattr(top, "_CHANGES_S", 0.3)
    monkeypatch.setattr(top, "_AFTER_CHANGE_S", 0.0)
    monkeypatch.setattr(top, "_SILENT_S", 0.5)


def says(text: str) -> Callable[["Pilot[None]"], Awaitable[None]]:
    return lambda pilot: until(pilot, lambda: text in on_screen(pilot))


@pytest.mark.parametrize("width", [160, 60])
def test_what_is_there(homeserver: Homeserver, width: int) -> None:
    """The verdict, what fails, what waits, senders: on a wide and a narrow terminal."""

    async def act(pilot: "Pilot[None]") -> None:
        text = on_screen(pilot)
        assert "2 of 5 servers are failing. Nothing suggests that it is us." in text
        assert "Connection refused" in text
        assert "main" in text
        assert ("< 1 h" in text) == (width > 80)
        is_beside = pilot.app.query_one("#side").display
        assert (is_beside, pilot.app.query_one("#brief").display) == (
            (True, False) if width > 80 else (False, True)
        )
        # What somebody has chosen is no markup, and moves no terminal; a long name
        # leaves room for why it fails.
        name = "[red]evil[/red]⟨U+001B⟩[2J.example"
        assert (name if width > 80 else "[red]evil…2J.example") in text
        assert "\x1b[2J" not in text

    play(homeserver, act, width)


@pytest.mark.parametrize("width", [80, 60])
def test_fits(
    homeserver: Homeserver, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is longer than a narrow terminal is cut, rather than moved out of sight."""
    homeserver.failing += [f"{n}.matrix.university.example" for n in range(90)]
    monkeypatch.setattr(top, "why_of", lambda _: causes.cause("tls_wrong_name"))

    async def act(pilot: "Pilot[None]") -> None:
        table = pilot.app.query_one(DataTable)
        await until(pilot, lambda: table.show_vertical_scrollbar)
        assert not table.show_horizontal_scrollbar, table.virtual_size
        assert "TLS certificate fo" in on_screen(pilot)

    play(homeserver, act, width)


@pytest.mark.parametrize("width", [80, 160])
def test_causes_fit(
    homeserver: Homeserver, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many causes are left out is in sight, too."""
    kinds = {f"kind_{number}": {"<1h": 1} for number in range(50)}
    many = {**summary(2), "failing_by_kind_and_age": kinds}
    monkeypatch.setattr(f"{__name__}.summary", lambda _: many)

    async def act(pilot: "Pilot[None]") -> None:
        await until(pilot, lambda: "other causes" in on_screen(pilot))
        await pilot.pause()
        heat = pilot.app.query_one("#heat")
        assert isinstance(heat.parent, VerticalScroll)
        assert 10 < heat.size.height <= heat.parent.size.height

    play(homeserver, act, width)


def test_resized(homeserver: Homeserver) -> None:
    """What has no room any more goes as the terminal becomes narrow."""

    async def act(pilot: "Pilot[None]") -> None:
        assert "< 1 h" in on_screen(pilot)
        await pilot.resize_terminal(60, 24)
        await until(pilot, lambda: "< 1 h" not in on_screen(pilot))

    play(homeserver, act)


@pytest.mark.usefixtures("often")
def test_come_and_go(homeserver: Homeserver) -> None:
    """What begins to fail comes in, what is back is told; nobody loses their place."""

    async def act(pilot: "Pilot[None]") -> None:
        table = pilot.app.query_one(DataTable)
        await pilot.press("down")
        assert pilot.app.chosen == HOSTILE  # type: ignore[attr-defined]
        now = int(time.time() * 1000)
        homeserver.failing = ["new.example", HOSTILE]
        homeserver.changes = {
            "failed": [{"destination": "new.example", "kind": "x", "ts": now}],
            "came_back": [{"destination": "down.example", "ended": "x", "ts": now}],
        }
        homeserver.runs = [
            {"id": "r1", "action": "reconnect", "status": "running", "done": 1}
            | {"matched": 9, "outcomes": {}, "ended_ts": None}
        ]
        await until(pilot, lambda: "new.example" in on_screen(pilot))
        await until(pilot, lambda: "is back" in on_screen(pilot))
        assert pilot.app.chosen == HOSTILE  # type: ignore[attr-defined]
        assert table.row_count == 3
        await until(pilot, lambda: "r1: 1 of 9" in on_screen(pilot))

    play(homeserver, act)


def test_keys(homeserver: Homeserver) -> None:
    """`/` filters, `d` diagnoses, Enter shows, `r` asks first, `?` tells the keys."""

    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("question_mark")
        await says("why it fails, and what to do")(pilot)
        # There is no filter to be seen then.
        await pilot.press("slash", "escape", "d")
        await says("It is down.")(pilot)
        await pilot.press("escape", "enter")
        await says("Failing since")(pilot)
        await pilot.press("escape", "r")
        await says("Reconnect down.example?")(pilot)
        await pilot.press("n")
        assert not [path for path, _ in homeserver.asked if "/reconnect" in path]
        await pilot.press("r")
        await says("Reconnect down.example?")(pilot)
        await pilot.press("y")
        await says("taken an empty transaction in 7 ms")(pilot)
        await pilot.press("escape")
        # All at once, as pasted: none of them is taken for a key of the table.
        for typed in "/ev/r":
            pilot.app.post_message(Key("slash" if typed == "/" else typed, typed))
        await until(pilot, lambda: pilot.app.query_one(Input).value == "ev/r")
        await pilot.press("backspace", "backspace", *"il", "enter")
        table = pilot.app.query_one(DataTable)
        await until(pilot, lambda: table.row_count == 1)
        assert "Shown: names like “evil” (Esc: all)" in on_screen(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: table.row_count == 2)
        await pilot.press("q")

    play(homeserver, act)


@pytest.mark.usefixtures("often")
def test_away(homeserver: Homeserver) -> None:
    """Where Synapse is away or hangs it says so, keeps what it knows, and goes on."""

    async def act(pilot: "Pilot[None]") -> None:
        homeserver.is_away = True
        await says("It cannot be reached. Trying again.")(pilot)
        assert "down.example" in on_screen(pilot)
        homeserver.is_away = False
        await until(pilot, lambda: "Trying again" not in on_screen(pilot))
        homeserver.answers.clear()
        await says("No answer for")(pilot)
        homeserver.answers.set()
        await until(pilot, lambda: "No answer for" not in on_screen(pilot))

    play(homeserver, act)
