# SPDX-License-Identifier: Apache-2.0
"""The operator's log is as without the module; failures are recorded at any level.

Two homeservers meet the same faults, one with the module and one without. What their
logs say of federation requests has to be the same, line by line.
"""

import inspect
import linecache
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attr
import httpx
import pytest
import yaml
from fleet import read_rows, select
from synapse.http import client, matrixfederationclient
from synapse.util import retryutils
from test_e2e_failure_kinds import ADDRESS, BLOCKED

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.processes import free_port, wait_until
from synapse_federation_admin.playground.remote import (
    Behaviour,
    MessageKind,
    RemoteServer,
)
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = pytest.mark.e2e

OBSERVED = {
    module.__name__: module for module in (retryutils, matrixfederationclient, client)
}
SEPARATOR = " | "
# The lines from which the module takes something.
TAKEN = {
    "failed": re.compile("Connection to .* was unsuccessful"),
    "recovered": re.compile("Connection to .* was successful"),
    "answered": re.compile("Got response headers"),
    "blocked": re.compile("Blocked .* from DNS resolution"),
}

CONFIG = {
    # Of the homeservers themselves nobody asks anything.
    "federation_ip_range_blacklist": ["127.9.0.0/16", "127.0.0.1/32", "::1/128"],
    "federation": {
        "client_timeout": "5s",
        "max_short_retries": 0,
        "max_long_retries": 0,
        "destination_min_retry_interval": 50,  # ms
        "destination_max_retry_interval": 50,
    },
}


def logging_config(file: Path, level: str, **more: Any) -> dict[str, Any]:
    """Return a logging configuration as operators have them."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "all": {
                "format": SEPARATOR.join(
                    f"%({key})s"
                    for key in ("name", "levelname", "pathname", "lineno", "message")
                )
            }
        },
        "handlers": {
            "file": {
                "class": "logging.FileHandler",
                "formatter": "all",
                "filename": str(file),
                "level": level,
            }
        },
        "root": {"level": level, "handlers": ["file"]},
        **more,
    }


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Line:
    """A line that one of the observed loggers has written."""

    logger: str
    level: str
    path: str
    number: int
    message: str

    @property
    def general(self) -> tuple[str, str, int, str]:
        """What it says, without what differs from request to request."""
        message = re.sub(r"\{(\w+)-O-\d+\}", r"{\1}", self.message)
        message = re.sub(r"backoff now \d+", "backoff", message)
        message = re.sub(
            r"0x[0-9a-f]+|matrix-federation://\S+|\d+\.\d+ ?s(ecs)?", "", message
        )
        # The module has OpenSSL say more of a certificate.
        message = re.sub(r"\(Failed to send request: .*|Failure .*", "", message)
        message = re.sub(r"(Request failed: \w+ ).*", r"\1", message)
        return self.logger, self.level, self.number, message


@attr.s(slots=True, auto_attribs=True)
class Home:
    """A homeserver, whose process reads a logging configuration that can be changed."""

    synapse: SynapseServer
    client: MatrixClient
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "operator.log"

    def configure(self, level: str, **more: Any) -> None:
        config = logging_config(self.log, level, **more)
        (self.folder / "log.yaml").write_text(yaml.safe_dump(config))

    def reload(self, level: str, **more: Any) -> None:
        """Have the running process read another configuration."""
        self.configure(level, **more)
        os.kill(self.synapse.process("main").pid, signal.SIGHUP)
        # What it says of that is said only at INFO. It reads it before it answers what
        # it is asked after that, but for what it has begun with.
        for _ in range(3):
            httpx.get(f"{self.synapse.url()}/health", trust_env=False)

    def lines(self) -> list[Line]:
        """Return what the loggers that are observed have written."""
        found = []
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        for line in text.splitlines():
            parts = line.split(SEPARATOR, 4)
            if len(parts) == 5 and parts[0] in OBSERVED:
                name, level, path, number, message = parts
                found.append(Line(name, level, path, int(number), message))
        return found


@attr.s(slots=True, auto_attribs=True)
class Homes:
    with_module: Home
    without: Home
    names: list[str]
    # A server that is failing at first, and another that is in order.
    changing: RemoteServer
    healthy: RemoteServer

    def both(self) -> tuple[Home, Home]:
        return self.with_module, self.without

    def meet_all(self) -> None:
        """Have both meet all faults, a recovery, and servers that answer.

        Each of the faults is recorded once.
        """
        before = self.counts()
        changing, healthy = self.changing, self.healthy
        changing.switch(Behaviour.BAD_GATEWAY)
        for home in self.both():
            for name in (*self.names, healthy.server_name):
                home.client.query_keys(f"@x:{name}")
            text = f"{home.folder.name} {time.monotonic()}"
            for remote in (changing, healthy):
                home.client.send_to_device(f"@x:{remote.server_name}", text)
            healthy.wait_for_message(MessageKind.TO_DEVICE, text, 30)
        for home in self.both():
            wait_until(
                lambda home=home: any(
                    read_rows(home.synapse).get(changing.server_name, ())
                ),
                "the sender to notice it",
                30,
            )
        # A sender that is about to end its loop does not see what comes now, and
        # nothing tells when it has ended.
        time.sleep(1)
        changing.switch(Behaviour.HEALTHY)
        for home in self.both():
            text = f"{home.folder.name} {time.monotonic()}"
            home.client.send_to_device(f"@x:{changing.server_name}", text)
            changing.wait_for_message(MessageKind.TO_DEVICE, text, 30)
        failing = (*self.names, changing.server_name)
        expected = {name: before.get(name, 0) + 1 for name in failing}
        wait_until(
            lambda: self.counts() == expected, f"{expected}, not {self.counts()}", 30
        )

    def counts(self) -> dict[str, int]:
        rows = select(
            self.with_module.synapse,
            "SELECT destination, SUM(count) FROM federation_admin_failures GROUP BY 1",
        )
        return {name: int(count) for name, count in rows}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homes]:
    """Two homeservers that log from WARNING on, with the module and without it."""
    folder = tmp_path_factory.mktemp("log")
    certificates = CertificateAuthority(folder)
    with ExitStack() as stack:
        expired, healthy, changing = (
            stack.enter_context(RemoteServer(f"127.0.0.{n}", certificates))
            for n in (61, 62, 63)
        )
        expired.switch(Behaviour.EXPIRED_CERTIFICATE)
        names = [
            expired.server_name,
            f"{ADDRESS}:{free_port(ADDRESS)}",
            f"{BLOCKED}:8448",
            "localhost:8448",
            "nosuch.invalid:8448",
        ]
        homes = []
        for name, module_config in (("with", {}), ("without", None)):
            own = folder / name
            own.mkdir()
            synapse = SynapseServer(
                own / "synapse",
                certificates,
                module_config=module_config,
                extra_config={**CONFIG, "log_config": str(own / "log.yaml")},
            )
            home = Home(synapse, None, own)  # type: ignore[arg-type]  # in a moment
            home.configure("WARNING")
            stack.enter_context(synapse)
            home.client = synapse.client(synapse.create_user("user"))
            homes.append(home)
        yield Homes(*homes, names, changing, healthy)


def compared(homes: Homes, begin: tuple[int, int]) -> list[Line]:
    """Return the new lines of the homeserver with the module, as those without it."""
    new, stock = (
        home.lines()[number:] for home, number in zip(homes.both(), begin, strict=True)
    )
    assert Counter(line.general for line in new) == Counter(
        line.general for line in stock
    )
    return new


def met(homes: Homes) -> list[Line]:
    """Have both meet everything; return what the one with the module says of it."""
    begin = tuple(len(home.lines()) for home in homes.both())
    homes.meet_all()
    return compared(homes, begin)  # type: ignore[arg-type]  # they are two


def taken(lines: list[Line]) -> Counter[tuple[str, str]]:
    """Return how many lines there are of those from which something is taken."""
    return Counter(
        (what, line.level)
        for line in lines
        for what, pattern in TAKEN.items()
        if pattern.search(line.message)
    )


def reload(homes: Homes, level: str, **more: Any) -> None:
    for home in homes.both():
        home.reload(level, **more)


def test_warning(homes: Homes) -> None:
    """At WARNING failures are recorded, and not one line of them is in the log."""
    lines = met(homes)
    assert not taken(lines)
    assert {line.level for line in lines} <= {"WARNING", "ERROR"}


def test_debug(homes: Homes) -> None:
    """At DEBUG, after a SIGHUP, each line is in the log once, with where it is said."""
    reload(homes, "DEBUG")
    lines = met(homes)
    failed = len(homes.names) + 1
    assert taken(lines) == {
        ("failed", "INFO"): failed,
        ("recovered", "DEBUG"): 1,
        # 404 and 502; then what was delivered.
        ("answered", "INFO"): 2,
        ("answered", "DEBUG"): 2,
        ("blocked", "INFO"): 1,
    }
    for line in lines:
        assert line.path == inspect.getsourcefile(OBSERVED[line.logger])
        assert "logger." in linecache.getline(line.path, line.number), line


def test_one_logger(homes: Homes) -> None:
    """An operator may silence one of the loggers, and nothing of it is logged."""
    quiet = {"synapse.util.retryutils": {"level": "ERROR"}}
    reload(homes, "INFO", loggers=quiet)
    lines = met(homes)
    assert taken(lines) == {
        ("answered", "INFO"): 2,
        ("blocked", "INFO"): 1,
    }
    assert retryutils.__name__ not in {line.logger for line in lines}


def test_level_is_back(homes: Homes) -> None:
    """What was silenced is logged again when the operator wants it."""
    reload(homes, "INFO", loggers={"synapse.util.retryutils": {"level": "INFO"}})
    found = taken(met(homes))
    assert found["failed", "INFO"] == len(homes.names) + 1


@pytest.mark.parametrize("restarted", [False, True], ids=["reloaded", "restarted"])
def test_disabled(homes: Homes, restarted: bool) -> None:
    """With `disable_existing_loggers` the loggers are silent, and all is recorded."""
    if restarted:
        for home in homes.both():
            home.configure("INFO", disable_existing_loggers=True)
            home.synapse.restart()
    else:
        reload(homes, "INFO", disable_existing_loggers=True)
    assert met(homes) == []
