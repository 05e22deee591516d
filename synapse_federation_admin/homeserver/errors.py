# SPDX-License-Identifier: Apache-2.0
"""What Synapse's federation client raises."""

from synapse.api.errors import (
    FederationDeniedError,
    HttpResponseException,
    LimitExceededError,
    RequestSendFailed,
)
from synapse.http.client import BodyExceededMaxSize

__all__ = [
    "BodyExceededMaxSize",
    "FederationDeniedError",
    "HttpResponseException",
    "LimitExceededError",
    "RequestSendFailed",
]
