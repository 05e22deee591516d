# SPDX-License-Identifier: Apache-2.0
"""The HTTP API: its routes, and what answers there."""

from importlib import import_module

import attr

from synapse_federation_admin.api._base import AdminServlet, OffServlet, Services
from synapse_federation_admin.homeserver.features import Feature
from synapse_federation_admin.homeserver.servlets import HttpServer

__all__ = ["ENDPOINTS", "ROUTES", "Api", "Endpoint", "Route", "Services", "servlets"]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Endpoint:
    """A path, and what answers there.

    Attributes:
        feature: What it belongs to.
        methods: Its methods: `GET DELETE`.
        path: The path from the API version on, with the names of parameters in angle
            brackets: `/v1/federation/destinations/<destination>`.
        servlet: Where the servlet is: `v1_destinations.DestinationServlet`. It is
            imported only while the feature is on.
    """

    feature: Feature
    methods: str
    path: str
    servlet: str

    @property
    def is_v1(self) -> bool:
        """Whether it is one that Synapse documents, and has servlets for."""
        return self.path.startswith("/v1/")

    @property
    def needs(self) -> tuple[Feature, ...]:
        """The features without which it does not answer."""
        of_v2 = () if self.is_v1 else (Feature.V2,)
        return (Feature.BASE, *of_v2, self.feature)

    def load(self) -> type[AdminServlet]:
        """Import the servlet."""
        module, _, name = self.servlet.partition(".")
        found: type[AdminServlet] = getattr(
            import_module(f"synapse_federation_admin.api.{module}"), name
        )
        found.PATH = self.path
        return found


_F = Feature
_V1 = "/v1/federation/destinations"
_V2 = "/v2/federation/destinations"

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(_F.V1_LISTS, "GET", _V1, "v1_destinations.DestinationsServlet"),
    Endpoint(
        *(_F.V1_LISTS, "GET", f"{_V1}/<destination>"),
        "v1_destinations.DestinationServlet",
    ),
    Endpoint(
        *(_F.V1_LISTS, "GET", f"{_V1}/<destination>/rooms"),
        "v1_destinations.DestinationRoomsServlet",
    ),
    Endpoint(
        *(_F.V1_RESET, "POST", f"{_V1}/<destination>/reset_connection"),
        "v1_reset_connection.ResetConnectionServlet",
    ),
    Endpoint(_F.LISTS, "GET", _V2, "v2_destinations.DestinationsV2Servlet"),
    # Before the one of a destination: that would match, too.
    Endpoint(_F.LISTS, "GET", f"{_V2}/export", "export.ExportServlet"),
    Endpoint(
        *(_F.LISTS, "GET", f"{_V2}/<destination>"),
        "v2_destinations.DestinationV2Servlet",
    ),
    Endpoint(_F.LISTS, "GET", "/v2/federation/summary", "summary.SummaryServlet"),
    Endpoint(
        *(_F.RECONNECT, "POST", f"{_V2}/<destination>/reconnect"),
        "reconnect.ReconnectServlet",
    ),
    Endpoint(
        *(_F.RUNS, "POST", "/v2/federation/reconnect"),
        "reconnect_many.ReconnectManyServlet",
    ),
    Endpoint(_F.RUNS, "GET", "/v2/federation/runs", "runs.RunsServlet"),
    Endpoint(_F.RUNS, "GET DELETE", "/v2/federation/runs/<run_id>", "runs.RunServlet"),
    Endpoint(_F.RUNS, "POST", f"{_V2}/<destination>/forget", "forget.ForgetServlet"),
    Endpoint(_F.RUNS, "POST", "/v2/federation/forget", "forget.ForgetManyServlet"),
    Endpoint(
        *(_F.RUNS, "POST", "/v2/federation/cap_backoff"),
        "cap_backoff.CapBackoffServlet",
    ),
    Endpoint(_F.AUDIT, "GET", "/v2/federation/audit", "audit.AuditServlet"),
    Endpoint(
        *(_F.DIAGNOSIS, "POST", f"{_V2}/<destination>/diagnose"),
        "diagnose.DiagnoseServlet",
    ),
    Endpoint(
        *(_F.HISTORY, "GET", f"{_V2}/<destination>/outages"), "outages.OutagesServlet"
    ),
    Endpoint(_F.V2, "GET", "/v2/federation/status", "status.StatusServlet"),
    Endpoint(_F.V2, "GET", "/v2/federation/openapi.json", "_openapi.OpenApiServlet"),
)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Route:
    """A method and a path: `GET`, `/_synapse/admin/v1/federation/destinations`."""

    method: str
    path: str


ROUTES: tuple[Route, ...] = tuple(
    Route(method, "/_synapse/admin" + endpoint.path)
    for endpoint in ENDPOINTS
    for method in endpoint.methods.split()
)


def servlets() -> tuple[type[AdminServlet], ...]:
    """Import all servlets, whatever is on."""
    return tuple(endpoint.load() for endpoint in ENDPOINTS)


class Api:
    """Registers what answers at each path.

    Where a feature is off, v1 is left to Synapse's own servlets, and v2 says why.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._servlets: dict[str, AdminServlet] = {}

    def register(self, http_server: HttpServer) -> None:
        """Register all servlets."""
        features = self._services.features
        for endpoint in ENDPOINTS:
            if all(map(features.is_on, endpoint.needs)):
                try:
                    self._make(endpoint)
                except Exception as e:
                    features.switch_off(endpoint.feature, e)
        for endpoint in ENDPOINTS:
            if all(map(features.is_on, endpoint.needs)):
                self._servlets[endpoint.path].register(http_server)
            elif not endpoint.is_v1:
                off = OffServlet(self._services, endpoint.path, endpoint.needs)
                off.register(http_server)

    def _make(self, endpoint: Endpoint) -> None:
        if endpoint.path not in self._servlets:
            self._servlets[endpoint.path] = endpoint.load()(self._services)
