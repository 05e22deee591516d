# SPDX-License-Identifier: Apache-2.0
"""The one room that touches what Synapse keeps private.

Everything else in this package reaches Synapse through `synapse.module_api` or through
this room, so that a Synapse upgrade is a review of it.
"""

from synapse.api.errors import (
    FederationDeniedError,
    HttpResponseException,
    LimitExceededError,
    RequestSendFailed,
)
from synapse.http.client import BodyExceededMaxSize
from synapse.http.server import HttpServer, finish_request, set_cors_headers
from synapse.http.servlet import RestServlet
from synapse.logging.context import run_in_background
from synapse.module_api import (
    JsonDict,
    LoggingTransaction,
    Requester,
    SynapseRequest,
    make_deferred_yieldable,
)
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.homeserver.homeserver import BeforeReset, Homeserver
from synapse_federation_admin.homeserver.network import UntrustedCertificateError
from synapse_federation_admin.homeserver.outbound import FederationRequests, Outbound
from synapse_federation_admin.homeserver.pending import Pending
from synapse_federation_admin.homeserver.traffic import led_to_blocked_addresses

__all__ = [
    "BeforeReset",
    "BodyExceededMaxSize",
    "Codes",
    "FederationDeniedError",
    "FederationRequests",
    "Homeserver",
    "HttpResponseException",
    "HttpServer",
    "JsonDict",
    "LimitExceededError",
    "LoggingTransaction",
    "Outbound",
    "Pending",
    "RequestSendFailed",
    "Requester",
    "RestServlet",
    "SynapseError",
    "SynapseRequest",
    "UntrustedCertificateError",
    "finish_request",
    "led_to_blocked_addresses",
    "make_deferred_yieldable",
    "run_in_background",
    "set_cors_headers",
]
