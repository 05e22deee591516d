# SPDX-License-Identifier: Apache-2.0
"""What Synapse no longer has takes away the features that need it, and nothing else."""

import builtins
import logging
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hidden_name import PACKAGE, hidden, relied_on_names
from module_case import ModuleTestCase
from OpenSSL import SSL
from prometheus_client import REGISTRY
from synapse.http.server import JsonResource
from synapse.rest.admin import register_servlets
from synapse.storage.database import DatabasePool
from test_architecture import imports
from tests.server import FakeChannel, FakeSite, make_request
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.web.resource import Resource

from synapse_federation_admin.api import ROUTES
from synapse_federation_admin.config import FederationAdminConfig
from synapse_federation_admin.console import ROUTES as PAGES
from synapse_federation_admin.homeserver import features, relied_on, selfcheck
from synapse_federation_admin.homeserver.features import Feature
from synapse_federation_admin.storage.definitions import OF_HISTORY, PREFIX
from synapse_federation_admin.storage.sql import existing_tables

ADMIN_PATH = "/_synapse/admin"
V1 = f"{ADMIN_PATH}/v1/federation/destinations"

# Which features others are made of.
NEEDS = {
    Feature.V1_RESET: {Feature.AUDIT},
    Feature.FLUSH_CACHES: {Feature.AUDIT},
    Feature.RECONNECT: {Feature.AUDIT, Feature.BACKLOG},
    Feature.RUNS: {Feature.AUDIT, Feature.BACKLOG, Feature.SHARED_ROOMS},
    Feature.DIAGNOSIS: {Feature.BACKLOG},
    Feature.CONSOLE: {Feature.V2},
}


def with_dependents(off: Collection[Feature]) -> set[Feature]:
    """Return features that are off, and those that are off because of them."""
    found = set(off)
    if Feature.BASE in off:
        found |= set(Feature) - {Feature.MOUNT}
    while True:
        more = {feature for feature, needs in NEEDS.items() if needs & found}
        if more <= found:
            return found
        found |= more


@cache
def without_homeserver() -> set[str]:
    """Return the modules for which it is all the same what Synapse has.

    They import nothing of `homeserver/`, nor does what they import.
    """
    found = {name for name in sys.modules if name.startswith(f"{PACKAGE}.")}
    found -= {name for name in found if name.startswith(f"{PACKAGE}.homeserver")}
    imported = {
        name: {i for i in imports(Path(sys.modules[name].__file__)) if PACKAGE in i}
        for name in found
    }
    while too_many := {name for name in found if imported[name] - found}:
        found -= too_many
    return found


# What is not imported anew: what is hidden from it is hidden there.
SELF_CHECK = {module.__name__ for module in (features, relied_on, selfcheck)}


_run = DatabasePool.runInteraction


async def refusing(pool: DatabasePool, *args: Any, **kwargs: Any) -> Any:
    """Run a transaction as Synapse does, but not as this module wants it."""
    if "isolation_level" in kwargs:
        raise TypeError("unexpected keyword argument 'isolation_level'")
    return await _run(pool, *args, **kwargs)


class SelfCheckTestCase(ModuleTestCase):
    """Loads the module anew, with something hidden from it alone."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.add_destination("a.example", 10, 20, 5)

    @contextmanager
    def loaded(
        self,
        config: FederationAdminConfig | None = None,
        *,
        whole: bool = False,
    ) -> Iterator["Loaded"]:
        """Import the package anew, as far as it is made of Synapse, and load it.

        The whole of it, if something else is hidden from it.
        """
        kept = {
            name: module
            for name, module in sys.modules.items()
            if name.partition(".")[0] == PACKAGE
        }
        stays = SELF_CHECK | (set() if whole else without_homeserver())
        for name in kept.keys() - stays:
            del sys.modules[name]
        resources = self.hs._module_web_resources
        mounted = resources.pop(ADMIN_PATH, None)
        # What is recorded is taken from loggers, which get a class for that.
        observed = [
            logging.getLogger(module) for module, _ in relied_on.LOG_TEXTS.values()
        ]
        classes = [each.__class__ for each in observed]
        try:
            # Its metrics are registered already.
            with mock.patch.object(REGISTRY, "register"):
                module = import_module(f"{PACKAGE}.module")
                with self.assertLogs(PACKAGE, "WARNING") as logs:
                    logging.getLogger(PACKAGE).warning("There is at least this line")
                    module.FederationAdmin(
                        config or FederationAdminConfig(), self.hs.get_module_api()
                    )
                    self.pump()
                yield Loaded(self, resources.get(ADMIN_PATH), logs.records[1:])
        finally:
            for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
                del sys.modules[name]
            sys.modules.update(kept)
            for each, class_ in zip(observed, classes, strict=True):
                each.__class__ = class_
            resources.pop(ADMIN_PATH, None)
            if mounted is not None:
                resources[ADMIN_PATH] = mounted


class Loaded:
    """A module that was loaded."""

    def __init__(
        self,
        case: SelfCheckTestCase,
        resource: Resource | None,
        records: list[logging.LogRecord],
    ) -> None:
        self.case = case
        self.is_mounted = resource is not None
        if resource is None:
            # What Synapse mounts there by itself.
            resource = JsonResource(case.hs, canonical_json=False)
            register_servlets(case.hs, resource)
        self.site = FakeSite(resource, case.reactor)
        self.records = records

    def ask(self, method: str, path: str, body: Any = b"") -> FakeChannel:
        channel: FakeChannel = make_request(
            self.case.reactor,
            self.site,
            method,
            path,
            body,
            access_token=self.case.admin_token,
            shorthand=False,
        )
        return channel

    def check(
        self,
        off: Collection[Feature],
        *,
        every_route: bool = True,
        unwanted: bool = False,
    ) -> None:
        """Check that v1 works, and that the right features are off and say so.

        In the log, too, unless they are unwanted.
        """
        case = self.case
        rows = self.ask("GET", V1)
        case.assertEqual(rows.code, 200, rows.result)
        case.assertEqual(rows.json_body["total"], 1)
        case.assertEqual(self.ask("GET", f"{V1}/a.example").code, 200)
        case.assertEqual(self.ask("GET", f"{V1}/a.example/rooms").code, 200)
        reset = self.ask("POST", f"{V1}/unknown.example/reset_connection")
        case.assertEqual(reset.code, 404, reset.result)
        errors = [r.getMessage() for r in self.records if r.levelname == "ERROR"]
        case.assertEqual(self.is_mounted, Feature.MOUNT not in off, errors)

        off = with_dependents(off)
        lines = [record for record in self.records if record.levelname == "ERROR"]
        case.assertEqual(
            sorted(line.getMessage().split("'")[1] for line in lines),
            [] if unwanted else sorted(feature.value for feature in off),
        )
        if not self.is_mounted:
            return
        for endpoint in ROUTES if every_route else ():
            if endpoint.is_v1:
                continue
            path = re.sub("<[a-z_]+>", "a.example", endpoint.path)
            reasons = [feature for feature in endpoint.needs if feature in off]
            if reasons:
                channel = self.ask(endpoint.method, path)
                case.assertEqual(channel.code, 503, (endpoint, channel.result))
                case.assertEqual(channel.json_body["errcode"], "M_UNKNOWN")
                error = channel.json_body["error"]
                case.assertIn(f"'{reasons[0].value}' is off: ", error)
            elif endpoint.method == "GET":
                channel = self.ask("GET", path)
                case.assertIn(channel.code, (200, 404, 503), (endpoint, channel.result))
        if Feature.CONSOLE in off:
            page = self.ask("GET", f"{ADMIN_PATH}/federation/")
            case.assertEqual(page.code, 404 if unwanted else 503, page.result)
        for page in () if Feature.CONSOLE in off else PAGES:
            # Of those that are not off, each is there.
            if not off.intersection(page.needs):
                file = page.handler.partition(".")[0]
                import_module(f"{PACKAGE}.console.pages.{file}")
        status = self.ask("GET", f"{ADMIN_PATH}/v2/federation/status")
        if status.code == 200:
            told = status.json_body["features"]
            case.assertEqual(
                {name for name, state in told.items() if not state["on"]},
                {feature.value for feature in off},
            )
            for name, state in told.items():
                case.assertEqual(state["on"], state["reason"] is None, name)


class NamesTestCase(SelfCheckTestCase):
    @pytest.mark.database
    def test_nothing(self) -> None:
        """With nothing hidden, everything is on."""
        with self.loaded() as loaded:
            loaded.check(())

    # The names are the same; what one takes away our own code decides.
    @pytest.mark.one_synapse
    def test_every_name(self) -> None:
        """Each name that is relied on, hidden by itself: v1 works, and what needs it
        is off, and nothing else.

        An attribute is hidden from the self-check alone: of those that the same
        features need, the module is loaded without the first.
        """
        seen: set[Collection[Feature]] = set()
        attributes = {(root, path) for _, root, path in selfcheck.names()}
        for needed_by, root, path in relied_on_names():
            with self.subTest(root=root, path=path), hidden(root, path):
                if needed_by in seen and (root, path) in attributes:
                    found = features.Features()
                    selfcheck.check_names(self.hs.get_module_api(), found)
                    is_off = {each for each in Feature if not found.is_on(each)}
                    self.assertEqual(is_off, set(needed_by))
                    continue
                with self.loaded() as loaded:
                    # Names of one group have the same routes off.
                    loaded.check(needed_by, every_route=needed_by not in seen)
                seen.add(needed_by)

    def test_every_log_text(self) -> None:
        """So with what Synapse logs; what is told beside what is recorded is told
        without that, too."""
        real, v2 = selfcheck.says, f"{ADMIN_PATH}/v2/federation"
        for text in relied_on.LOG_TEXTS:

            def says(module: str, said: str, args: str, text: str = text) -> bool:
                return said != text and real(module, said, args)

            with (
                self.subTest(text),
                mock.patch.object(selfcheck, "says", says),
                self.loaded() as loaded,
            ):
                loaded.check(relied_on.LOG_TEXTS_ARE_FOR)
                summary = loaded.ask("GET", f"{v2}/summary").json_body
                self.assertEqual((summary["total"], summary["outlook"]), (1, None))
                self.assertIsNone(summary["failing_by_kind"])
                detail = loaded.ask("GET", f"{v2}/destinations/a.example").json_body
                self.assertEqual((detail["failure_ts"], detail["failures"]), (5, []))
                self.assertIsNone(detail["availability"])

    def test_without_backlog(self) -> None:
        """What is told of one server beside its backlog and shared rooms, is told."""
        needed_by = (Feature.BACKLOG, Feature.SHARED_ROOMS)
        columns = ((needed_by, "destinations", "gone"),)
        with (
            mock.patch.object(selfcheck, "COLUMNS", columns),
            mock.patch.dict(NEEDS, clear=True),
            self.loaded() as loaded,
        ):
            loaded.check(needed_by)
            path = f"{ADMIN_PATH}/v2/federation/destinations"
            detail = loaded.ask("GET", f"{path}/a.example")
            self.assertEqual(detail.code, 200, detail.result)
            found = detail.json_body
            self.assertEqual(found["failure_ts"], 5)
            for key in ("backlog", "shared_rooms", "local_users"):
                self.assertIsNone(found[key])
            self.assertEqual(loaded.ask("GET", f"{path}/b.example").code, 404)
            summary = loaded.ask("GET", f"{ADMIN_PATH}/v2/federation/summary")
            self.assertEqual(summary.json_body["total"], 1, summary.result)
            self.assertIsNone(summary.json_body["backlog"]["rooms"])

    def test_no_transaction(self) -> None:
        """Where no transaction can be run, Synapse's own servlets answer v1."""
        with (
            mock.patch.object(DatabasePool, "runInteraction", refusing),
            self.loaded() as loaded,
        ):
            loaded.check(set(Feature) - {Feature.MOUNT})

    @pytest.mark.database
    def test_every_column(self) -> None:
        """So with the columns of Synapse's tables, which are looked at later.

        Each table is read with one that it does not have.
        """
        for needed_by, table, columns in relied_on.COLUMNS:
            found = features.Features()
            gone = (needed_by, table, f"{columns} gone")
            with (
                self.subTest(table),
                mock.patch.object(selfcheck, "COLUMNS", (gone,)),
            ):
                self.get_success(selfcheck.check_columns(self.homeserver, found))
                is_off = {each for each in Feature if not found.is_on(each)}
                self.assertEqual(is_off, set(needed_by))

    def test_other_arguments(self) -> None:
        """A log text counts only with the arguments that are taken from it, and where
        it is taken."""
        for text, (module, args) in relied_on.LOG_TEXTS.items():
            self.assertTrue(selfcheck.says(module, text, args))
            self.assertFalse(selfcheck.says(module, text, f"other, {args}"))
            self.assertFalse(selfcheck.says(module, text, "other"))
            self.assertFalse(selfcheck.says(module, f"{text} now", args))
            with mock.patch(f"{module}.logger", logging.getLogger("elsewhere")):
                self.assertFalse(selfcheck.says(module, text, args))
            source = Path(import_module(module).__file__).read_text()
            louder = re.sub(r"logger\.(info|debug)", "logger.warning", source)
            with mock.patch.object(Path, "read_text", return_value=louder):
                self.assertFalse(selfcheck.says(module, text, args))

    def test_calls(self) -> None:
        """A function counts only if it can be called as it is called here."""
        held = mock.Mock(f=lambda a, b=1, *, c: (a, b, c))
        for args in ("a c", "c a b"):
            selfcheck.find(held, f"f(*{args})")
        for args in ("a", "a b c d"):
            self.assertRaises(TypeError, selfcheck.find, held, f"f(*{args})")

    def test_awaited(self) -> None:
        """A function that is called counts only if it need not be awaited; one that is
        awaited, only if it can be."""

        async def coroutine() -> None: ...

        async def outer() -> None: ...

        def later() -> "Deferred[None]": ...

        called = mock.Mock(f=lambda: None, put_json=coroutine)
        for path in ("f", "f(*)", "put_json"):
            selfcheck.find(called, path)
        selfcheck.find(mock.Mock(put_json=later), "put_json(*)")
        awaited = mock.Mock(f=coroutine, put_json=lambda: None)
        for path in ("f", "f(*)", "put_json", "put_json(*)"):
            self.assertRaises(TypeError, selfcheck.find, awaited, path)
        # As decorators of Synapse's have it, on either side.
        outer, inner = wraps(later)(outer), wraps(coroutine)(lambda: None)
        for function in (outer, inner):
            self.assertRaises(TypeError, selfcheck.find, mock.Mock(f=function), "f")
            selfcheck.find(mock.Mock(put_json=function), "put_json")

    def test_database_away(self) -> None:
        """While the database is away nothing is switched off; it is asked again."""
        database = self.store.database_engine.module
        gone = ((Feature.INDEXES,), "destinations", "gone")
        found = features.Features()
        real = self.homeserver.run_db_interaction
        error = database.OperationalError("unable to open database file")
        away = mock.AsyncMock(side_effect=error)
        with (
            mock.patch.object(selfcheck, "COLUMNS", (gone,)),
            mock.patch.object(self.homeserver, "run_db_interaction", away),
        ):
            checked = ensureDeferred(selfcheck.check_columns(self.homeserver, found))
            self.pump()
            self.assertEqual([f for f in Feature if not found.is_on(f)], [])
            away.side_effect = real
            self.pump(10)
        self.successResultOf(checked)
        self.assertEqual([f for f in Feature if not found.is_on(f)], [Feature.INDEXES])

    def test_pydantic(self) -> None:
        """Where Synapse sits on pydantic 1, v2 is off, and v1 works."""
        real_import = builtins.__import__

        def without_pydantic(name: str, globals_: Any = None, *args: Any) -> Any:
            importer = (globals_ or {}).get("__name__", "")
            if name.startswith("pydantic") and importer.startswith(PACKAGE):
                raise ImportError("pydantic 2 is not there")
            return real_import(name, globals_, *args)

        with (
            mock.patch.object(selfcheck.pydantic, "VERSION", "1.10.26"),
            mock.patch.object(builtins, "__import__", without_pydantic),
            self.loaded(whole=True) as loaded,
        ):
            loaded.check({Feature.V2})


class WithoutHistoryTestCase(SelfCheckTestCase):
    config = {"contact_on_reset": False, "history": {"enabled": False}}

    @pytest.mark.database
    def test_history_disabled(self) -> None:
        """Where nothing is to be recorded, that is no error, and all that is about it
        says so: nothing of Synapse's is hooked, and no table of it is there or read.
        """
        observed = [
            logging.getLogger(module) for module, _ in relied_on.LOG_TEXTS.values()
        ]
        classes = [each.__class__ for each in observed]
        for each in observed:
            each.__class__ = logging.Logger
        wanted = FederationAdminConfig(history_enabled=False)
        v2 = f"{ADMIN_PATH}/v2/federation"
        with mock.patch.object(SSL.Context, "set_verify") as set_verify:
            try:
                with self.loaded(wanted) as loaded:
                    # Before anything is asked: other servers are, too.
                    set_verify.assert_not_called()
                    loaded.check({Feature.HISTORY}, unwanted=True)
                    self.assertEqual(
                        {type(each) for each in observed}, {logging.Logger}
                    )
                    status = loaded.ask("GET", f"{v2}/status").json_body
                    self.assertEqual(
                        status["features"]["history"]["reason"],
                        "'history.enabled' is false in the configuration",
                    )
                    for path in ("?include=failure", "?include=availability"):
                        answer = loaded.ask("GET", f"{v2}/destinations{path}")
                        self.assertEqual(answer.code, 503, path)
                        self.assertIn("'history' is off", answer.json_body["error"])
                    for path in ("", "/export"):
                        path = f"{v2}/destinations{path}?failure=tls_expired"
                        answer = loaded.ask("GET", path)
                        self.assertEqual(answer.code, 503, path)
                    for run in ("reconnect", "forget"):
                        body = {
                            "filter": {"failure": ["tls_expired"], "failing_for": "30d"}
                        }
                        answer = loaded.ask("POST", f"{v2}/{run}", body)
                        self.assertEqual(answer.code, 503, (run, answer.result))
                    self.add_destination("no server", 5, 5, 5)
                    path = f"{v2}/destinations/no%20server/diagnose"
                    with self.assertNoLogs("synapse.storage", "WARNING"):
                        diagnosis = loaded.ask("POST", path)
                    self.assertEqual(diagnosis.code, 200, diagnosis.result)
                    stored = diagnosis.json_body["stored"]
                    self.assertIsNone(stored["last_failure"])
                    detail = loaded.ask("GET", f"{v2}/destinations/a.example")
                    self.assertIsNone(detail.json_body["availability"])
                    forgotten = loaded.ask(
                        "POST",
                        f"{v2}/destinations/a.example/forget",
                        {"dry_run": False},
                    )
                    self.assertTrue(forgotten.json_body["forgotten"])
                    # Who sends is known without it.
                    gauges = "synapse_federation_admin_%s"
                    of = {"server_name": self.hs.hostname}
                    read = REGISTRY.get_sample_value
                    read(gauges % "updated_timestamp_seconds", of)
                    self.pump(3600)
                    nobody = {**of, "sender": ""}
                    self.assertEqual(read(gauges % "sender_up", nobody), 0)
                    self.assertIsNotNone(read(gauges % "sender_behind_events", nobody))
            finally:
                for each, class_ in zip(observed, classes, strict=True):
                    each.__class__ = class_
        existing = self.get_success(
            self.store.db_pool.runInteraction("test", existing_tables)
        )
        self.assertEqual(existing & {f"{PREFIX}{table}" for table in OF_HISTORY}, set())
        self.assertIn("federation_admin_audit", existing)
        self.assertEqual(
            [r.getMessage() for r in loaded.records if r.levelno >= logging.WARNING], []
        )


class WiringTestCase(SelfCheckTestCase):
    @pytest.mark.one_synapse
    def test_bugs(self) -> None:
        """What goes wrong unexpectedly while one feature is made, switches that off,
        and is logged with its traceback."""
        from synapse_federation_admin import module

        for feature in module._WIRING:

            def fail(*_: object) -> Any:
                raise KeyError("a bug")

            with self.subTest(feature), self.failing(feature, fail) as loaded:
                loaded.check({feature})
                bugs = [record for record in loaded.records if record.exc_info]
                self.assertEqual(len(bugs), 1)
                self.assertIn("a bug", bugs[0].getMessage())

    @contextmanager
    def failing(self, feature: Feature, fail: Any) -> Iterator[Loaded]:
        real = import_module

        def importing(name: str, *args: Any) -> Any:
            found = real(name, *args)
            if name == f"{PACKAGE}.module":
                found._WIRING[feature] = fail
            return found

        with mock.patch(f"{__name__}.import_module", importing), self.loaded() as it:
            yield it
