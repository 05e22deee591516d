# SPDX-License-Identifier: Apache-2.0
"""v2: remove what is kept of servers that are gone for good."""

from http import HTTPStatus
from urllib.parse import quote

from pydantic import Field, model_validator
from synapse.module_api import JsonDict
from synapse.module_api.errors import Codes, SynapseError
from typing_extensions import Self

from synapse_federation_admin import limits
from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._render import render_row
from synapse_federation_admin.api.reconnect_many import usable_of
from synapse_federation_admin.api.runs import (
    CONFLICT,
    Chosen,
    Run,
    RunPreview,
    start_run,
)
from synapse_federation_admin.api.schemas.destinations import ChangeFilter, Destination
from synapse_federation_admin.api.schemas.model import Answer, Input, Reason
from synapse_federation_admin.api.schemas.values import Shown, shown
from synapse_federation_admin.api.v2_destinations import require_known
from synapse_federation_admin.destinations.shared_rooms import SharedRoom
from synapse_federation_admin.repair.forget import shown_loss
from synapse_federation_admin.repair.forget_many import ForgetMany


class ForgetBody(Input):
    """How to forget a destination."""

    dry_run: bool = Field(
        default=True, description="Tell what would be lost, and change nothing."
    )
    drop_to_device: bool = Field(
        default=False,
        description="Delete the to-device messages that wait, too. Encrypted "
        "conversations depend on them: if the destination should come back, it could "
        "not read what it was sent.",
    )
    reason: Reason = ""


class ForgetManyBody(ForgetBody):
    """Which destinations to forget, and how."""

    destinations: list[str] | None = Field(
        default=None, description="The server names.", max_length=limits.NAMES_OF_A_RUN
    )
    filter: ChangeFilter | None = Field(
        default=None,
        description="Those that a filter keeps, as in the list. `failing_for` must be "
        "at least `30d`, unless there is `force`.",
    )
    force: bool = Field(default=False, description="Take any filter.")
    ignore_unknown: bool = Field(
        default=False,
        description="Leave out the names of the list that Synapse has no row for, or "
        "that are longer than a server name can be; `ignored` has their numbers.",
    )

    @model_validator(mode="after")
    def _require_dead(self) -> Self:
        """Refuse what may well be alive, where nobody has said which they are."""
        if (self.destinations is None) == (self.filter is None):
            raise ValueError(
                "One of the keys 'destinations' and 'filter' is needed, and only one"
            )
        if self.filter is None or self.force:
            return self
        if (self.filter.failing_for or 0) < limits.DEAD_FOR_MS:
            raise ValueError(
                "Key 'filter.failing_for' must be at least 30d, unless 'force' is true"
            )
        return self


class Lost(Answer):
    """What was waiting and is gone, or would be."""

    rooms: int = Field(description="Rooms with an event that it has not got.")
    to_device_messages: int = Field(description="To-device messages.")
    device_list_updates: int = Field(description="Changes of local users' devices.")


class Kept(Answer):
    """What still waits after a destination was forgotten."""

    to_device_messages: int = Field(
        description="To-device messages. While there are any, Synapse goes on trying "
        "to send them, and the row comes back with the first failure."
    )


class ForgottenDestination(Answer):
    """What came of forgetting one destination."""

    dry_run: bool = Field(description="Whether nothing was changed, as asked for.")
    forgotten: bool = Field(description="Whether it is gone.")
    destination: Destination = Field(description="The destination as it was.")
    lost: Lost = Field(description="What was lost, or would be.")
    kept: Kept = Field(description="What still waits, or would.")
    shared_rooms: int = Field(description="Rooms that local users share with it.")
    shared_rooms_sample: list[Shown[SharedRoom]] = Field(
        description="Some of them, as in their list."
    )
    refused: str | None = Field(
        description="In a dry run, why it would be refused; null if it would not."
    )


class RefusedDestination(Answer):
    """A destination that would not be forgotten."""

    destination: str = Field(description="The server name.")
    shared_rooms: int = Field(description="Rooms that local users share with it.")


class ForgetPreview(RunPreview):
    """What a run would forget: the answer to a dry run."""

    forgotten: int = Field(description="How many would be forgotten.")
    refused: int = Field(
        description="How many would not: local users share rooms with them."
    )
    lost: Lost = Field(description="What would be lost.")
    kept: Kept = Field(description="What would still wait.")
    refused_sample: list[RefusedDestination] = Field(description="Some of the refused.")


@operation(
    ForgetBody,
    ForgottenDestination,
    errors={
        400: "Local users share rooms with it: `shared_rooms`; some of them are "
        "`shared_rooms_sample`, and all of them at `shared_rooms_path` (`M_UNKNOWN`).",
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
            "shared_rooms_sample": [],
            "refused": null
        }

    `lost` is what is or would be gone, `kept` what still waits or would: to-device
    messages, unless `drop_to_device` is true.
    """
    services = asked.services
    await require_known(services, destination)
    found = await services.forget.forget(
        destination,
        asked.actor,
        dry_run=body.dry_run,
        drop_to_device=body.drop_to_device,
        reason=body.reason or None,
    )
    if found.refused and not body.dry_run:
        raise SynapseError(
            HTTPStatus.BAD_REQUEST if found.shared_rooms else HTTPStatus.CONFLICT,
            found.refused,
            Codes.UNKNOWN,
            additional_fields={
                "shared_rooms": found.shared_rooms,
                "shared_rooms_sample": shown(found.sample),
                "shared_rooms_path": "/_synapse/admin/v2/federation/destinations/"
                f"{quote(destination, safe='')}/shared_rooms",
            },
        )
    return {
        "dry_run": body.dry_run,
        "forgotten": not body.dry_run,
        "destination": render_row(services.homeserver, found.destination),
        **shown_loss(found.loss),
        "shared_rooms": found.shared_rooms,
        "shared_rooms_sample": shown(found.sample),
        "refused": found.refused,
    }


@operation(
    ForgetManyBody,
    Run,
    gives_dry=ForgetPreview,
    errors={
        400: "`destinations` has names that Synapse has no row for, or that are too "
        "long: some are in `unknown` and `invalid` (`M_INVALID_PARAM`).",
        **CONFLICT,
    },
    body_bytes=limits.NAMES_BODY_BYTES,
)
async def forget_many(asked: Asked, body: ForgetManyBody) -> JsonDict:
    """Remove what Synapse keeps of the destinations of a list, or of a filter.

    POST /_synapse/admin/v2/federation/forget

    Body: one of `destinations` and `filter`, and how. A dry run is the default:

        {
            "destinations": ["gone.example.org"],
            "filter": {"failing_for": "12w", "destination": "*.example.org"},
            "force": false,
            "ignore_unknown": false,
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
    services = asked.services
    chosen: Chosen | None = body.filter.wanted if body.filter else None
    ignored: JsonDict = {}
    if chosen is None:
        chosen, ignored = await usable_of(
            services,
            body.destinations or (),
            # What bears no server name can be, too.
            lambda name: len(name) <= limits.SERVER_NAME,
            body.ignore_unknown,
            "cannot be forgotten",
        )
    how = {"drop_to_device": body.drop_to_device}
    if not body.dry_run:
        run = await start_run(asked, ForgetMany.name, chosen, how, body.reason)
        return {**run, **ignored}
    found = await services.forget_many.preview(chosen, **how)
    return {
        **ignored,
        "dry_run": True,
        "matched": found.forgotten + found.refused,
        "forgotten": found.forgotten,
        "refused": found.refused,
        **shown_loss(found.loss),
        "sample": list(found.sample),
        "refused_sample": [
            {"destination": name, "shared_rooms": count}
            for name, count in found.refused_sample
        ],
    }
