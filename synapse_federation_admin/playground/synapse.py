# SPDX-License-Identifier: Apache-2.0
"""A real Synapse: one process with SQLite, or several with PostgreSQL and Redis."""

import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx

import synapse_federation_admin
from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import (
    NO_AUTHORITIES,
    MatrixClient,
    User,
)
from synapse_federation_admin.playground.configuration import (
    MAIN,
    Layout,
    write_configuration,
)
from synapse_federation_admin.playground.processes import (
    ChildProcess,
    PlaygroundError,
    tail,
    wait_until,
)
from synapse_federation_admin.playground.services import Database, Postgres, Redis

_START_TIMEOUT_S = 120


def say_nothing(_: str) -> None:
    """Report progress to nobody."""


class SynapseServer:
    """A homeserver, and all its processes.

    Entering the context starts everything and leaving it stops everything. In between,
    `process(name)` gives each process to stop, kill, pause and start again.

    The client listener is plain HTTP on 127.0.0.1. The federation listener is TLS under
    the playground's own authority, and the server name is its address and port, so that
    several such servers can federate with each other and with `RemoteServer`s.
    """

    def __init__(
        self,
        folder: Path,
        certificates: CertificateAuthority,
        *,
        address: str = "127.0.0.1",
        workers: bool = False,
        postgres: bool | None = None,
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        progress: Callable[[str], None] = say_nothing,
        **settings: Any,
    ) -> None:
        """Describe a homeserver.

        Args:
            folder: where all its files go; made if there is none.
            certificates: the playground's authority.
            address: the address in 127.0.0.0/8 of its federation listener.
            workers: main, generic_worker, federation_sender_1 and _2 on PostgreSQL and
                Redis; else one process on SQLite.
            postgres: use PostgreSQL; by default only with workers.
            wrapper: a command that executes the one behind it, in its own process.
            environment: more environment variables.
            progress: is told what happens while it starts.
            settings: what else `write_configuration` takes.
        """
        self.folder = folder
        self.registration_secret = secrets.token_hex(16)
        self.layout = Layout.choose(address, workers=workers)
        self.database: Database | None = None
        self.postgres: Postgres | None = None
        self.redis: Redis | None = None
        self._certificates = certificates
        self._workers = workers
        self._use_postgres = workers if postgres is None else postgres
        self._settings = settings
        self._wrapper = list(wrapper)
        self._environment = dict(environment or {})
        self._progress = progress
        self._processes: dict[str, ChildProcess] = {}
        self._stack = ExitStack()

    @property
    def server_name(self) -> str:
        """The homeserver's server name, "address:port"."""
        return self.layout.server_name

    @property
    def processes(self) -> tuple[str, ...]:
        """The names of its processes, the main process first."""
        return self.layout.processes

    def url(self, process: str = MAIN) -> str:
        """Return the base URL of a process's client listener."""
        return f"http://127.0.0.1:{self.layout.client_ports[process]}"

    def client(self, user: User | None = None, process: str = MAIN) -> MatrixClient:
        """Make a client that speaks to one process as a user, or as nobody.

        It is closed when the server's context is left.
        """
        client = MatrixClient(self.url(process), user.access_token if user else "")
        self._stack.callback(client.close)
        return client

    def process(self, name: str) -> ChildProcess:
        """Return one of the processes."""
        return self._processes[name]

    def create_user(
        self, localpart: str, *, admin: bool = False, password: str = ""
    ) -> User:
        """Register a user, by default with a password nobody can guess."""
        with closing(MatrixClient(self.url())) as client:
            return client.register(
                self.registration_secret,
                localpart,
                password or secrets.token_urlsafe(16),
                admin=admin,
            )

    def log_tail(self, process: str = MAIN, lines: int = 20) -> str:
        """Return the last lines of a process's log."""
        return tail(self.folder / f"{process}.log", lines)

    # Starting and stopping.

    def __enter__(self) -> "SynapseServer":
        """Start all processes and wait until each answers.

        Raises:
            PlaygroundError: one of them did not; the text has the end of its log.
        """
        with ExitStack() as stack:
            self._prepare(stack)
            self._progress("Starting Synapse")
            self.start(MAIN)
            workers = self.processes[1:]
            if workers:
                self._progress("Starting Synapse's workers")
            for name in workers:
                self.start(name, wait=False)
            for name in workers:
                self.wait_until_healthy(name)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all processes; their files stay."""
        self._stack.close()

    def start(self, name: str = MAIN, *, wait: bool = True) -> None:
        """Start a process (again) and by default wait until it answers."""
        self._processes[name].start()
        if wait:
            self.wait_until_healthy(name)

    def stop(self, name: str = MAIN) -> None:
        """Stop a process in an orderly way."""
        self._processes[name].stop()

    def restart(self, name: str = MAIN) -> None:
        """Stop a process in an orderly way, start it, and wait until it answers."""
        self.stop(name)
        self.start(name)

    def wait_until_healthy(
        self, name: str = MAIN, timeout_s: float = _START_TIMEOUT_S
    ) -> None:
        """Wait until a process answers on `/health`.

        Raises:
            PlaygroundError: it ended, or did not answer for `timeout_s` seconds.
        """
        process = self._processes[name]
        url = f"{self.url(name)}/health"

        def healthy() -> bool:
            if not process.running:
                raise PlaygroundError(
                    f"Synapse ({name}) ended while it was starting.\n"
                    f"{tail(process.output)}\n{self.log_tail(name)}".rstrip()
                )
            try:
                return client.get(url).is_success
            except httpx.HTTPError:
                return False

        with httpx.Client(timeout=5, trust_env=False, verify=NO_AUTHORITIES) as client:
            wait_until(healthy, f"Synapse ({name}) to answer", timeout_s, 0.1)

    def _prepare(self, stack: ExitStack) -> None:
        """Start what Synapse needs, write its files, and describe its processes."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._use_postgres:
            self._progress("Starting PostgreSQL")
            self.postgres = stack.enter_context(Postgres(self.folder / "postgres"))
            self.database = self.postgres.create_database("synapse")
        if self._workers:
            self._progress("Starting Redis")
            self.redis = stack.enter_context(Redis(self.folder / "redis"))
        write_configuration(
            self.folder,
            self.layout,
            self._certificates,
            registration_secret=self.registration_secret,
            database=self.database,
            redis=self.redis,
            **self._settings,
        )
        environment = _environment() | self._environment
        for name in self.processes:
            self._processes[name] = ChildProcess(
                f"Synapse ({name})",
                self._wrapper + _command(self.folder, name),
                output=self.folder / f"{name}.out",
                folder=self.folder,
                environment=environment,
            )
        stack.callback(self._stop_all)

    def _stop_all(self) -> None:
        # Ask all of them before waiting for any: they stop side by side.
        for process in self._processes.values():
            process.ask_to_stop()
        for process in self._processes.values():
            process.stop()


def _command(folder: Path, name: str) -> list[str]:
    main = str(folder / "homeserver.yaml")
    if name == MAIN:
        return [sys.executable, "-m", "synapse.app.homeserver", "-c", main]
    worker = str(folder / f"{name}.yaml")
    return [
        *(sys.executable, "-m", "synapse.app.generic_worker"),
        *("-c", main, "-c", worker),
    ]


def _environment() -> dict[str, str]:
    """Make the environment in which Synapse finds this very package, and no proxy."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy")
    }
    # From a checkout the package is not on the path of another interpreter.
    package = Path(synapse_federation_admin.__file__).resolve().parent
    path = [str(package.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return environment
