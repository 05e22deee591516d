# SPDX-License-Identifier: Apache-2.0
"""v2: shorten backoffs that are longer than a given time."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import AdminServlet, actor
from synapse_federation_admin.api._body import Body
from synapse_federation_admin.api._parameters import require_known
from synapse_federation_admin.api.runs import start_run
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.repair.cap_backoff import CapBackoff
from synapse_federation_admin.storage.run_values import RunOrder

# As much as any clock of ms needs; within the 64 bits of both databases.
_MOST_MS = 10**15


class CapBackoffServlet(AdminServlet):
    """Shorten stored backoffs that are longer than a given time.

    POST /_synapse/admin/v2/federation/cap_backoff

    Body; only the first key is required, and any other is an error:

        {
            "max_retry_interval_ms": 86400000,
            "dry_run": false,
            "reason": "We lowered destination_max_retry_interval"
        }

    200 OK: the run, as `GET` of its ID has it; with `dry_run`

        {"dry_run": true, "matched": 12, "sample": ["matrix.example.org"]}

    and nothing is changed. `matched` destinations have a longer backoff.

    Errors: 409 `M_UNKNOWN` if a run that caps backoffs has not ended, whose ID is in
    `id`; 400 `M_NOT_JSON`, `M_BAD_JSON`, `M_INVALID_PARAM`, 401, 403.
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
            matched, sample = await services.cap_backoff.preview(longest_ms)
            return HTTPStatus.OK, {
                "dry_run": True,
                "matched": matched,
                "sample": sample,
            }
        order = RunOrder(
            CapBackoff.name,
            criteria.shown(criteria.ALL_FAILING),
            {"max_retry_interval_ms": longest_ms},
            (),
            actor(requester),
            reason,
        )
        return await start_run(services, order)
