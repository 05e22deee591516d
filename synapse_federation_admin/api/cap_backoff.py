# SPDX-License-Identifier: Apache-2.0
"""v2: shorten backoffs that are longer than a given time."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import AdminServlet, actor
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api.runs import CONFLICT, start_run
from synapse_federation_admin.api.schemas.runs import CapBackoffBody, Run, RunPreview
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.repair.cap_backoff import CapBackoff
from synapse_federation_admin.storage.run_values import RunOrder


class CapBackoffServlet(AdminServlet):
    """Shorten stored backoffs that are longer than a given time.

    POST /_synapse/admin/v2/federation/cap_backoff

    Body; only the first key is required:

        {
            "max_retry_interval_ms": 86400000,
            "dry_run": false,
            "reason": "We lowered destination_max_retry_interval"
        }

    200 OK: the run, as `GET` of its ID has it; with `dry_run`

        {"dry_run": true, "matched": 12, "sample": ["matrix.example.org"]}

    and nothing is changed. `matched` destinations have a longer backoff.
    """

    POST = Operation(CapBackoffBody, Run, RunPreview, CONFLICT)

    async def on_POST(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        requester = await services.homeserver.require_admin(request)
        body = self.POST.parse(request)
        longest_ms = body.max_retry_interval_ms
        if body.dry_run:
            matched, sample = await services.cap_backoff.preview(longest_ms)
            found = RunPreview(dry_run=True, matched=matched, sample=list(sample))
            return HTTPStatus.OK, found.rendered()
        order = RunOrder(
            CapBackoff.name,
            criteria.shown(criteria.ALL_FAILING),
            {"max_retry_interval_ms": longest_ms},
            (),
            actor(requester),
            body.reason or None,
        )
        return await start_run(services, order)
