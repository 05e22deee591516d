# SPDX-License-Identifier: Apache-2.0
"""The command `playground`, as a person runs it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from deadlines import AT_ONCE_S

from synapse_federation_admin.playground import processes
from synapse_federation_admin.playground.processes import PlaygroundError, wait_until
from synapse_federation_admin.playground.world import Playground

pytestmark = [pytest.mark.e2e, pytest.mark.one_synapse]

REPOSITORY = Path(__file__).parent.parent
# What the documents' commands may be answered at the playground: its accounts are in
# Synapse, and its servers, rooms and runs are not those of the examples.
REFUSED = (
    *("Unrecognized request", "Invalid username or password"),
    *("does not need to be reset", "has not ended", "Unknown run", "Local users share"),
    "This needs a terminal",
)
NAME = "synapse-federation-admin"
ASKS = rf"(?:curl|{NAME})"
COMMAND = [sys.executable, "-m", "synapse_federation_admin.cli", "playground"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which the playground's temporary folder is below `tmp`.

    It is short: a Unix socket below it has a path of at most 107 bytes. The locale is
    not installed, as where somebody comes from a machine of another language.
    """
    locale = {"LC_ALL": "xx_YY.UTF-8"}
    return {**os.environ, **locale, "TMPDIR": str(tmp_path), "COLUMNS": "80"}


def run(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def left_behind(folder: Path) -> list[str]:
    """Return the commands of running processes that mention a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if str(folder) in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(command)
    return found


@pytest.mark.parametrize("workers", [False, True])
def test_check(environment: dict[str, str], tmp_path: Path, workers: bool) -> None:
    """`--check` does the main job, says how long it took, and leaves nothing behind.

    So it does with `--workers`; `--keep FOLDER` keeps files, but no process.
    """
    folder = tmp_path / "kept"
    keep = ("--keep", str(folder))

    done = run(environment, "--check", *(("--workers", *keep) if workers else ()))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 of 30 servers are failing" in done.stdout
    for what in ("waiting event", "waiting to-device message"):
        taken = re.search(
            rf"{what} +(?:even before|([\d.]+) s after) the reset", done.stdout
        )
        assert taken, done.stdout
        assert float(taken[1] or 0) < AT_ONCE_S
    # A path is as long as it is.
    lines = [line for line in done.stdout.splitlines() if "files are in" not in line]
    assert max(map(len, lines)) <= 80
    assert left_behind(tmp_path) == []
    if not workers:
        assert list(tmp_path.iterdir()) == []
        return
    assert (folder / "synapse" / "homeserver.yaml").is_file()
    assert (folder / "synapse" / "federation_sender_1.log").stat().st_size > 0
    refused = run(environment, "--check", *keep)
    assert refused.returncode == 1
    assert "is not an empty folder" in refused.stderr


@pytest.fixture
def interactive(environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        COMMAND,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


def commands_of(document: str) -> Iterator[str]:
    """Yield the commands of a document that ask the homeserver, a line each."""
    for block in re.findall(r"^```(?:sh|console)\n(.+?)^```", document, re.M | re.S):
        joined = block.replace("\\\n", " ")
        for command in re.findall(rf"^(?:\$ )?({ASKS} .+)$", joined, re.MULTILINE):
            asks_here = "localhost:8008" in command or command.startswith(NAME)
            # That one asks for a password.
            if asks_here and "<" not in command and " login " not in command:
                yield command


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Read the output up to a line that contains a text."""
    output = ""
    assert process.stdout is not None
    for line in process.stdout:
        output += line
        if text in line:
            return output
    raise AssertionError(f"{text!r} is not in the output:\n{output}")


def test_interactive(
    interactive: "subprocess.Popen[str]",
    environment: dict[str, str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """It shows commands that work when pasted, goes on, and ends on Ctrl-C.

    Those in README and the documents work, too, with its address, its token and one of
    its servers.
    """
    output = read_until(interactive, "until Ctrl-C")
    exports = re.findall(r"^export .*$", output, re.MULTILINE)
    commands = re.findall(rf"^{ASKS} .*$", output, re.MULTILINE)
    assert len(commands) >= 7, output
    # A screen is for a person.
    for command in (each for each in commands if not each.endswith(" top")):
        pasted = subprocess.run(
            "\n".join((*exports, command)),
            shell=True,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        # 3: it is down.
        assert pasted.returncode in ({0, 3} if " why " in command else {0}), pasted
        assert pasted.stdout.strip(), command
        assert "errcode" not in pasted.stdout, (command, pasted.stdout)
    documented = dict.fromkeys(
        command
        for document in [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md")]
        for command in commands_of(document.read_text())
    )
    assert len(documented) > 20
    url = re.search(r"http://127\.0\.0\.1:\d+(?=/_synapse)", output)
    token = re.search(r"Bearer (\S+?)[\"']", output)
    assert url, output
    assert token, output
    for command in documented:
        done = subprocess.run(
            command.replace("http://localhost:8008", url[0])
            .replace("matrix.example.org", "matrix.library.example:8448")
            .replace("curl ", "curl -sS ", 1)
            .replace(NAME, f"{sys.executable} -m synapse_federation_admin.cli", 1),
            shell=True,
            env={
                **environment,
                "TOKEN": token[1],
                "FEDERATION_ADMIN_TOKEN": token[1],
                "FEDERATION_ADMIN_URL": url[0],
            },
            # A new one: curl does not write over a file.
            cwd=tmp_path_factory.mktemp("command"),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if any(text in done.stdout + done.stderr for text in REFUSED):
            continue
        # 3: servers fail, as they do there.
        assert done.returncode in ({0, 3} if NAME in command else {0}), (command, done)
        assert not done.stdout.startswith('{"errcode"'), (command, done.stdout)

    link = re.search(r"^http://.*/console/.*$", output, re.MULTILINE)
    assert link, output
    assert httpx.get(f"{link[0]}x").status_code == 404
    opened = httpx.get(link[0])
    assert opened.status_code == 303, opened.text
    # httpx, too, has cookies that are one for all ports.
    page = httpx.get(opened.headers["Location"], cookies=opened.cookies)
    assert page.status_code == 200, page.text
    assert "@admin:127.0.0.1" in page.text
    assert httpx.get(link[0]).status_code == 410

    interactive.send_signal(signal.SIGINT)
    rest, _ = interactive.communicate(timeout=120)

    assert interactive.returncode == 0, rest
    assert list(tmp_path.iterdir()) == []
    assert left_behind(tmp_path) == []


def test_killed(interactive: "subprocess.Popen[str]", tmp_path: Path) -> None:
    """Killed outright, it takes its processes with it."""
    read_until(interactive, "Joining all of them")
    assert left_behind(tmp_path)

    interactive.kill()

    wait_until(lambda: not left_behind(tmp_path), "all processes to end", 90)


def test_missing_extra() -> None:
    """Without the extra there is one sentence that says how to get it."""
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys; sys.modules['click'] = None\n"
            "from synapse_federation_admin.cli import main; main()",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "This command needs click, which is not installed:"
        " pip install click httpx pyyaml rich\n"
    )


def test_bad_module_config(tmp_path: Path) -> None:
    """A Synapse that refuses its configuration says which key is wrong, and ends."""
    world = Playground(tmp_path, module_config={"contact_timeout": "soon"})
    with pytest.raises(PlaygroundError, match="contact_timeout: expected a duration"):
        world.__enter__()


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two processes choose the same port, though nobody listens at it yet."""
    port = processes.free_port()
    monkeypatch.setattr(processes, "_FIRST_PORT", port)
    monkeypatch.setattr(processes, "_LAST_PORT", port + 1)
    with pytest.raises(PlaygroundError, match="No free port"):
        processes.free_port("127.0.0.2")
    code = f"from {processes.__name__} import claim; print(claim('port {port}'))"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True).strip() == "False"
