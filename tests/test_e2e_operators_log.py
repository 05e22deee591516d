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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import attr
import httpx
import pytest
import yaml
from faults import BLOCKED
from fleet import read_rows, select
from synapse.http import client, matrixfederationclient
from synapse.util import retryutils

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.processes import (
    WaitTimeoutError,
    free_port,
    wait_until,
)
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
ADDRESS = "127.0.0.70"
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


def _logging_config(file: Path, level: str, more: Mapping[str, Any]) -> str:
    """Return a logging configuration as operators have them."""
    fields = ("name", "levelname", "pathname", "lineno", "message")
    handler = {
        "class": "logging.FileHandler",
        "formatter": "all",
        "filename": str(file),
        "level": level,
    }
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "all": {"format": SEPARATOR.join(f"%({key})s" for key in fields)}
        },
        "handlers": {"file": handler},
        "root": {"level": level, "handlers": ["file"]},
        **more,
    }
    return yaml.safe_dump(config)


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


class Home:
    """A homeserver, whose process reads a logging configuration that can be changed."""

    client: MatrixClient

    def __init__(
        self,
        folder: Path,
        certificates: CertificateAuthority,
        module_config: dict[str, Any] | None,
    ) -> None:
        folder.mkdir()
        self.name = folder.name
        self._log = folder / "operator.log"
        self._log_config = folder / "log.yaml"
        self._log_config.write_text(_logging_config(self._log, "WARNING", {}))
        self.synapse = SynapseServer(
            folder / "synapse",
            certificates,
            module_config=module_config,
            extra_config={**CONFIG, "log_config": str(self._log_config)},
        )

    def log_as(self, level: str, restarted: bool, more: dict[str, Any]) -> None:
        """Have it log differently from now on: by a restart, or by SIGHUP."""
        config = _logging_config(self._log, level, more)
        if config == self._log_config.read_text():
            return
        self._log_config.write_text(config)
        if restarted:
            self.synapse.restart()
            return
        os.kill(self.synapse.process("main").pid, signal.SIGHUP)
        # What it says of that is said only at INFO. It reads it before it answers what
        # it is asked after that, but for what it has begun with.
        for _ in range(3):
            httpx.get(f"{self.synapse.url()}/health", trust_env=False)

    def lines(self) -> list[Line]:
        """Return what the loggers that are observed have written."""
        found = []
        for line in self._log.read_text("utf-8", "replace").splitlines():
            parts = line.split(SEPARATOR, 4)
            if len(parts) == 5 and parts[0] in OBSERVED:
                name, level, path, number, message = parts
                found.append(Line(name, level, path, int(number), message))
        return found


@attr.s(slots=True, auto_attribs=True)
class World:
    # With the module, and without.
    homes: list[Home]
    # What never works, and a server that fails at first.
    names: list[str]
    changing: RemoteServer

    def meet_all(self) -> None:
        """Have both meet all faults, a recovery, and a server that answers.

        Each of the faults is recorded once.
        """
        before = self.counts()
        changing, changing_name = self.changing, self.changing.server_name
        changing.switch(Behaviour.BAD_GATEWAY)
        for home in self.homes:
            for name in self.names:
                home.client.query_keys(f"@x:{name}")
            home.client.send_to_device(f"@x:{changing_name}", "first")
        for home in self.homes:
            wait_until(
                lambda home=home: any(read_rows(home.synapse).get(changing_name, ())),
                "the sender to notice it",
                30,
            )
        changing.switch(Behaviour.HEALTHY)
        for home in self.homes:
            text = f"{home.name} {time.monotonic()}"

            def arrives(home: Home = home, text: str = text) -> bool:
                # A sender that is about to end its loop does not see what comes now.
                home.client.send_to_device(f"@x:{changing_name}", text)
                with suppress(WaitTimeoutError):
                    changing.wait_for_message(MessageKind.TO_DEVICE, text, 2)
                    return True
                return False

            wait_until(arrives, "a message to arrive", 30)
            home.client.query_keys(f"@x:{changing_name}")
        expected = {
            name: before.get(name, 0) + 1 for name in (*self.names, changing_name)
        }
        wait_until(
            lambda: self.counts() == expected, f"{expected}, not {self.counts()}", 30
        )

    def counts(self) -> dict[str, int]:
        rows = select(
            self.homes[0].synapse,
            "SELECT destination, SUM(count) FROM federation_admin_failures GROUP BY 1",
        )
        return {name: int(count) for name, count in rows}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two homeservers that log from WARNING on, with the module and without it."""
    folder = tmp_path_factory.mktemp("log")
    certificates = CertificateAuthority(folder)
    with ExitStack() as stack:
        expired, changing = (
            stack.enter_context(RemoteServer(f"127.0.0.{n}", certificates))
            for n in (61, 62)
        )
        expired.switch(Behaviour.EXPIRED_CERTIFICATE)
        names = [
            expired.server_name,
            f"{ADDRESS}:{free_port(ADDRESS)}",
            f"{BLOCKED}:8448",
            "localhost:8448",
            "nosuch.invalid:8448",
        ]
        homes = [
            Home(folder / "with", certificates, {}),
            Home(folder / "without", certificates, None),
        ]
        for home in homes:
            synapse = stack.enter_context(home.synapse)
            home.client = synapse.client(synapse.create_user("user"))
        yield World(homes, names, changing)


# How both log, one phase after the other: the level, what else is in the configuration,
# whether they are restarted with it (else they are sent SIGHUP), and how often each of
# the lines from which the module takes something is then in the log.
FAILED = 6
ANSWERED = {("answered", "INFO"): 2}  # 502 and 404
BLOCKED_ONE = {("blocked", "INFO"): 1}
RETRYUTILS = retryutils.__name__
PHASES: dict[str, tuple[str, dict[str, Any], bool, dict[tuple[str, str], int]]] = {
    "warning": ("WARNING", {}, False, {}),
    "debug": (
        *("DEBUG", {}, False),
        {
            ("failed", "INFO"): FAILED,
            ("recovered", "DEBUG"): 1,
            **ANSWERED,
            # What was delivered.
            ("answered", "DEBUG"): 1,
            **BLOCKED_ONE,
        },
    ),
    "one logger is silenced": (
        *("INFO", {"loggers": {RETRYUTILS: {"level": "ERROR"}}}, False),
        {**ANSWERED, **BLOCKED_ONE},
    ),
    "and is not any more": (
        *("INFO", {"loggers": {RETRYUTILS: {"level": "INFO"}}}, False),
        {("failed", "INFO"): FAILED, **ANSWERED, **BLOCKED_ONE},
    ),
    "all are disabled": ("INFO", {"disable_existing_loggers": True}, False, {}),
    "from the start": ("INFO", {"disable_existing_loggers": True}, True, {}),
}


@pytest.mark.parametrize("phase", PHASES)
def test_log(world: World, phase: str) -> None:
    """Whatever is logged, it is what is logged without the module; all is recorded.

    Each line is there once, and tells where Synapse says it.
    """
    level, more, restarted, expected = PHASES[phase]
    for home in world.homes:
        home.log_as(level, restarted, more)
    begin = [len(home.lines()) for home in world.homes]
    world.meet_all()
    lines, stock = (
        home.lines()[number:] for home, number in zip(world.homes, begin, strict=True)
    )
    assert Counter(line.general for line in lines) == Counter(
        line.general for line in stock
    )
    taken = Counter(
        (what, line.level)
        for line in lines
        for what, pattern in TAKEN.items()
        if pattern.search(line.message)
    )
    assert taken == expected
    for line in lines:
        assert line.path == inspect.getsourcefile(OBSERVED[line.logger])
        assert "logger." in linecache.getline(line.path, line.number), line
    if "disable_existing_loggers" in more:
        assert lines == []
