# SPDX-License-Identifier: Apache-2.0
"""v2: remove what is kept of servers that are gone for good."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.api._base import (
    AdminServlet,
    actor,
    invalid_param,
    unknown_destination,
)
from synapse_federation_admin.api._body import Body
from synapse_federation_admin.api._filter import parse_filter_object
from synapse_federation_admin.api._parameters import require_known
from synapse_federation_admin.api._render import render_v2
from synapse_federation_admin.api.runs import start_run
from synapse_federation_admin.destinations.values import DestinationFilter
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.repair.forget_many import ForgetMany
from synapse_federation_admin.storage.run_values import RunOrder

# For how long it has been failing what a filter forgets without `force`.
_DEAD_FOR_MS = 30 * 86_400_000

_KEYS = ("dry_run", "drop_to_device", "reason")


class ForgetServlet(AdminServlet):
    """Remove what Synapse keeps of one destination.

    POST /_synapse/admin/v2/federation/destinations/<destination>/forget

    Body, all keys optional, any other is an error. A dry run is the default:

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
    messages, unless `drop_to_device` is true. In a dry run, `refused` tells why it
    would be refused.

    Errors: 400 `M_UNKNOWN` while local users share rooms with it, 409 `M_UNKNOWN` if
    something was sent to it or failed meanwhile, 404 `M_NOT_FOUND` if Synapse knows
    nothing of it, 400 `M_NOT_JSON`, `M_BAD_JSON`, `M_INVALID_PARAM`, 401, 403, 500
    `M_UNKNOWN` if the database fails. Nothing has changed then.
    """

    async def on_POST(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        requester = await services.homeserver.require_admin(request)
        require_known(request, ())
        body = Body.parse(request, _KEYS)
        dry_run = body.flag("dry_run", default=True)
        found = await services.forget.forget(
            destination,
            actor(requester),
            dry_run=dry_run,
            drop_to_device=body.flag("drop_to_device"),
            reason=body.reason(),
        )
        if found is None:
            raise unknown_destination()
        if found.refused and not dry_run:
            status = HTTPStatus.CONFLICT if found.changed else HTTPStatus.BAD_REQUEST
            raise SynapseError(
                status,
                found.refused,
                Codes.UNKNOWN,
                additional_fields={"shared_rooms": found.shared_rooms},
            )
        return HTTPStatus.OK, {
            "dry_run": dry_run,
            "forgotten": found.forgotten,
            "destination": render_v2(
                found.destination,
                services.homeserver.now_ms(),
                allowed=services.homeserver.is_allowed(destination),
            ),
            **found.waiting.shown(),
            "shared_rooms": found.shared_rooms,
            "refused": found.refused,
        }


class ForgetManyServlet(AdminServlet):
    """Remove what Synapse keeps of the destinations that a filter keeps.

    POST /_synapse/admin/v2/federation/forget

    Body; `filter` is required, and any other key is an error. A dry run is the default:

        {
            "filter": {"failing_for": "12w", "destination": "*.example.org"},
            "force": false,
            "dry_run": true,
            "drop_to_device": false,
            "reason": "Gone for good"
        }

    The filter's `failing_for` must be at least 30 days, unless `force` is true.

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

    Errors: 409 `M_UNKNOWN` if a run that forgets has not ended, whose ID is in `id`;
    400 `M_NOT_JSON`, `M_BAD_JSON`, `M_INVALID_PARAM`, 401, 403.
    """

    async def on_POST(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        requester = await services.homeserver.require_admin(request)
        require_known(request, ())
        body = Body.parse(request, ("filter", "force", *_KEYS))
        wanted = _parse_wanted(body)
        dry_run = body.flag("dry_run", default=True)
        drop_to_device, reason = body.flag("drop_to_device"), body.reason()
        if not dry_run:
            order = RunOrder(
                ForgetMany.name,
                criteria.shown(wanted),
                {"drop_to_device": drop_to_device},
                (),
                actor(requester),
                reason,
            )
            return await start_run(services, order)
        found = await services.forget_many.preview(
            wanted, drop_to_device=drop_to_device
        )
        return HTTPStatus.OK, {
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


def _parse_wanted(body: Body) -> DestinationFilter:
    forced = body.flag("force")
    if "filter" not in body:
        raise invalid_param("Key 'filter' is required")
    wanted = parse_filter_object(body)
    if not forced and (wanted.failing_for_ms or 0) < _DEAD_FOR_MS:
        raise invalid_param(
            "Key 'filter.failing_for' must be at least 30d, unless 'force' is true"
        )
    return wanted
