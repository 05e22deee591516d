# SPDX-License-Identifier: Apache-2.0
"""What an answer that is written piece by piece is made of."""

from synapse.http.server import finish_request, set_cors_headers

__all__ = ["finish_request", "set_cors_headers"]
