# SPDX-License-Identifier: Apache-2.0
"""v2: remove what is kept of servers that are gone for good."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.api._base import AdminServlet, actor, unknown_destination
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api.runs import CONFLICT, start_run
from synapse_federation_admin.api.schemas.destinations import Destination
from synapse_federation_admin.api.schemas.runs import (
    ForgetBody,
    ForgetManyBody,
    ForgetPreview,
    ForgottenDestination,
    Kept,
    Lost,
    RefusedDestination,
    Run,
)
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.repair.forget_many import ForgetMany
from synapse_federation_admin.storage.run_values import RunOrder


class ForgetServlet(AdminServlet):
    """Remove what Synapse keeps of one destination.

    POST /_synapse/admin/v2/federation/destinations/<destination>/forget

    Body, all keys optional. A dry run is the default:

        {"dry_run": true, "drop_to_device": false, "reason": "It is gone for good"}

    200 OK

        {
            "dry_run": true,
            "forgotten": false,
            "destination": {...},
            "lost": {"rooms": 3, "to_device_messages": 0, "device_list_updates": 5},
            "kept": {"to_device_messages": 2},
            "shared_rooms": 0,
            "refused": null
        }

    `lost` is what is or would be gone, `kept` what still waits or would: to-device
    messages, unless `drop_to_device` is true.
    """

    POST = Operation(
        ForgetBody,
        ForgottenDestination,
        errors={
            400: "Local users share rooms with it: `shared_rooms` (`M_UNKNOWN`).",
            404: "Synapse knows nothing of the destination.",
            409: "Something was sent to it or failed meanwhile: nothing has changed "
            "(`M_UNKNOWN`).",
        },
    )

    async def on_POST(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        requester = await services.homeserver.require_admin(request)
        body = self.POST.parse(request)
        found = await services.forget.forget(
            destination,
            actor(requester),
            dry_run=body.dry_run,
            drop_to_device=body.drop_to_device,
            reason=body.reason or None,
        )
        if found is None:
            raise unknown_destination()
        if found.refused and not body.dry_run:
            status = HTTPStatus.CONFLICT if found.changed else HTTPStatus.BAD_REQUEST
            raise SynapseError(
                status,
                found.refused,
                Codes.UNKNOWN,
                additional_fields={"shared_rooms": found.shared_rooms},
            )
        now_ms = services.homeserver.now_ms()
        allowed = services.homeserver.is_allowed(destination)
        answer = ForgottenDestination(
            dry_run=body.dry_run,
            forgotten=found.forgotten,
            destination=Destination.of(found.destination, now_ms, allowed=allowed),
            lost=Lost.of(found.waiting),
            kept=Kept(to_device_messages=found.waiting.kept_messages),
            shared_rooms=found.shared_rooms,
            refused=found.refused,
        )
        return HTTPStatus.OK, answer.rendered()


class ForgetManyServlet(AdminServlet):
    """Remove what Synapse keeps of the destinations that a filter keeps.

    POST /_synapse/admin/v2/federation/forget

    Body; `filter` is required. A dry run is the default:

        {
            "filter": {"failing_for": "12w", "destination": "*.example.org"},
            "force": false,
            "dry_run": true,
            "drop_to_device": false,
            "reason": "Gone for good"
        }

    200 OK: the run, as `GET` of its ID has it; after a dry run

        {
            "dry_run": true,
            "matched": 120,
            "forgotten": 118,
            "refused": 2,
            "lost": {"rooms": 3, "to_device_messages": 0, "device_list_updates": 5},
            "kept": {"to_device_messages": 2},
            "sample": ["gone.example.org"],
            "refused_sample": [{"destination": "here.example.org", "shared_rooms": 1}]
        }

    and nothing is changed. Refused are those with which local users share rooms, and in
    the run also those for which something changed meanwhile.
    """

    POST = Operation(ForgetManyBody, Run, ForgetPreview, CONFLICT)

    async def on_POST(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        requester = await services.homeserver.require_admin(request)
        body = self.POST.parse(request)
        wanted, drop_to_device = body.filter.wanted, body.drop_to_device
        if not body.dry_run:
            order = RunOrder(
                ForgetMany.name,
                criteria.shown(wanted),
                {"drop_to_device": drop_to_device},
                (),
                actor(requester),
                body.reason or None,
            )
            return await start_run(services, order)
        found = await services.forget_many.preview(
            wanted, drop_to_device=drop_to_device
        )
        preview = ForgetPreview(
            dry_run=True,
            matched=found.matched,
            forgotten=found.forgotten,
            refused=found.refused,
            lost=Lost.of(found.waiting),
            kept=Kept(to_device_messages=found.waiting.kept_messages),
            sample=list(found.sample),
            refused_sample=[
                RefusedDestination(destination=name, shared_rooms=count)
                for name, count in found.refused_sample
            ],
        )
        return HTTPStatus.OK, preview.rendered()
