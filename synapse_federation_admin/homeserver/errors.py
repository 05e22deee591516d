# SPDX-License-Identifier: Apache-2.0
"""What Synapse's federation client raises."""

from synapse.api.errors import (
    FederationDeniedError,
    HttpResponseException,
    LimitExceededError,
    RequestSendFailed,
)
from synapse.http.client import BodyExceededMaxSize
from synapse.http.connectproxyclient import ProxyConnectError
from synapse.util.retryutils import NotRetryingDestination

__all__ = [
    "BodyExceededMaxSize",
    "FederationDeniedError",
    "HttpResponseException",
    "LimitExceededError",
    "NotRetryingDestination",
    "ProxyConnectError",
    "RequestSendFailed",
]
