# SPDX-License-Identifier: Apache-2.0
"""A homeserver of Synapse's test harness that has loaded this module."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any
from unittest import mock
from urllib.parse import quote

import psycopg2
import synapse.rest.admin
from answers import check_answer
from psycopg2.extensions import ISOLATION_LEVEL_READ_COMMITTED
from synapse.rest.client import login, room
from synapse.server import HomeServer
from synapse.storage.database import LoggingTransaction
from synapse.storage.engines import PostgresEngine
from synapse.util.clock import Clock
from template_database import run_background_updates
from tests.server import FakeChannel
from twisted.internet.testing import MemoryReactor
from twisted.web.resource import Resource

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import instances
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.instances import Instance
from synapse_federation_admin.storage.schema import Tables
from tests import unittest

# Here, for this is imported once, and before any test.
run_background_updates()

DESTINATIONS = "/_synapse/admin/v1/federation/destinations"
V2 = "/_synapse/admin/v2/federation"

# A destination for tests of the reset, and the columns of its row while it is failing.
NAME = "down.example"
FAILING = (1000, 2000, 500, 7)


class LoadsModule:
    """Mixed into a `HomeserverTestCase`: requests reach our admin resource.

    Every answer is held against the OpenAPI document.
    """

    # The module's configuration. Contacts would go out to nowhere.
    config: dict[str, Any] = {"contact_on_reset": False}

    hs: HomeServer

    def default_config(self) -> dict[str, Any]:
        listener = {
            "port": 8008,
            "type": "http",
            # Of the harness's requests: they come in through a listener with this tag.
            "tag": "test",
            "resources": [{"names": ["client"]}],
        }
        module = {
            "module": "synapse_federation_admin.FederationAdmin",
            "config": self.config,
        }
        config = super().default_config()  # type: ignore[misc]
        return {**config, "listeners": [listener], "modules": [module]}

    def create_resource_dict(self) -> dict[str, Resource]:
        return {
            **super().create_resource_dict(),  # type: ignore[misc]
            **self.hs._module_web_resources,
        }

    def make_request(
        self, method: bytes | str, path: bytes | str, *args: Any, **kwargs: Any
    ) -> FakeChannel:
        channel: FakeChannel = super().make_request(method, path, *args, **kwargs)  # type: ignore[misc]

        def check() -> None:
            if channel.is_finished():
                target = path if isinstance(path, str) else path.decode("latin-1")
                (content_type,) = channel.headers.getRawHeaders("Content-Type", [""])
                check_answer(
                    str(method),
                    target,
                    channel.code,
                    content_type,
                    channel.result.get("body", b""),
                )

        if channel.is_finished():
            check()
        else:
            self.addCleanup(check)  # type: ignore[attr-defined]
        return channel


class ModuleTestCase(LoadsModule, unittest.HomeserverTestCase):
    """With an admin, an ordinary user, and short words for requests and rows."""

    servlets = [
        # Of these, only what is outside of /_synapse/admin answers.
        synapse.rest.admin.register_servlets_for_client_rest_resource,
        login.register_servlets,
        room.register_servlets,
    ]

    def prepare(self, reactor: MemoryReactor, clock: Clock, hs: HomeServer) -> None:
        self.store = hs.get_datastores().main
        self.admin_token = self._register("@admin:test", admin=True)

    @cached_property
    def user_token(self) -> str:
        return self._register("@user:test")

    @cached_property
    def homeserver(self) -> Homeserver:
        """What the module's parts see of Synapse."""
        return Homeserver(self.hs.get_module_api())

    @cached_property
    def tables(self) -> Tables:
        return Tables(self.homeserver)

    @cached_property
    def log(self) -> Audit:
        """What writes the audit."""
        return Audit(self.homeserver, self.tables)

    def _register(self, user_id: str, *, admin: bool = False) -> str:
        """Register a user and return their access token.

        Requests for it would take a fifth of a short test.
        """
        token = f"token_of_{user_id}"
        store = self.store
        self.get_success(
            store.register_user(
                user_id, create_profile_with_displayname=user_id, admin=admin
            )
        )
        self.get_success(store.add_access_token_to_user(user_id, token, None, None))
        return token

    def ask(
        self, method: str, path: str, *, token: str | None = "admin", **kwargs: Any
    ) -> Any:
        """Make a request, as the admin unless another token is given."""
        if token == "admin":
            token = self.admin_token
        return self.make_request(method, path, access_token=token, **kwargs)

    def get_json(self, path: str) -> Any:
        """Return the JSON of a GET that answers 200."""
        channel = self.ask("GET", path)
        self.assertEqual(channel.code, 200, (path, channel.result))
        return channel.json_body

    def post_json(self, path: str, **body: Any) -> Any:
        """Return the JSON of a POST that answers 200."""
        channel = self.ask("POST", path, content=body)
        self.assertEqual(channel.code, 200, (path, channel.result))
        return channel.json_body

    def pages(self, path: str) -> Iterator[Any]:
        """Yield the pages of a list, as each leads to the next."""
        page = path
        while page:
            body = self.get_json(page)
            yield body
            token = body.get("next_token")
            page = f"{path}&from={quote(token)}" if token else ""

    def exported(self, path: str) -> list[Any]:
        """Return the objects of an export in NDJSON."""
        channel = self.ask("GET", path)
        self.assertEqual(channel.code, 200, (path, channel.result))
        lines = channel.result.get("body", b"").splitlines()
        return [json.loads(line) for line in lines]

    def assert_error(
        self, channel: Any, code: int, errcode: str, said: str = ""
    ) -> None:
        """Check that a request is refused, and that the text says so."""
        self.assertEqual(channel.code, code, channel.result)
        self.assertEqual(channel.json_body["errcode"], errcode)
        self.assertIn(said, channel.json_body["error"])

    def audit(self, query: str = "") -> list[dict[str, Any]]:
        """Return the audit, the newest first."""
        return self.get_json(f"{V2}/audit{query}")["entries"]  # type: ignore[no-any-return]

    def outcomes(self, query: str = "") -> list[str]:
        """Return what came of what is in the audit, of the newest first."""
        return [entry["outcome"] for entry in self.audit(query)]

    def reset(self, name: str = NAME, **kwargs: Any) -> Any:
        path = self.destination_path(name, "/reset_connection")
        return self.ask("POST", path, **kwargs)

    def wakes(self) -> Any:
        """Take note of whom this process wakes, in place of waking them."""
        notifier = self.hs.get_notifier()
        return mock.patch.object(notifier, "notify_remote_server_up")

    def timings(self, name: str = NAME) -> Any:
        """Return what Synapse, with its cache, believes of the backoff."""
        return self.get_success(self.store.get_destination_retry_timings(name))

    def store_failure(self, name: str = NAME, ts: int | None = None) -> int:
        """Have Synapse store a failure, of now by default; return when that was."""
        ts = self.clock.time_msec() if ts is None else ts
        stored = self.store.set_destination_retry_timings(name, ts, ts, 600_000)
        self.get_success(stored)
        return ts

    def destination_path(self, name: str, rest: str = "") -> str:
        return f"{DESTINATIONS}/{quote(name, safe='')}{rest}"

    def add_destination(
        self,
        name: str,
        retry_last_ts: int | None = None,
        retry_interval: int | None = None,
        failure_ts: int | None = None,
        last_successful_stream_ordering: int | None = None,
    ) -> None:
        """Write a row, past Synapse and its caches, as an operator with SQL would."""
        self.get_success(
            self.store.db_pool.simple_upsert(
                "destinations",
                {"destination": name},
                {
                    "retry_last_ts": retry_last_ts,
                    "retry_interval": retry_interval,
                    "failure_ts": failure_ts,
                    "last_successful_stream_ordering": last_successful_stream_ordering,
                },
            )
        )

    def add_room(self, destination: str, room_id: str, stream_ordering: int) -> None:
        """Write that an event in a room was queued for a destination."""
        self.get_success(
            self.store.db_pool.simple_upsert(
                "rooms",
                {"room_id": room_id},
                {"is_public": False, "creator": "@admin:test", "room_version": "11"},
            )
        )
        self.insert(
            "destination_rooms",
            destination=destination,
            room_id=room_id,
            stream_ordering=stream_ordering,
        )

    def names(self, query: str = "") -> list[str]:
        """Return the names in the list of destinations."""
        body = self.get_json(DESTINATIONS + query)
        return [row["destination"] for row in body["destinations"]]

    @property
    def is_postgres(self) -> bool:
        return isinstance(self.store.database_engine, PostgresEngine)

    def refuse_changes(self, table: str, *events: str) -> None:
        """Have the database refuse every insertion and update, or what is given."""
        events = events or ("INSERT", "UPDATE")
        if self.is_postgres:
            self.run_sql(
                "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql "
                "AS $$ BEGIN RAISE 'disk full'; END $$"
            )
        for event in events:
            what = (
                "FOR EACH ROW EXECUTE FUNCTION refuse()"
                if self.is_postgres
                else "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )
            self.run_sql(
                f"CREATE TRIGGER refuse_{event} BEFORE {event} ON {table} {what}"
            )

    def accept_changes(self, table: str, *events: str) -> None:
        """Have the database accept again what it refuses."""
        for event in events or ("INSERT", "UPDATE"):
            on_table = f" ON {table}" if self.is_postgres else ""
            self.run_sql(f"DROP TRIGGER refuse_{event}{on_table}")

    def run_sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement; return its rows."""

        def run(txn: LoggingTransaction) -> list[tuple[Any, ...]]:
            txn.execute(statement)
            return txn.fetchall() if txn.description else []

        return self.get_success(self.store.db_pool.runInteraction("test", run))

    def plan(self, statement: str, args: Any = (), *, without: tuple[str, ...]) -> str:
        """Return how the database reads, on PostgreSQL without some ways to do so."""

        def plan_txn(txn: LoggingTransaction) -> str:
            for way in without if self.is_postgres else ():
                txn.execute(f"SET LOCAL enable_{way} = off")
            how = "EXPLAIN" if self.is_postgres else "EXPLAIN QUERY PLAN"
            txn.execute(f"{how} {statement}", args)
            return str(txn.fetchall())

        return self.get_success(self.store.db_pool.runInteraction("test", plan_txn))

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Have a connection with PostgreSQL past Synapse, as another process has it."""
        config = self.hs.config.database.get_single_database().config["args"]
        args = {key: value for key, value in config.items() if key[:3] != "cp_"}
        with closing(psycopg2.connect(**args)) as connection:
            connection.set_isolation_level(ISOLATION_LEVEL_READ_COMMITTED)
            yield connection

    @property
    def database_away(self) -> Exception:
        """What a database raises that is away."""
        module = self.store.database_engine.module
        return module.OperationalError("connection lost")  # type: ignore[no-any-return]

    def insert(self, table: str, **values: Any) -> None:
        self.get_success(self.store.db_pool.simple_insert(table, values))

    def insert_failure(self, name: str, kind: str, ts: int = 1, **values: Any) -> None:
        """Have it be recorded why a destination failed."""
        row = {"message": "", "count": 1, "instance": "main", "issuer": "", **values}
        row = {"first_ts": ts, "last_ts": ts, **row}
        self.insert("federation_admin_failures", destination=name, kind=kind, **row)

    def add_to_device(self, name: str, queued_ts: int = 1, stream_id: int = 1) -> None:
        """Write that a to-device message waits for a destination."""
        self.insert(
            "device_federation_outbox",
            destination=name,
            stream_id=stream_id,
            queued_ts=queued_ts,
            messages_json="{}",
        )

    def add_instance(self, name: str, age_ms: int = 0) -> None:
        """Write of another process, one that sends, that it was seen."""
        seen = Instance(
            name, module_version="1", synapse_version="1", sends=True, reactor_late_ms=0
        )

        def beat_txn(txn: LoggingTransaction) -> None:
            instances.beat_txn(txn, seen, 0)

        self.get_success(self.tables.run("test", beat_txn))
        self.run_sql(
            f"UPDATE federation_admin_instances SET seen_ts = seen_ts - {age_ms} "
            f"WHERE instance = '{name}'"
        )

    def add_poke(self, name: str, stream_id: int = 1, *, sent: bool = False) -> None:
        """Write that the change of a device waits for a destination."""
        self.insert(
            "device_lists_outbound_pokes",
            destination=name,
            stream_id=stream_id,
            user_id="@user:test",
            device_id="DEVICE",
            sent=sent,
            ts=1,
        )


class SenderTestCase(ModuleTestCase):
    """With another process that runs, and sends."""

    def default_config(self) -> dict[str, Any]:
        return {**super().default_config(), "federation_sender_instances": ["sender1"]}

    def setUp(self) -> None:
        super().setUp()
        self.add_instance("sender1")


class MembersTestCase(ModuleTestCase):
    """Writes memberships."""

    events = 0

    def add_member(self, room_id: str, user: str, membership: str = "join") -> None:
        """Write a membership, of a local user as Synapse does for those."""
        self.events += 1
        event_id = f"$test{self.events}"
        self.insert(
            "current_state_events",
            event_id=event_id,
            room_id=room_id,
            type="m.room.member",
            state_key=user,
            membership=membership,
        )
        if user.endswith(":test"):
            self.insert(
                "local_current_membership",
                event_id=event_id,
                room_id=room_id,
                user_id=user,
                membership=membership,
            )

    def share_room(self, name: str, room_id: str = "!shared:test") -> None:
        """Have a user of ours and one of a server's be in a room."""
        self.add_member(room_id, f"@someone:{name}")
        self.add_member(room_id, "@user:test")


class ResetTestCase(ModuleTestCase):
    """POST destinations/<destination>/reset_connection, without a contact."""

    def row(self, name: str = NAME) -> tuple[int, int, int | None, int | None]:
        """Return a destination's times, as GET shows them."""
        body = self.get_json(self.destination_path(name))
        return (
            body["retry_last_ts"],
            body["retry_interval"],
            body["failure_ts"],
            body["last_successful_stream_ordering"],
        )
