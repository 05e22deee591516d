# SPDX-License-Identifier: Apache-2.0
"""Signing in and out, in this process and by Synapse's own servlets.

They are those of `/_matrix/client/v3/login` and `/logout`, with their checks and rate
limits, so that what this homeserver refuses there is refused here.
"""

import hmac
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any

from synapse.module_api import JsonDict, ModuleApi, SynapseRequest
from synapse.rest.client.login import LoginRestServlet
from synapse.rest.client.logout import LogoutRestServlet

if TYPE_CHECKING:
    from synapse.server import HomeServer


class Sessions:
    """Makes and ends access tokens of this homeserver."""

    def __init__(self, api: ModuleApi) -> None:
        self._hs: HomeServer = api._hs

    def secret(self, purpose: str) -> bytes:
        """Return a secret that all processes of this homeserver share.

        Args:
            purpose: What it is for; each purpose has its own.
        """
        key = self._hs.config.key.macaroon_secret_key
        return hmac.digest(key, purpose.encode(), "sha256")

    @cached_property
    def _login(self) -> LoginRestServlet:
        return LoginRestServlet(self._hs)

    def login_flows(self, request: SynapseRequest) -> Sequence[JsonDict]:
        """Return the ways to sign in that this homeserver announces itself."""
        _, answer = self._login.on_GET(request)
        flows: Sequence[JsonDict] = answer["flows"]
        return flows

    async def log_in(
        self, request: SynapseRequest, body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Sign somebody in, by the body of `POST /_matrix/client/v3/login`.

        Raises:
            SynapseError: As that is answered: 403 for a wrong password, 429.
        """
        request.content = BytesIO(json.dumps(body).encode())
        _, answer = await self._login.on_POST(request)
        found: Mapping[str, Any] = dict(answer)
        return found

    async def log_out(self, request: SynapseRequest) -> None:
        """End the access token that a request brings.

        Raises:
            SynapseError: 401 if it has ended already.
        """
        await LogoutRestServlet(self._hs).on_POST(request)
