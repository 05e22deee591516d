# SPDX-License-Identifier: Apache-2.0
"""v2: remove what is kept of servers that are gone for good."""

from http import HTTPStatus

from synapse.module_api import JsonDict
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.api._base import Asked, unknown_destination
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._render import render_v2
from synapse_federation_admin.api.runs import CONFLICT, start_run
from synapse_federation_admin.api.schemas.runs import (
    ForgetBody,
    ForgetManyBody,
    ForgetPreview,
    ForgottenDestination,
    Run,
)
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.repair.forget_many import ForgetMany
from synapse_federation_admin.storage.run_values import RunOrder


@operation(
    ForgetBody,
    ForgottenDestination,
    errors={
        400: "Local users share rooms with it: `shared_rooms` (`M_UNKNOWN`).",
        404: "Synapse knows nothing of the destination.",
        409: "Something was sent to it or failed meanwhile: nothing has changed "
        "(`M_UNKNOWN`).",
    },
)
async def forget(asked: Asked, body: ForgetBody, destination: str) -> JsonDict:
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
    services, homeserver = asked.services, asked.services.homeserver
    found = await services.forget.forget(
        destination,
        asked.actor,
        dry_run=body.dry_run,
        drop_to_device=body.drop_to_device,
        reason=body.reason or None,
    )
    if found is None:
        raise unknown_destination()
    if found.refused and not body.dry_run:
        raise SynapseError(
            HTTPStatus.CONFLICT if found.changed else HTTPStatus.BAD_REQUEST,
            found.refused,
            Codes.UNKNOWN,
            additional_fields={"shared_rooms": found.shared_rooms},
        )
    allowed = homeserver.is_allowed(destination)
    return {
        "dry_run": body.dry_run,
        "forgotten": found.forgotten,
        "destination": render_v2(
            found.destination, homeserver.now_ms(), allowed=allowed
        ),
        **found.waiting.shown(),
        "shared_rooms": found.shared_rooms,
        "refused": found.refused,
    }


@operation(ForgetManyBody, Run, gives_dry=ForgetPreview, errors=CONFLICT)
async def forget_many(asked: Asked, body: ForgetManyBody) -> JsonDict:
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
    wanted, drop_to_device = body.filter.wanted, body.drop_to_device
    if not body.dry_run:
        order = RunOrder(
            ForgetMany.name,
            criteria.shown(wanted),
            {"drop_to_device": drop_to_device},
            (),
            asked.actor,
            body.reason or None,
        )
        return await start_run(asked, order)
    found = await asked.services.forget_many.preview(
        wanted, drop_to_device=drop_to_device
    )
    return {
        "dry_run": True,
        "matched": found.matched,
        "forgotten": found.forgotten,
        "refused": found.refused,
        **found.waiting.shown(),
        "sample": list(found.sample),
        "refused_sample": [
            {"destination": name, "shared_rooms": count}
            for name, count in found.refused_sample
        ],
    }
