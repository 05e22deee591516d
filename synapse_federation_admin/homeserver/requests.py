# SPDX-License-Identifier: Apache-2.0
"""Requests to this homeserver: who makes them, and where they are answered."""

from collections.abc import Callable

from synapse.http.server import HttpServer
from synapse.module_api import Requester, SynapseRequest
from synapse.module_api.errors import ConfigError
from synapse.rest.admin._base import assert_user_is_admin

from synapse_federation_admin.homeserver._synapse import Synapse
from synapse_federation_admin.homeserver.admin_resource import AdminResource

ADMIN_PATH = "/_synapse/admin"


class Requests(Synapse):
    """The admin check, and the place of the admin API."""

    async def require_admin(self, request: SynapseRequest) -> Requester:
        """Return who makes a request, a server admin.

        Synapse's own check, which also holds where accounts are delegated to an
        authentication service (`synapse/rest/admin/_base.py`).

        Raises:
            SynapseError: 401 without a valid access token, 403 if the user is no admin.
        """
        auth = self._hs.get_auth()
        requester = await auth.get_user_by_req(request)
        await assert_user_is_admin(auth, requester)
        return requester

    def mount_admin(self, register: Callable[[HttpServer], None]) -> None:
        """Serve Synapse's admin API at its path, with servlets of ours before its own.

        Args:
            register: Registers our servlets. Where Synapse has one of the same pattern
                and method, ours answers.

        Raises:
            ConfigError: Another module has registered a resource at the path.
        """
        resource = AdminResource(self._hs, register)
        self._api.register_web_resource(ADMIN_PATH, resource)
        # Synapse keeps the first module's resource, and only logs that it does.
        if self._hs._module_web_resources.get(ADMIN_PATH) is not resource:
            raise ConfigError(
                f"a module already serves {ADMIN_PATH}: synapse_federation_admin."
                "FederationAdmin must be in `modules` only once, and before any other "
                "module that serves that path",
                path=("modules",),
            )
