# SPDX-License-Identifier: Apache-2.0
"""v2: runs, which change many destinations, and what they are asked for."""

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from synapse_federation_admin.api.schemas.destinations import ChangeFilter, Destination
from synapse_federation_admin.api.schemas.model import (
    Answer,
    Input,
    NextToken,
    Paged,
    Reason,
)
from synapse_federation_admin.api.schemas.values import model_of
from synapse_federation_admin.storage import run_values

# A longer list is for a filter, or for several runs.
_MAX_NAMES = 50_000

# For how long it has been failing what a filter forgets without `force`.
_DEAD_FOR_MS = 30 * 86_400_000

DropToDevice = Annotated[
    bool,
    Field(
        description="Delete the to-device messages that wait, too. Encrypted "
        "conversations depend on them: if the destination should come back, it could "
        "not read what it was sent."
    ),
]


class RunsQuery(Paged):
    """The query parameters of the list."""

    limit: Annotated[int, Field(ge=1, le=100)] = Field(
        default=20, description="The most runs to return."
    )


class ReconnectManyBody(Input):
    """Which destinations to reconnect, and how."""

    destinations: list[str] | None = Field(
        default=None, description="The server names.", max_length=_MAX_NAMES
    )
    filter: ChangeFilter | None = Field(
        default=None,
        description="Those that a filter keeps, as in the list. With none of `status`, "
        "`failing_for` and `failure` it is for what is failing.",
    )
    all_failing: bool | None = Field(
        default=None, description="`true`: all that are failing."
    )
    dry_run: bool = Field(
        default=False, description="Say what would be contacted, and change nothing."
    )
    ignore_unknown: bool = Field(
        default=False,
        description="Leave out the names of the list that are no valid server names, "
        "or that Synapse has no row for; `ignored` has their numbers.",
    )
    per_second: float | None = Field(
        default=None,
        description="How many contacts to begin per second: 5 by default, from 0.1 to "
        "`bulk.max_per_second` of the configuration.",
    )
    timeout_ms: Annotated[int, Field(ge=1000, le=60_000)] = Field(
        default=10_000, description="How long each destination has to answer."
    )
    reason: Reason = ""

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        """Refuse more or less than one way to say which destinations."""
        given = (self.destinations, self.filter, self.all_failing)
        if sum(each is not None for each in given) != 1:
            raise ValueError(
                "One of the keys 'destinations', 'filter' and 'all_failing' is needed, "
                "and only one"
            )
        if self.all_failing is False:
            raise ValueError("Key 'all_failing' must be true, or absent")
        return self


class ForgetBody(Input):
    """How to forget a destination."""

    dry_run: bool = Field(
        default=True, description="Tell what would be lost, and change nothing."
    )
    drop_to_device: DropToDevice = False
    reason: Reason = ""


class ForgetManyBody(ForgetBody):
    """Which destinations to forget, and how."""

    filter: ChangeFilter = Field(
        description="Those that a filter keeps, as in the list. `failing_for` must be "
        "at least `30d`, unless there is `force`."
    )
    force: bool = Field(default=False, description="Take any filter.")

    @model_validator(mode="after")
    def _require_dead(self) -> Self:
        """Refuse what may well be alive."""
        if not self.force and (self.filter.failing_for or 0) < _DEAD_FOR_MS:
            raise ValueError(
                "Key 'filter.failing_for' must be at least 30d, unless 'force' is true"
            )
        return self


class CapBackoffBody(Input):
    """How long backoffs may be."""

    # As much as any clock of ms needs; within the 64 bits of both databases.
    max_retry_interval_ms: Annotated[int, Field(ge=1, le=10**15)] = Field(
        description="How long a backoff may be."
    )
    dry_run: bool = Field(
        default=False, description="Say what would be shortened, and change nothing."
    )
    reason: Reason = ""


class Ignored(Answer):
    """How many names of a list were left out."""

    unknown: int = Field(description="Those that Synapse has no row for.")
    invalid: int = Field(description="Those that are no valid server names.")


class Run(model_of(run_values.Run)):  # type: ignore[misc]
    """A run: one change to many destinations, one after the other."""

    estimated_end_ts: int | None = Field(
        description="When it will have ended, going on like this; null if not known."
    )
    ignored: Ignored | None = Field(
        default=None, description="With `ignore_unknown`, in the answer to the POST."
    )


class RunsPage(Answer):
    """A page of runs."""

    runs: list[Run] = Field(description="The newest first.")
    next_token: NextToken = None


class RunPreview(Answer):
    """What a run would be for: the answer to a dry run."""

    dry_run: bool = Field(description="True.")
    matched: int = Field(description="How many destinations it would be for.")
    sample: list[str] = Field(description="The names of some of them.")
    ignored: Ignored | None = Field(default=None, description="With `ignore_unknown`.")


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
