# SPDX-License-Identifier: Apache-2.0
"""What servlets are made of."""

from synapse.http.server import HttpServer
from synapse.http.servlet import RestServlet
from synapse.module_api import Requester

__all__ = ["HttpServer", "Requester", "RestServlet"]
