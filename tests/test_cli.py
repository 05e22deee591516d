# SPDX-License-Identifier: Apache-2.0
"""The command line without a homeserver: what it says, and where it asks."""

import inspect
import io
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import attr
import httpx
import pytest
from cli_case import be_at
from click.testing import CliRunner, Result
from rich.console import Console

from synapse_federation_admin.cli import command_line, manual
from synapse_federation_admin.cli.client import Client
from synapse_federation_admin.cli.connection import Connection, Login, keep_login
from synapse_federation_admin.cli.exits import Exit
from synapse_federation_admin.cli.output import Output, now_ms, serialized
from synapse_federation_admin.cli.words import heat
from synapse_federation_admin.destinations.summary import FailureAge
from synapse_federation_admin.destinations.values import DestinationStatus
from synapse_federation_admin.diagnosis.stages import StageName, StageOutcome
from synapse_federation_admin.history.outlook import CorrelationVerdict
from synapse_federation_admin.storage.instances import InstanceState
from synapse_federation_admin.wording import causes, diagnosis, servers

pytestmark = pytest.mark.one_synapse

HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]\u202egpj.exe\x9b31m"

WITHOUT_SYNAPSE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"synapse", "twisted", "pydantic", "jinja2"}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
from synapse_federation_admin.cli import main
sys.argv[1:] = ["--help"]
main()
"""


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_at(tmp_path, monkeypatch)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is answered, by path: a response, an error, an object, or a list of them."""
    known: dict[str, Any] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        found = known.get(request.url.path.rpartition("/v2/federation")[2])
        if isinstance(found, list):
            found = found.pop(0)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, httpx.Response):
            return found
        if found is None:
            return httpx.Response(404, json={"errcode": "M_UNRECOGNIZED", "error": "-"})
        return httpx.Response(200, json=found)

    # What is sent is not what a real homeserver answers: it is not checked.
    monkeypatch.setattr(httpx.Client, "send", inspect.unwrap(httpx.Client.send))
    monkeypatch.setattr(
        httpx.HTTPTransport, "handle_request", lambda _, request: answer(request)
    )
    monkeypatch.setenv("FEDERATION_ADMIN_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("FEDERATION_ADMIN_TOKEN", "secret")
    return known


def run(*arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(command_line(), arguments, **more)


# -- what is told ----------------------------------------------------------------------


def test_words_are_for_all_values() -> None:
    """What is told of statuses, stages and ages is told of each that there is."""
    failing = {DestinationStatus.BACKING_OFF, DestinationStatus.RETRY_DUE}
    assert {s.value for s in {*DestinationStatus} - failing} == set(servers.STATUSES)
    assert {s.value for s in InstanceState} == set(servers.SENDERS)
    assert [age.value for age in FailureAge] == [a.age for a in causes.AGES]
    assert [s.value for s in StageName] == list(diagnosis.STAGES)
    assert {s.value for s in StageOutcome} == set(diagnosis.SIGNS)
    assert {v.value for v in CorrelationVerdict} == {"normal", "us", "shared"}


def test_needs_no_synapse() -> None:
    """It runs where Synapse, Twisted, pydantic and Jinja2 are not installed."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SYNAPSE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "status" in done.stdout


def test_hostile_text(answers: dict[str, Any]) -> None:
    """Nothing that somebody else has chosen moves a terminal, in any format."""
    answers["/destinations"] = {
        "destinations": [
            {
                "destination": HOSTILE,
                "status": HOSTILE,
                "next_retry_ts": 1,
                "last_failure": {"kind": HOSTILE, "last_ts": 2},
            }
        ],
        "next_token": HOSTILE,
    }
    answers[f"/destinations/{HOSTILE}/diagnose"] = {
        "verdict": HOSTILE,
        "destination": HOSTILE,
        "explanation": HOSTILE,
        "stages": [{"name": HOSTILE, "outcome": HOSTILE, "findings": {HOSTILE: "x"}}],
    }
    outputs = [run("list"), *(run("list", "-o", o) for o in ("json", "minified"))]
    outputs += [run("list", "-o", "yaml"), run("why", HOSTILE, "-v")]
    outputs += [run("why", HOSTILE, "--format", f) for f in ("tap", "nagios")]
    answers["/destinations/export"] = httpx.Response(200, text=json.dumps(HOSTILE))
    outputs.append(run("export"))
    for done in outputs:
        assert not isinstance(done.exception, KeyError | TypeError), done.exception
        assert "owned" in done.output
        assert "[red]" in done.output
        assert not set(done.output) & set("\x1b\x07\x9b\u202e"), done.output


def test_findings() -> None:
    """What a stage has seen is told in words: what is not known is left out, times and
    sizes have their units."""
    found = {
        "status": None,
        "targets": [
            {"host": "a.example", "is_blocked": False, "errors": []},
            {"host": "b\nexample", "took_ms": 107_000},
        ],
        "names": ["a", "b"],
        "tls": {"not_after_ts": 1_795_819_515_000, "left_ms": -60_000, "days_left": -1},
        "seen_ts": 10**18,
        "size_bytes": 1234,
        "position": 0,
    }
    assert [*diagnosis.told(found)] == [
        "targets:",
        "  - host: a.example",
        "    is blocked: no",
        "  - host: b example",
        "    took: 1 min 47 s",
        "names: a, b",
        "tls:",
        "  not after: 2026-11-27 22:45:15 UTC",
        "  left: -1 min",
        "seen: 1000000000000000000",
        "size: 1,234 bytes",
        "position: 0",
    ]


def test_name_of_several_lines(answers: dict[str, Any]) -> None:
    """A name with ends of lines in it writes none of its own into a dry run."""
    answers["/reconnect"] = {"matched": 1, "sample": ["a.example\n\tNone else"]}
    told = run("reconnect", "--all-failing", "--dry-run").stderr
    assert told == "1 server would be contacted:\n  a.example  None else\n"


def test_since_when(answers: dict[str, Any]) -> None:
    """What waits is told since when, at least; what is not in backoff is not told to be
    well while nothing has been answered."""
    hour_ago = now_ms() - 3_600_500
    backlog = {"rooms": 2, "oldest_event_ts": hour_ago}
    row = {"destination": "a.example", "status": "online", "backlog": backlog}
    unanswered = "! not in backoff, no success since"
    answers["/summary"] = {
        "backlog": {**backlog, "as_of_ts": 1, "to_device_messages": 0},
        "total": 1,
    }
    answers["/status"] = {}
    answers["/runs"] = {"runs": []}
    assert "Rooms  2  the oldest for at least 1 h; each counts" in run("status").stdout
    indexes = {"enabled": True, "ready": False, "errors": {"an_index": "disk full"}}
    answers["/summary"]["indexes"] = indexes
    assert "not ready\n  an_index: disk full" in run("status").stdout
    failed = {"last_failure": {"kind": "other", "message": "x", "last_ts": 2}}
    answers["/destinations/a.example"] = {**row, **failed, "last_success_ts": 1}
    answers["/destinations/a.example/outages"] = {}
    stuck = {"never_delivered": 1, "unsendable": 1}
    answers["/destinations/a.example"] |= stuck
    told = run("show", "a.example").stdout
    assert "Rooms that wait     2, the oldest for at least 1 h" in told
    assert "May never arrive    1 room: no event was ever delivered" in told
    assert "Can never be sent   1 room: the event is in the database no more" in told
    assert unanswered in told
    sender = {"sender": {"instance": "main", "state": "running"}}
    answers["/destinations/a.example"] |= sender
    assert "Sent by             main: running" in run("show", "a.example").stdout
    answers["/destinations/a.example"] |= {"status": "invalid"}
    told = run("show", "a.example").stdout
    assert "Sent by" not in told
    assert "May never arrive" not in told
    answers["/destinations/a.example"] |= {"status": "online"}
    answers["/destinations/a.example"]["last_success_ts"] = 3
    assert "✓ not failing" in run("show", "a.example").stdout
    outage = {
        "availability": {"share": 0.5, "down_since_ts": 1},
        "last_success_ts": None,
    }
    for more, word in (
        (failed, "✓ not failing"),
        ({**failed, "last_success_ts": None}, unanswered),
        ({**outage, "last_success_ts": None}, unanswered),
        ({**outage, "last_success_ts": 2}, "✓ not failing"),
    ):
        answers["/destinations"] = {"destinations": [{**row, **more}]}
        assert word in run("list").stdout


def test_not_all(answers: dict[str, Any]) -> None:
    """Where not all are shown, it says how many, and how to see more."""
    rows = [{"destination": f"{n}.example", "status": "online"} for n in range(10)]
    answers["/destinations"] = {"destinations": rows, "next_token": "x"}
    assert "There are more than these 10: --from x" in run("list").stderr
    answers["/attention"] = {"as_of_ts": 1, "destinations": rows}
    nothing = [{"destinations": []}, {"destinations": []}]
    answers["/destinations"] = nothing
    assert "No other server is known yet." in run("list").stderr
    assert "No server matches." in run("list", "--status", "invalid").stderr
    assert "These 10 matter most; --limit" in run("attention").stderr
    assert "--limit" not in run("attention", "--limit", "11").stderr
    path = "/destinations/a.example"
    answers[path] = {"destination": "a.example", "shared_rooms": 9}
    ended = {"end_ts": 2, "duration_ms": 7_200_000, "up_ms": 3_600_000}
    outages, rooms = [{"start_ts": 1, **ended, "ended": "reset"}], [{"room_id": "!r"}]
    answers[f"{path}/outages"] = {"outages": outages, "next_token": "x"}
    answers[f"{path}/shared_rooms"] = {"rooms": rooms, "next_token": "x"}
    shown = run("show", "a.example").stdout
    assert "They answered us  not recorded" in shown
    assert "and earlier ones, which `outages`" in shown
    assert "and 8 more, which `shared-rooms`" in shown
    assert "2 h, 1 h of it not failing, reset" in shown
    for command in ("outages", "shared-rooms"):
        assert "than these 1: --from x" in run(command, "a.example").stderr


def test_flushed(answers: dict[str, Any]) -> None:
    """A process that still has what was to be flushed is told, and fails."""
    path, known = "/destinations/a.example/flush_caches", {"told": ["main", "w"]}
    answers[path] = known
    done = run("flush-caches", "a.example")
    assert (done.exit_code, done.stdout) == (0, "a.example: flushed by main, w\n")
    answers[path] = {**known, "not_told": ["x"]}
    done = run("flush-caches", "a.example", "--reason", "moved")
    assert done.exit_code == Exit.FAILED
    assert "Could not be told: x" in done.stdout


def test_numbers_are_whole() -> None:
    """Where there is no room for a table, no number loses a digit."""
    ages = {"<1h": 1418, "<1d": 0, "<7d": 0, "<30d": 0, ">=30d": 0}
    console = Console(width=60, file=io.StringIO())
    console.print(heat({"tls_wrong_name": ages}))
    assert console.file.getvalue().count("1,418") == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("lines", "names"), [(None, 3), (4, 3), (3, 1), (2, 0), (0, 0)]
)
def test_room(lines: int | None, names: int) -> None:
    """Where there is no room for all causes, it says how many others there are."""
    by_kind = {kind: {"<1h": n} for n, kind in enumerate(("gone", "other", "x"), 1)}
    console = Console(width=80, file=io.StringIO())
    console.print(heat(by_kind, lines=lines))
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert told.count("\n") == names + 1 + (names < 3)
    others = {0: "3 other causes", 1: "2 other causes"}
    assert others.get(names, "") in told
    assert ("other cause" in told) == (names < 3)
    assert told.split()[-1] == {3: "1", 1: "3", 0: "6"}[names]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut(
    answers: dict[str, Any], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no room for a table, words are folded, and none is cut."""
    entry = {"ts": 1, "action": "reconnect", "outcome": "still_failing"}
    names = ["matrix.library.example:29984", f"{'x' * 90}.example"]
    answers["/audit"] = {
        "entries": [{**entry, "destination": name, "user_id": "@a"} for name in names]
    }
    monkeypatch.setenv("COLUMNS", str(width))
    told = run("audit").stdout
    assert max(map(len, told.splitlines())) <= width
    assert told.count("xx") >= 45
    assert all(told.count(word) == 2 for word in ("still", "failing", "@a"))


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (("connected", "skipped"), Exit.FINE),
        (("connected", "not_sent"), Exit.FAILED),
        (("pending",), Exit.FAILED),
        (("not_sent", "refused"), Exit.DESTINATION_FAILS),
    ],
)
def test_watch(answers: dict[str, Any], outcomes: tuple[str, ...], status: int) -> None:
    """A run that has ended is well only if what waits arrives, as far as is known."""
    answers["/runs/r"] = {
        "id": "r",
        "action": "reconnect",
        "status": "complete",
        "ended_ts": 1,
        "outcomes": dict.fromkeys(outcomes, 1),
        "done": 1,
        "matched": 1,
    }
    assert run("watch", "r").exit_code == status


def test_other_version(answers: dict[str, Any]) -> None:
    """What cannot be told of an answer of another version is told as such."""
    answers["/destinations"] = {"destinations": [{"name": "x.example"}]}
    done = run("list")
    assert done.exit_code == Exit.FAILED
    assert "another version of the module" in done.stderr
    assert json.loads(run("list", "-o", "json").stdout) == answers["/destinations"]


@pytest.mark.parametrize(
    ("encoding", "told"), [("utf-8", "✓ 1 → é"), ("ascii", r"\u2713 1 \u2192 \xe9")]
)
def test_serialized(encoding: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shape has the same values, also where stdout does not have all letters."""
    import yaml

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    Output("human").show("✓ 1 → é")
    sys.stdout.flush()
    assert written.getvalue().decode(encoding) == f"{told}\n"
    value = {"a": [1, None, True, "Größe 😀 \u202e\x9b\x1b"]}
    for shape in ("json", "minified", "yaml"):
        assert serialized(value, shape).encode(encoding)
    assert json.loads(serialized(value, "json")) == value
    assert json.loads(serialized(value, "minified")) == value
    assert yaml.safe_load(serialized(value, "yaml")) == value
    assert serialized(value, "minified").count("\n") == 1


def refused(status: int, errcode: str, error: str = "No") -> httpx.Response:
    return httpx.Response(status, json={"errcode": errcode, "error": error})


@pytest.mark.parametrize(
    ("answer", "status", "told"),
    [
        (refused(401, "M_UNKNOWN_TOKEN"), 4, "log"),
        (refused(403, "M_FORBIDDEN"), 4, "admin"),
        (
            refused(400, "M_INVALID_PARAM", "Key 'filter.failing_for' is x, not 'y'"),
            2,
            "Error: --failing-for is x, not 'y'",
        ),
        (
            refused(
                400,
                "M_INVALID_PARAM",
                "Query parameter 'dir': Input should be 'destination'",
            ),
            2,
            "Error: --dir: Input should be 'destination'",
        ),
        (refused(404, "M_NOT_FOUND"), 1, "No"),
        (refused(503, "M_UNKNOWN", "off"), 1, "off"),
        (refused(404, "M_UNRECOGNIZED"), 5, "not loaded"),
        (httpx.Response(502, text="<html>"), 5, "HTTP 502"),
        (httpx.Response(301, headers={"Location": "/x"}), 5, "leads to /x"),
        (httpx.Response(200, text="[]"), 5, "does not answer as a homeserver"),
        (httpx.ConnectError("refused"), 5, "refused"),
        (httpx.ReadTimeout("late"), 5, "does not answer"),
        (httpx.ConnectTimeout("The handshake operation timed out"), 5, "no TLS"),
    ],
)
def test_errors(answers: dict[str, Any], answer: Any, status: int, told: str) -> None:
    """Each error has its exit status and a sentence on stderr, and writes nothing."""
    answers["/summary"] = answers["/destinations"] = answer
    done = run("list", "-o", "json")
    assert done.exit_code == status, done.output
    assert told in done.stderr
    assert done.stdout == ""


def test_too_soon(answers: dict[str, Any]) -> None:
    """What comes too soon is sent again, as late as the homeserver asks for."""
    body = {"errcode": "M_LIMIT_EXCEEDED", "error": "later", "retry_after_ms": 1}
    later = [httpx.Response(429, json=body) for _ in range(2)]
    answers["/destinations"] = [*later, {"destinations": []}]
    assert run("list").exit_code == 0
    body["retry_after_ms"] = 3_600_000
    answers["/destinations"] = httpx.Response(429, json=body)
    assert run("list").exit_code == 1


def test_patience() -> None:
    """What only reads is not waited for as long as what may take minutes; `top` waits
    for less, and asks again."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=request.extensions["timeout"])

    here = Connection("http://127.0.0.1:1", "x")
    with closing(Client(here, httpx.MockTransport(answer))) as client:
        times = [client.get("/a")["read"], client.post("/a")["read"]]
        client.wait_for(30)
        assert [*times, client.get("/a")["read"]] == [60, 180, 30]


def test_not_read(answers: dict[str, Any]) -> None:
    """A long answer is read as it comes; and what ends who reads, as `| head` or a full
    disk, is not told as the network's."""
    sent = iter([b"x", b"y"])
    answers["/destinations/export"] = httpx.Response(200, content=sent)

    def read(client: Client) -> None:
        with client.stream("/destinations/export", {}) as pieces:
            assert next(pieces) == "x"
            assert list(sent) == [b"y"]
            raise BrokenPipeError

    client = Client(Connection("http://127.0.0.1:1", "x"))
    with closing(client), pytest.raises(BrokenPipeError):
        read(client)


# -- who, and for which ----------------------------------------------------------------


def test_renewed(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was renewed meanwhile is taken, and that of another login left; one
    that cannot be renewed is told. More, with a service: in
    test_e2e_authentication_service."""
    monkeypatch.delenv("FEDERATION_ADMIN_TOKEN")
    renewal = {
        "token_endpoint": "http://127.0.0.1:1/token",
        "client_id": "c1",
        "refresh_token": "r1",
    }
    here = Login("http://127.0.0.1:1", "@a:x.example", "a1", renewal)
    keep_login(attr.evolve(here, url="https://other.example", access_token="theirs"))
    with closing(Client(Connection(here.url, login=here))) as client:
        assert not client.renew()
        # A refresh token is good once.
        keep_login(attr.evolve(here, access_token="a3"))
        assert client.renew()
        assert client.token == "a3"
    keep_login(here)
    answers["/destinations"] = refused(401, "M_UNKNOWN_TOKEN")
    answers["/token"] = httpx.Response(400, json={"error": "invalid_grant"})
    assert run("list").exit_code == Exit.NOT_ALLOWED


@pytest.mark.parametrize("command", ["list", "export", "forget", "reconnect"])
def test_filters_are_seen(answers: dict[str, Any], command: str) -> None:
    """A filter that is empty, as of a variable not set, or given twice is an error."""
    for value, told in (("", "is empty"), ("x", "is given twice")):
        one, more = ("--destination", value), ("--destination", "y")
        done = run(command, *one, *(more if value else ()), "--failing-for", "30d")
        assert done.exit_code == Exit.USAGE, done.output
        assert f"--destination {told}" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        *("show", "why", "tell", "reset", "reconnect", "forget", "watch"),
        *("outages", "shared-rooms", "flush-caches"),
    ],
)
def test_empty_name(answers: dict[str, Any], command: str) -> None:
    """Nor is a name that is empty taken for one."""
    done = run(command, "")
    assert done.exit_code == Exit.USAGE, done.output
    assert "it is empty" in done.stderr


# -- beside these ----------------------------------------------------------------------


def test_man_page() -> None:
    """The man page has every command and option, and nothing that troff obeys."""
    group = command_line()
    page = "\n".join(manual.man_page(group))
    for name, command in manual.commands(group).items():
        assert f" {name}".rstrip().replace("-", "\\-") in page
        for option in manual.options_of(name, command):
            assert option.opts[-1].replace("-", "\\-") in page
    assert not [line for line in page.splitlines() if line.startswith("'")]


def ended(command: str, **environment: str) -> tuple[int, str]:
    """Run a shell's line in which `$CLI` is the command line."""
    cli = f"{sys.executable} -m synapse_federation_admin.cli"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env={**os.environ, "CLI": cli, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "status", "told"),
    [
        ("$CLI man >&-", 0, ""),
        ("$CLI man > /dev/full", 1, "The output cannot be written: No space left"),
        ("$CLI nonsense", 2, "No such command"),
        ("FEDERATION_ADMIN_URL=http://127.0.0.1:1 $CLI status", 4, "no access token"),
    ],
)
def test_ends(command: str, status: int, told: str) -> None:
    """A closed stdout and a full disk end it without a traceback."""
    found_status, text = ended(command)
    assert found_status == status, text
    assert told in text
    assert "Traceback" not in text


def test_nobody_reads() -> None:
    """Where nobody reads its output any more, as after `| head`, it ends silently."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "synapse_federation_admin.cli", "man"],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
