# SPDX-License-Identifier: Apache-2.0
"""Who makes a request."""

from synapse.module_api import Requester, SynapseRequest
from synapse.rest.admin._base import assert_user_is_admin

from synapse_federation_admin.homeserver._synapse import Synapse


class Requests(Synapse):
    """The admin check."""

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
