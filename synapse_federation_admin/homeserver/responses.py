# SPDX-License-Identifier: Apache-2.0
"""Answers that are not the JSON of a servlet."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from synapse.http.server import (
    finish_request as finish_request,
    set_cors_headers as set_cors_headers,
)
from synapse.module_api import DirectServeHtmlResource, ModuleApi, SynapseRequest

if TYPE_CHECKING:
    from synapse.server import HomeServer

# Answers a request, whatever comes of it.
AnswerPage = Callable[[SynapseRequest], Awaitable[None]]


class PagesResource(DirectServeHtmlResource):
    """Answers requests of whatever method and path.

    Each request has its log context and its place in Synapse's metrics.
    """

    isLeaf = True

    def __init__(self, api: ModuleApi, answer: AnswerPage) -> None:
        hs: HomeServer = api._hs
        super().__init__(clock=hs.get_clock())
        self._answer = answer

    async def _async_render(self, request: SynapseRequest) -> None:
        await self._answer(request)


def respond(request: SynapseRequest, status: int, body: bytes) -> None:
    """Send an answer whose headers are set; whoever is gone gets none."""
    request.setResponseCode(status)
    request.setHeader(b"Content-Length", b"%d" % len(body))
    request.write(body)
    finish_request(request)
