# SPDX-License-Identifier: Apache-2.0
"""The optional indexes with real processes on PostgreSQL, whatever interrupts them."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest

from synapse_federation_admin.destinations.indexes import INDEXES
from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.configuration import MAIN
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = [pytest.mark.e2e, pytest.mark.one_synapse]

ALL_VALID = {index.name: True for index in INDEXES}
CONFIG = {"indexes": True}


class Database:
    """What the database of a Synapse says of the indexes, and a way to hold it up."""

    def __init__(self, synapse: SynapseServer) -> None:
        assert synapse.database is not None
        self._database = synapse.database
        self._session = self.connect()
        self._session.autocommit = True

    def connect(self) -> Any:
        return psycopg2.connect(
            host=self._database.host,
            user=self._database.user,
            dbname=self._database.name,
        )

    def close(self) -> None:
        self._session.close()

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with self._session.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def validity(self) -> dict[str, bool]:
        """Return of every index that there is whether it is valid, by its name."""
        return {name: is_valid for name, _, is_valid in self._indexes()}

    def identities(self) -> dict[str, int]:
        """Return what tells an index from one of the same name that replaced it."""
        return {name: oid for name, oid, _ in self._indexes()}

    def _indexes(self) -> list[tuple[Any, ...]]:
        return self.query(
            "SELECT c.relname, c.oid, i.indisvalid FROM pg_index AS i "
            "JOIN pg_class AS c ON c.oid = i.indexrelid "
            "WHERE c.relname LIKE 'federation_admin_%' "
            "AND i.indrelid = 'destinations'::regclass"
        )

    def drop_all(self) -> None:
        for name in self.validity():
            self.query(f"DROP INDEX {name}")

    def builders(self) -> list[int]:
        """Return the PostgreSQL backends that build an index."""
        rows = self.query(
            "SELECT pid FROM pg_stat_activity "
            "WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND state = 'active'"
        )
        return [pid for (pid,) in rows]

    def wait_until_valid(self, timeout_s: float) -> None:
        wait_until(
            lambda: self.validity() == ALL_VALID, "all indexes to be valid", timeout_s
        )

    @contextmanager
    def builds_held_up(self) -> Iterator[None]:
        """Hold a transaction open for which every build has to wait."""
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute("LOCK TABLE destinations IN ROW EXCLUSIVE MODE")
            yield


@pytest.fixture(scope="module")
def synapse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SynapseServer]:
    folder = tmp_path_factory.mktemp("indexes")
    with SynapseServer(
        folder / "synapse",
        CertificateAuthority(folder),
        postgres=True,
        module_config=CONFIG,
    ) as server:
        yield server


@contextmanager
def held_up_build(synapse: SynapseServer, database: Database) -> Iterator[None]:
    """Have Synapse begin a build that cannot go on before this is left."""
    synapse.stop()
    database.drop_all()
    with database.builds_held_up():
        synapse.start()
        wait_until(
            lambda: database.builders() and False in database.validity().values(),
            "a build to have begun",
            30,
        )
        yield


def test_killed(synapse: SynapseServer) -> None:
    """Killed in the middle of a build and started again, it ends with all valid.

    PostgreSQL does not notice at once: what it still builds for the dead process is
    waited for, and not dropped. What is left when that ends is repaired.
    """
    with closing(Database(synapse)) as database:
        with held_up_build(synapse, database):
            synapse.process(MAIN).kill()
            (orphan,) = database.builders()
            half_built = database.identities()
            synapse.start()
            wait_until(
                lambda: "Another process is building" in log(synapse, MAIN),
                "the new process to find the old build",
                30,
            )
            assert database.builders() == [orphan]
            assert database.identities() == half_built
            database.query(f"SELECT pg_terminate_backend({orphan})")

        database.wait_until_valid(30)
        assert not half_built.items() & database.identities().items()


def test_stopped(synapse: SynapseServer) -> None:
    """A build does not keep Synapse from stopping; the next start takes it up."""
    with closing(Database(synapse)) as database:
        with held_up_build(synapse, database):
            before = time.monotonic()
            synapse.process(MAIN).stop(timeout_s=60)
            assert time.monotonic() - before < 10
            wait_until(lambda: not database.builders(), "the build to end", 30)
        assert False in database.validity().values()

        synapse.start()

        database.wait_until_valid(30)


def log(synapse: SynapseServer, process: str) -> str:
    return (synapse.folder / f"{process}.log").read_text("utf-8")
