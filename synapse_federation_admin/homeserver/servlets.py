# SPDX-License-Identifier: Apache-2.0
"""Where routes are registered."""

from synapse.http.server import HttpServer

__all__ = ["HttpServer"]
