# SPDX-License-Identifier: Apache-2.0
"""Where the module's resource answers, and that it loses nothing of Synapse's."""

from typing import Any
from unittest import mock

from hidden_name import hidden
from module_case import DESTINATIONS
from synapse.app.generic_worker import GenericWorkerServer
from synapse.app.homeserver import SynapseHomeServer
from synapse.config.server import parse_listener_def
from synapse.http.server import JsonResource
from synapse.rest import SERVLET_GROUPS
from synapse.server import HomeServer
from synapse.util.clock import Clock
from tests.server import make_request
from tests.unittest import HomeserverTestCase
from twisted.internet.address import UNIXAddress
from twisted.internet.testing import MemoryReactor
from twisted.web.resource import Resource
from twisted.web.server import Site

from synapse_federation_admin import FederationAdmin
from synapse_federation_admin.api import ROUTES, Route
from synapse_federation_admin.homeserver.admin_resource import (
    CONSOLE_PATH,
    AdminResource,
)

MODULE = {"module": "synapse_federation_admin.FederationAdmin", "config": {}}


def listener(port: int, *names: str, **options: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "port": port,
        "bind_addresses": ["127.0.0.1"],
        "resources": [{"names": list(names)}],
        **options,
    }


def unix_listener(path: str, *names: str) -> dict[str, Any]:
    return {"type": "http", "path": path, "resources": [{"names": list(names)}]}


def admin_of(site: Site) -> Resource | None:
    """Return what a listener has at /_synapse/admin."""
    synapse = site.resource.children.get(b"_synapse")
    return synapse and synapse.children.get(b"admin")


def routes_of(resource: JsonResource) -> set[tuple[str, bytes]]:
    return {
        (pattern.pattern, method)
        for pattern, methods in resource._routes.items()
        for method in methods
    }


class ListenersTestCase(HomeserverTestCase):
    """Synapse's own code opens the listeners, on Synapse's fake reactor."""

    listeners: list[dict[str, Any]]
    app: type[HomeServer] = SynapseHomeServer
    worker_options: dict[str, Any] = {}

    def make_homeserver(self, reactor: MemoryReactor, clock: Clock) -> HomeServer:
        return self.setup_test_homeserver(homeserver_to_use=self.app)

    def default_config(self) -> dict[str, Any]:
        config = {**super().default_config(), "modules": [MODULE]}
        if self.app is GenericWorkerServer:
            return {
                **config,
                "worker_app": "synapse.app.generic_worker",
                "worker_name": "worker1",
                "worker_listeners": self.listeners,
                "instance_map": {"main": {"host": "127.0.0.1", "port": 1}},
                "redis": {"enabled": False},
                # The harness looks at the first of these; a worker at none of them.
                "listeners": [listener(0, "federation")],
                **self.worker_options,
            }
        return {**config, "listeners": self.listeners}

    def open(self, *, stock: bool = False) -> list[Site]:
        """Have Synapse open every listener, and return their sites in order.

        Args:
            stock: Leave the module's resource out.
        """
        resources = {} if stock else self.hs._module_web_resources
        before = len(self.reactor.tcpServers)
        with (
            mock.patch.object(self.hs, "_module_web_resources", resources),
            # What one homeserver puts there, the next one in the same process, which
            # only a test has, would find.
            mock.patch.dict(SERVLET_GROUPS),
        ):
            SERVLET_GROUPS.pop("media", None)
            for options in self.listeners:
                parsed = parse_listener_def(0, options)
                if isinstance(self.hs, SynapseHomeServer):
                    self.hs._listener_http(self.hs.config, parsed)
                else:
                    assert isinstance(self.hs, GenericWorkerServer)
                    self.hs._listen_http(parsed)
        return [server[1] for server in self.reactor.tcpServers[before:]]

    def status(self, site: Site, path: str = DESTINATIONS, method: str = "GET") -> int:
        channel = make_request(self.reactor, site, method, path, shorthand=False)
        if channel.code == 404:
            self.assertEqual(channel.json_body["errcode"], "M_UNRECOGNIZED")
        return channel.code

    @property
    def mounted(self) -> AdminResource:
        return self.hs._module_web_resources["/_synapse/admin"]

    def owner_of(self, route: Route) -> str:
        """Return the package of what answers a route where there is `client`."""
        request = mock.Mock(
            path=route.path.replace("<destination>", "a").encode(),
            method=route.method.encode(),
            # Of no listener of the configuration.
            synapse_site=mock.Mock(site_tag="test"),
        )
        routes = self.mounted.routes_for(request)
        callback, _, _ = routes._get_handler_for_request(request)
        return str(callback.__module__.partition(".")[0])

    def check(self, open_listeners: set[int]) -> None:
        """Check every listener.

        Each route of ours, and the console, is 401 on some, and 404 on all the others;
        it is answered by us. Each route of stock Synapse is there, and where it has
        none there are none.
        """
        ours, stock = self.open(), self.open(stock=True)
        self.assertEqual(len(ours), len(self.listeners))
        for number, options in enumerate(self.listeners):
            for method, path in (
                ("GET", f"{CONSOLE_PATH}/"),
                *((route.method, route.path) for route in ROUTES),
            ):
                self.assertEqual(
                    self.status(
                        ours[number], path.replace("<destination>", "a"), method
                    ),
                    401 if number in open_listeners else 404,
                    (number, path),
                )
            request = mock.Mock(synapse_site=ours[number])
            mounted = self.mounted.routes_for(request)
            stock_resource = admin_of(stock[number])
            stock_routes = routes_of(stock_resource) if stock_resource else set()
            self.assertEqual(stock_routes - routes_of(mounted), set(), options)
            self.assertEqual(bool(stock_routes), bool(routes_of(mounted)), options)
        for route in ROUTES:
            self.assertEqual(self.owner_of(route), "synapse_federation_admin", route)


class MainTestCase(ListenersTestCase):
    """The main process."""

    listeners = [
        listener(1, "client"),
        listener(2, "client", "federation"),
        listener(3, "federation"),
        listener(4, "metrics"),
        listener(5, "replication"),
        listener(6, "media"),
        listener(7, "health"),
        listener(8, "federation", tag="tagged"),
        listener(9, "client", tag="tagged client"),
    ]

    def test_every_listener(self) -> None:
        """Ours and all of stock Synapse's answer where stock has its admin API."""
        self.check({0, 1, 8})
        client = self.open()[0]
        self.assertEqual(self.status(client, "/_synapse/admin/v1/server_version"), 200)
        self.assertEqual(self.status(client, "/_synapse/admin/v2/users"), 401)
        self.assertEqual(self.status(client, "/_synapse/admin/v1/nothing"), 404)


class WorkerTestCase(ListenersTestCase):
    """A generic worker, with the media repository."""

    app = GenericWorkerServer
    listeners = [
        listener(1, "client"),
        listener(2, "media"),
        listener(3, "client", "media"),
        listener(4, "federation"),
        listener(5, "metrics"),
        listener(6, "health"),
        listener(7, "replication"),
    ]

    def test_every_listener(self) -> None:
        """So it is here, where stock Synapse has none of our routes."""
        self.check({0, 1, 2})
        stock = admin_of(self.open(stock=True)[0])
        self.assertFalse([p for p, _ in routes_of(stock) if "/federation/" in p])


class WorkerWithoutBaseTestCase(ListenersTestCase):
    """A generic worker on which nothing of ours can work."""

    app = GenericWorkerServer
    listeners = [listener(1, "client")]

    def setUp(self) -> None:
        with hidden("hs", "get_auth().get_user_by_req(*request)"):
            super().setUp()

    def test_synapses_own_answer(self) -> None:
        """Synapse's own servlets answer v1, which stock has none of on a worker."""
        for route in ROUTES:
            owner = "synapse" if "/v1/" in route.path else "synapse_federation_admin"
            self.assertEqual(self.owner_of(route), owner, route)


class WorkerWithoutMediaTestCase(ListenersTestCase):
    """A generic worker on which the media repository is off."""

    app = GenericWorkerServer
    worker_options = {"enable_media_repo": False}
    listeners = [listener(1, "client"), listener(2, "media")]

    def test_every_listener(self) -> None:
        """A `media` listener without the repository has no admin endpoint."""
        self.check({0})


class WithoutListenersTestCase(ListenersTestCase):
    """A federation sender that listens nowhere."""

    app = GenericWorkerServer
    listeners = []

    def test_builds_nothing(self) -> None:
        """Where the admin API is not served, not one servlet of it is made."""
        register = mock.Mock()
        AdminResource(self.hs, register)
        register.assert_not_called()


class SharedTagTestCase(ListenersTestCase):
    """Listeners that share a tag are told apart by their address, or not served."""

    listeners = [
        listener(8008, "client", tag="same"),
        listener(8448, "federation", tag="same"),
        listener(8009, "client", bind_addresses=["127.0.0.1"]),
        listener(8009, "federation", bind_addresses=["127.0.0.2"]),
        listener(8010, "client", bind_addresses=["localhost", "2001:db8::1"]),
        listener(8010, "federation", bind_addresses=["127.0.0.2", "::2"]),
        listener(8011, "client", bind_addresses=["0.0.0.0"], tag="any"),
        listener(8012, "federation", bind_addresses=["::"], tag="any"),
        unix_listener("/run/client.sock", "client"),
        unix_listener("/run/federation.sock", "federation"),
    ]

    def test_told_apart(self) -> None:
        """By port, by address where the port is the same, and Unix sockets by path."""
        for tag, host, port, is_served in (
            ("same", "127.0.0.1", 8008, True),
            ("same", "127.0.0.1", 8448, False),
            ("same", "127.0.0.1", 1234, False),
            ("8009", "127.0.0.1", 8009, True),
            ("8009", "127.0.0.2", 8009, False),
            ("8009", "127.0.0.3", 8009, False),
            ("8010", "127.0.0.1", 8010, True),
            ("8010", "::1", 8010, True),
            ("8010", "2001:db8::1", 8010, True),
            ("8010", "::2", 8010, False),
            ("any", "192.0.2.1", 8011, True),
            ("any", "192.0.2.1", 8012, False),
            ("unix", "/run/client.sock", None, True),
            ("unix", "/run/federation.sock", None, False),
            ("unix", "/run/other.sock", None, False),
        ):
            address = (
                UNIXAddress(host.encode())
                if port is None
                else mock.Mock(host=host, port=port)
            )
            request = mock.Mock(
                synapse_site=mock.Mock(site_tag=tag), getHost=lambda a=address: a
            )
            routes = routes_of(self.mounted.routes_for(request))
            self.assertEqual(bool(routes), is_served, (tag, host, port))


class ModuleBelowTestCase(ListenersTestCase):
    """Another module has a path below ours."""

    listeners = [listener(1, "client"), listener(2, "client")]

    def test_every_listener_opens(self) -> None:
        """Every listener opens, and serves the admin API."""
        self.hs.get_module_api().register_web_resource(
            "/_synapse/admin/v1/other", Resource()
        )
        self.assertEqual([self.status(site) for site in self.open()], [401, 401])


class OtherModuleTestCase(HomeserverTestCase):
    """Two modules that want the same path."""

    def test_path_is_taken(self) -> None:
        """If another module has the path, Synapse starts, and the log says so.

        Another may also be the same, twice: nothing is begun a second time.
        """
        api = self.hs.get_module_api()
        other = Resource()
        api.register_web_resource("/_synapse/admin", other)
        with self.assertLogs("synapse_federation_admin", "ERROR") as logs:
            FederationAdmin(FederationAdmin.parse_config({}), api)
        self.assertIn("only once", "".join(logs.output))
        self.assertIs(self.hs._module_web_resources["/_synapse/admin"], other)
        self.assertEqual(self.hs.get_datastores().main.external_cached_functions, {})
