# SPDX-License-Identifier: Apache-2.0
"""v2: runs, which change many destinations, and what they are asked for."""

from typing import Annotated, Any

from pydantic import Field, model_validator
from typing_extensions import Self

from synapse_federation_admin.api.schemas.destinations import ChangeFilter, Destination
from synapse_federation_admin.api.schemas.model import (
    Answer,
    Input,
    NextToken,
    PageFrom,
    Reason,
)
from synapse_federation_admin.repair.forget import Waiting
from synapse_federation_admin.storage import run_values
from synapse_federation_admin.storage.run_values import RunStatus

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


class RunsQuery(Input):
    """The query parameters of the list."""

    limit: Annotated[int, Field(ge=1, le=100)] = Field(
        default=20, description="The most runs to return."
    )
    from_: PageFrom = None


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


class RunError(Answer):
    """A destination with which something is wrong."""

    destination: str = Field(description="The server name.")
    message: str = Field(description="What is wrong, for people.")
    ts: int = Field(description="When, in ms since the epoch.")


class RunErrors(Answer):
    """The destinations with which one kind of thing is wrong."""

    count: int = Field(description="How many.")
    recent: list[RunError] = Field(description="The last ones, the newest first.")


class Ignored(Answer):
    """How many names of a list were left out."""

    unknown: int = Field(description="Those that Synapse has no row for.")
    invalid: int = Field(description="Those that are no valid server names.")


class Run(Answer):
    """A run: one change to many destinations, one after the other."""

    id: str = Field(description="Its ID.")
    action: str = Field(
        description="What is done to each destination.",
        examples=["reconnect", "forget", "cap_backoff"],
    )
    status: str = Field(
        description="`scheduled`: no process has taken it yet; `preparing`: `matched` "
        "still grows; `running`, `complete`, `cancelled`; `failed`: `error` says why.",
        examples=[status.value for status in RunStatus],
    )
    user_id: str = Field(description="The user whose access token it was.")
    puppeted_by: str | None = Field(
        description="Who acts as that user; null if nobody does."
    )
    reason: str | None = Field(description="Why, as the admin said; null if not said.")
    criteria: dict[str, Any] = Field(
        description="Which destinations: `all_failing`, a `filter`, or how many "
        "`destinations` a list had."
    )
    options: dict[str, Any] = Field(description="How, depending on the action.")
    created_ts: int = Field(description="When it was asked for.")
    started_ts: int | None = Field(
        description="When a process first took it; null if none has."
    )
    updated_ts: int = Field(description="When something of it was last written.")
    ended_ts: int | None = Field(description="When it ended; null if it has not.")
    matched: int = Field(description="How many destinations have been found.")
    done: int = Field(description="How many of them have an outcome.")
    outcomes: dict[str, int] = Field(
        description="How many have each outcome, depending on the action."
    )
    totals: dict[str, int] = Field(
        description="Sums over those that are done, depending on the action."
    )
    errors: dict[str, RunErrors] = Field(
        description="What is wrong with destinations, by kind."
    )
    error: str | None = Field(description="Why the run failed; null if it has not.")
    rate_per_second: float | None = Field(
        description="How many are done per second; null if it does not run."
    )
    estimated_end_ts: int | None = Field(
        description="When it will have ended, going on like this; null if not known."
    )
    ignored: Ignored | None = Field(
        default=None, description="With `ignore_unknown`, in the answer to the POST."
    )

    @classmethod
    def of(
        cls, run: run_values.Run, now_ms: int, *, ignored: Ignored | None = None
    ) -> Self:
        """Show a value."""
        is_running = run.status == RunStatus.RUNNING.value
        return cls(
            id=run.run_id,
            action=run.action,
            status=run.status,
            user_id=run.actor.user_id,
            puppeted_by=run.actor.puppeted_by,
            reason=run.reason,
            criteria=dict(run.criteria),
            options=dict(run.options),
            created_ts=run.created_ts,
            started_ts=run.started_ts,
            updated_ts=run.updated_ts,
            ended_ts=run.ended_ts,
            matched=run.matched,
            done=run.done,
            outcomes=dict(run.outcomes),
            totals=dict(run.totals),
            errors={
                kind: RunErrors(
                    count=found.count,
                    recent=[
                        RunError(
                            destination=error.destination,
                            message=error.message,
                            ts=error.ts,
                        )
                        for error in found.recent
                    ],
                )
                for kind, found in run.errors.items()
            },
            error=run.error,
            rate_per_second=run.rate if is_running else None,
            estimated_end_ts=run.estimated_end_ts(now_ms),
            ignored=ignored,
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

    @classmethod
    def of(cls, waiting: Waiting) -> Self:
        """Show a value."""
        return cls(
            rooms=waiting.rooms,
            to_device_messages=waiting.to_device_messages,
            device_list_updates=waiting.device_list_updates,
        )


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
