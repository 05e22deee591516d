# SPDX-License-Identifier: Apache-2.0
"""v2: shorten backoffs."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import AdminServlet, actor
from synapse_federation_admin.api._body import Body
from synapse_federation_admin.api._parameters import require_known

# As much as any clock of ms needs; within the 64 bits of both databases.
_MOST_MS = 10**15


class ClampServlet(AdminServlet):
    """Shorten stored backoffs that are longer than a given time.

    POST /_synapse/admin/v2/federation/clamp

    Body; only the first key is required, and any other is an error:

        {
            "max_retry_interval_ms": 86400000,
            "dry_run": false,
            "reason": "We lowered destination_max_retry_interval"
        }

    200 OK: `matched` destinations had a longer backoff, `changed` have this one now
    (none after a dry run):

        {"dry_run": false, "matched": 12, "changed": 12}

    Errors: 400 `M_NOT_JSON`, `M_BAD_JSON`, `M_INVALID_PARAM`, 401, 403, 500 `M_UNKNOWN`
    if the database fails: what has been shortened by then stays so, and the next
    request does the rest.
    """

    async def on_POST(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        requester = await services.homeserver.require_admin(request)
        require_known(request, ())
        body = Body.parse(request, ("max_retry_interval_ms", "dry_run", "reason"))
        longest_ms = body.integer(
            "max_retry_interval_ms", default=None, least=1, most=_MOST_MS
        )
        dry_run, reason = body.flag("dry_run"), body.reason()
        if dry_run:
            matched, changed = await services.clamp.count(longest_ms), 0
        else:
            matched = changed = await services.clamp.clamp(
                longest_ms, actor(requester), reason=reason
            )
        return HTTPStatus.OK, {
            "dry_run": dry_run,
            "matched": matched,
            "changed": changed,
        }
