# SPDX-License-Identifier: Apache-2.0
"""The command line against one real homeserver."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from select import select as wait_for

import attr
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result
from deadlines import SOON_S
from fleet import Fleet, select, write_failing
from real_synapse import RealSynapse

from synapse_federation_admin.cli import command_line, options
from synapse_federation_admin.cli.connection import login_file
from synapse_federation_admin.cli.manual import NAME
from synapse_federation_admin.playground.certificates import CertificateAuthority

pytestmark = [pytest.mark.e2e, pytest.mark.one_synapse]

# What some operators find in their table.
ODD = "a b/..?#[x]"

# However busy the machine is, a server that is up answers within this.
PATIENT = ("--timeout", "60s")


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Homeserver:
    synapse: RealSynapse
    fleet: Fleet
    socket: Path


@pytest.fixture(scope="module")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    folder = tmp_path_factory.mktemp("cli")
    certificates = CertificateAuthority(folder)
    socket = folder / "main.sock"
    listener = {
        "type": "http",
        "path": str(socket),
        "resources": [{"names": ["client"]}],
    }
    with (
        Fleet(certificates, up=3, dropping=1, refusing=2) as fleet,
        RealSynapse(folder, certificates, extra_listeners=[listener]) as synapse,
    ):
        write_failing(synapse, fleet.names, failing_since_ts=1_000_000)
        select(synapse, f"INSERT INTO destinations VALUES ('{ODD}', 0, 0, 0, 0)")
        yield Homeserver(synapse, fleet, socket)


@pytest.fixture(autouse=True)
def _environment(
    homeserver: Homeserver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("FEDERATION_ADMIN_URL", homeserver.synapse.url())
    monkeypatch.setenv("FEDERATION_ADMIN_TOKEN", homeserver.synapse.admin.access_token)


def run(*arguments: str, status: int = 0, **more: object) -> Result:
    done = CliRunner().invoke(command_line(), arguments, **more)  # type: ignore[arg-type]
    assert done.exit_code == status, (done.output, done.exception)
    return done


def answer(*arguments: str, status: int = 0) -> dict[str, object]:
    found = json.loads(run("-o", "json", *arguments, status=status).stdout)
    assert isinstance(found, dict)
    return found


def test_look(homeserver: Homeserver) -> None:
    """Servers are looked at, all of them and one, for people and as the API has it."""
    fleet = homeserver.fleet
    text = run("status").stdout
    assert "servers are failing" in text
    assert "0 events behind" in text or "no event yet" in text
    assert set(answer("status")) == {"summary", "status", "runs"}

    text = run("list", "--failing-for", "1w").stdout
    assert all(name in text for name in fleet.names)
    listed = answer("list", "--limit", "1", "--order-by", "failure_ts", "--total")
    assert listed["total"] == len(fleet.names) + 1
    token = str(listed["next_token"])
    arguments = ("list", "--limit", "1", "--order-by", "failure_ts", "--total")
    assert answer(*arguments, "--from", token)["destinations"] != listed["destinations"]

    assert "main" in run("instances").stdout
    assert answer("unlisted") == {"unlisted": []}
    assert run("unlisted").stdout == ""
    assert "destinations" in answer("attention", "--limit", "5")
    run("attention")

    run("list", "--has-backlog", "--include", "local_users")
    answer("list", "--has-backlog", "--include", "local_users")

    assert fleet.refusing[0] in run("show", fleet.refusing[0]).stdout
    assert answer("show", ODD)["destination"] == ODD
    assert ODD in run("show", ODD).stdout
    assert "Subject: " in run("tell", fleet.refusing[0]).stdout

    exported = run("export", "--failing-for", "1w").stdout.splitlines()
    assert {json.loads(line)["destination"] for line in exported} == {*fleet.names}
    assert run("export", "--format", "csv").stdout.startswith("destination,")


def test_completion(homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell completes commands, values, and the names of servers."""
    # However busy the machine is.
    monkeypatch.setattr(options, "_HURRY_S", 60.0)
    shell = BashComplete(command_line(), {}, NAME, "_COMPLETE")

    def completed(*words: str) -> list[str]:
        found = shell.get_completions(list(words[:-1]), words[-1])
        return sorted(item.value for item in found)

    assert completed("rec") == ["reconnect"]
    assert completed("list", "--status", "b") == ["backing_off"]
    down = homeserver.fleet.refusing[0]
    assert completed("why", down[:8]) == sorted(homeserver.fleet.refusing)
    assert completed("--url", "http://127.0.0.1:9", "why", down[:8]) == []


def test_why(homeserver: Homeserver) -> None:
    """A diagnosis is a text, an answer, or a check with the exit status of one."""
    down = homeserver.fleet.refusing[0]
    text = run("why", down, "-v", status=3).stdout
    assert "✗  Connections" in text
    assert "attempts" in text or "targets" in text or "addresses" in text
    found = answer("why", down, status=3)
    assert found["verdict"] == "failing"
    assert str(found["explanation"]) in " ".join(text.split())
    lines = run("why", down, "--format", "tap", status=3).stdout.splitlines()
    assert lines[:2] == ["TAP version 13", "1..10"]
    assert sum(line.startswith("not ok ") for line in lines) == 1
    assert sum(line.startswith("ok ") for line in lines) == 9
    text = run("why", down, "--format", "nagios", status=2).stdout
    assert text.startswith(f"FEDERATION CRITICAL - {down}: ")
    assert text.count("|") == 1
    assert text.count("\n") == 1


def test_change(homeserver: Homeserver) -> None:
    """One is contacted at once; many only after a dry run and a yes."""
    up, down = homeserver.fleet.up, homeserver.fleet.refusing
    assert "✓ connected" in run("reconnect", up[0], *PATIENT, "--reason", "back").stdout
    assert "✗ still failing" in run("reconnect", down[0], status=3).stdout
    assert answer("reconnect", down[0], status=3)["outcome"] == "still_failing"

    many = ("reconnect", *up[1:], *down, *PATIENT)
    refused = run(*many, status=2)
    assert "4 servers would be contacted" in refused.stderr
    assert "give --yes" in refused.stderr
    assert answer(*many, "--dry-run")["matched"] == 4
    assert answer("runs")["runs"] == []

    text = run(*many, "--yes", "--per-second", "50", status=3).stdout
    assert "✓ connected" in text
    assert "✗ still failing" in text
    (made,) = answer("runs")["runs"]  # type: ignore[misc]
    assert made["id"] in run("runs").stdout
    assert answer("watch", made["id"], status=3)["done"] == 4
    assert answer("cancel", made["id"])["status"] == "complete"
    assert up[1] in run("audit", "--run-id", made["id"]).stdout

    # A time of nothing is judged, and does not go unseen.
    assert "timeout" in run("reconnect", up[0], "--timeout", "0s", status=2).stderr
    run("reset", up[0], status=1)
    run("cap-backoff", "1h", status=2)
    run_id = run("cap-backoff", "1h", "--yes", "--no-wait").stdout.strip()
    assert "Cap backoff" in run("watch", run_id).stdout
    assert "would be forgotten" in run("forget", down[1], "--dry-run").stdout
    assert down[1] in run("list").stdout
    some = ("forget", down[1], "nowhere.example", "--dry-run")
    assert "--ignore-unknown" in run(*some, status=2).stderr
    assert "Left out: 1" in run(*some, "--ignore-unknown").stderr
    run("flush-caches", up[0], "--reason", "moved")
    flushed = ("audit", "--action", "flush_caches")
    assert up[0] in run(*flushed, "--since-ts", "2020-01-01").stdout
    assert run(*flushed, "--until-ts", "2020-01-01 12:30").stdout == ""
    assert "'2d' is neither" in run(*flushed, "--since-ts", "2d", status=2).stderr
    run("forget", down[1], status=2)
    assert "forgotten" in run("forget", down[1], "--yes").stdout
    assert down[1] not in run("list").stdout
    assert "3 servers" in run("forget", *up, "--dry-run").stderr
    too_young = run("forget", "--status", "invalid", "--yes", status=2)
    assert "30d" in too_young.stderr


def in_terminal(*arguments: str, asked: str, answered: str) -> tuple[int, str]:
    """Run a command at a terminal, and answer once it asks; return how it ended."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    command = [sys.executable, "-m", "synapse_federation_admin.cli", *arguments]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    said, is_answered = "", False
    deadline = time.monotonic() + 2 * SOON_S
    try:
        while True:
            assert time.monotonic() < deadline, said
            if not wait_for([ours], [], [], 1)[0]:
                continue
            try:
                said += os.read(ours, 65536).decode(errors="replace")
            except OSError:
                # As on Linux where nobody has the other end any more.
                return process.wait(SOON_S), said
            if asked in said and not is_answered:
                is_answered = True
                os.write(ours, answered.encode())
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_terminal(homeserver: Homeserver) -> None:
    """At a terminal what changes many asks first; `top` is there until `q`."""
    two = homeserver.fleet.up[1:]
    status, said = in_terminal("reconnect", *two, asked="[y/N]", answered="n\n")
    assert status == 1, said
    assert "Reconnect 2 servers?" in said
    assert "Nothing was changed" in said
    status, said = in_terminal("top", asked="servers are failing", answered="q")
    assert status == 0, said
    # The screen of before is back.
    assert "\x1b[?1049l" in said


def test_login(homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a password; an ordinary user is told, and nothing is kept of them."""
    for name in ("FEDERATION_ADMIN_URL", "FEDERATION_ADMIN_TOKEN"):
        monkeypatch.delenv(name)
    synapse, admin = homeserver.synapse, homeserver.synapse.admin
    url, yaml = synapse.url(), str(synapse.folder / "homeserver.yaml")
    run("login", "--url", url, "--user", "admin", input="wrong\n", status=4)
    ordinary = synapse.create_user("ordinary")
    password = f"{ordinary.password}\n"
    run("login", "--url", url, "--user", "ordinary", input=password, status=4)
    assert not login_file().exists()

    # A socket is preferred.
    done = run("login", "-c", yaml, "--user", "admin", input=f"{admin.password}\n")
    assert "Logged in as @admin:" in done.stderr
    assert json.loads(login_file().read_text())["url"] == f"unix:{homeserver.socket}"
    assert admin.password not in login_file().read_text()
    assert run("list").stdout == run("list", "-c", yaml).stdout
    assert "no access token" in run("list", "--url", url, status=4).stderr
    run("logout")
    assert not login_file().exists()
    run("list", "-c", yaml, status=4)

    monkeypatch.setenv("FEDERATION_ADMIN_TOKEN", ordinary.access_token)
    assert "server admin" in run("list", "-c", yaml, status=4).stderr
    monkeypatch.setenv("FEDERATION_ADMIN_TOKEN", "wrong")
    assert "not valid" in run("list", "-c", yaml, status=4).stderr


def test_nobody_there(homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing listens, or something else does, it says so."""
    down = homeserver.fleet.refusing[0]
    assert "refused" in run("--url", f"http://{down}", "list", status=5).stderr
    up = homeserver.fleet.up[0]
    text = run("--url", f"https://{up}", "list", status=5).stderr
    assert "certificate is not trusted" in text
    monkeypatch.setenv("HTTP_PROXY", f"http://{down}")
    assert "destination" in run("list", "-o", "minified").stdout
