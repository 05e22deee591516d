# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations in a few numbers."""

from pydantic import Field

from synapse_federation_admin.api.schemas.model import Answer, Kind
from synapse_federation_admin.api.schemas.values import model_of
from synapse_federation_admin.destinations.summary import FailureAge
from synapse_federation_admin.destinations.values import DestinationStatus, IndexState
from synapse_federation_admin.history.correlation import Correlation


class TotalBacklog(Answer):
    """What waits for all destinations; each is null while nothing is known yet."""

    as_of_ts: int | None = Field(description="When `backlog` and `unlisted` were read.")
    rooms: int | None = Field(
        description="Rooms with an event that a destination has not got: each counts "
        "once for each destination."
    )
    rooms_never_caught_up: int | None = Field(
        description="Those of which `catch_up` is `impossible`."
    )
    to_device_messages: int | None = Field(description="To-device messages that wait.")
    oldest_to_device_ts: int | None = Field(
        description="When the oldest of them was queued; null if there is none."
    )
    device_list_updates: int | None = Field(
        description="Changes of local users' devices that wait."
    )


class Unlisted(Answer):
    """Names for which something waits, but which Synapse has no row for."""

    total: int | None = Field(description="How many; null while that is not known.")
    sample: list[str] = Field(description="Some of them.")


class Indexes(Answer):
    """The optional indexes on Synapse's table `destinations`."""

    enabled: bool = Field(description="Whether the configuration asks for them.")
    ready: bool = Field(description="Whether all of them are ready.")
    states: dict[str, IndexState] = Field(
        description="Each index: `ready`, `building` or `missing`."
    )
    errors: dict[str, str] = Field(
        description="Why this process could not create an index."
    )


class Summary(Answer):
    """All destinations in a few numbers."""

    as_of_ts: int = Field(description="The time of `total`, `status` and `failing`.")
    total: int = Field(description="How many destinations Synapse knows.")
    status: dict[DestinationStatus, int] = Field(
        description="How many have each status."
    )
    failing: dict[FailureAge, int] = Field(
        description="Failing destinations by how long they have been failing, each "
        "counted once."
    )
    failing_by_kind: dict[Kind, int] | None = Field(
        description="Failing destinations by the kind of the last failure of a real "
        "request, those kinds that there are; `unknown` have not failed since the "
        "module was installed. Null where the module's own tables cannot be read."
    )
    outlook: model_of(Correlation) | None = Field(  # type: ignore[valid-type]
        description="Whether servers began to fail together. Null where the module's "
        "own tables cannot be read."
    )
    backlog: TotalBacklog = Field(description="What waits for all of them.")
    unlisted: Unlisted = Field(
        description="Names for which something waits, but which Synapse has no row "
        "for: they are in no list, but each is found by its name."
    )
    indexes: Indexes = Field(description="The optional indexes.")
