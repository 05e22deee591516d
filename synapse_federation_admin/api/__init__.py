# SPDX-License-Identifier: Apache-2.0
"""The HTTP API: its routes, and how they are mounted."""

import attr

from synapse_federation_admin.api._base import AdminServlet, Services
from synapse_federation_admin.api._openapi import OpenApiServlet
from synapse_federation_admin.api.audit import AuditServlet
from synapse_federation_admin.api.cap_backoff import ClampServlet
from synapse_federation_admin.api.diagnose import DiagnoseServlet
from synapse_federation_admin.api.export import ExportServlet
from synapse_federation_admin.api.forget import ForgetManyServlet, ForgetServlet
from synapse_federation_admin.api.outages import OutagesServlet
from synapse_federation_admin.api.reconnect import ReconnectServlet
from synapse_federation_admin.api.reconnects import (
    ReconnectsRunServlet,
    ReconnectsServlet,
)
from synapse_federation_admin.api.summary import SummaryServlet
from synapse_federation_admin.api.v1_destinations import (
    DestinationRoomsServlet,
    DestinationServlet,
    DestinationsServlet,
)
from synapse_federation_admin.api.v1_reset_connection import ResetConnectionServlet
from synapse_federation_admin.api.v2_destinations import (
    DestinationsV2Servlet,
    DestinationV2Servlet,
)
from synapse_federation_admin.homeserver.servlets import HttpServer

__all__ = ["ROUTES", "SERVLETS", "Route", "Services", "mount"]

SERVLETS: tuple[type[AdminServlet], ...] = (
    DestinationsServlet,
    DestinationServlet,
    DestinationRoomsServlet,
    ResetConnectionServlet,
    DestinationsV2Servlet,
    # Before the one of a destination: that would match, too.
    ExportServlet,
    DestinationV2Servlet,
    SummaryServlet,
    ReconnectServlet,
    ReconnectsServlet,
    ReconnectsRunServlet,
    ClampServlet,
    ForgetServlet,
    ForgetManyServlet,
    AuditServlet,
    DiagnoseServlet,
    OutagesServlet,
    OpenApiServlet,
)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Route:
    """A method and a path: `GET`, `/_synapse/admin/v1/federation/destinations`."""

    method: str
    path: str


ROUTES: tuple[Route, ...] = tuple(
    Route(method, "/_synapse/admin" + servlet.PATH)
    for servlet in SERVLETS
    for method in ("GET", "PUT", "POST", "DELETE")
    if hasattr(servlet, f"on_{method}")
)


def mount(services: Services) -> None:
    """Serve every route, on every listener that carries Synapse's admin API."""
    servlets = [servlet(services) for servlet in SERVLETS]

    def register(http_server: HttpServer) -> None:
        for servlet in servlets:
            servlet.register(http_server)

    services.homeserver.mount_admin(register)
