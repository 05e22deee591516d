# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations in a few numbers."""

from pydantic import Field
from typing_extensions import Self

from synapse_federation_admin.api.schemas.model import Answer, Kind
from synapse_federation_admin.destinations import summary as values
from synapse_federation_admin.destinations.summary import FailureAge
from synapse_federation_admin.destinations.values import DestinationStatus, IndexState
from synapse_federation_admin.history.correlation import Correlation, CorrelationVerdict
from synapse_federation_admin.storage import recent_attempts
from synapse_federation_admin.storage.recent_attempts import CauseType


class Cause(Answer):
    """What several destinations that fail have in common."""

    type: CauseType = Field(
        description="What of them: the `kind` of the failure, the IP `address`, or the "
        "`issuer` of certificates that are not trusted."
    )
    value: str = Field(description="That kind, address or issuer.")
    destinations: int = Field(description="How many of those that fail have it.")
    began: int = Field(description="How many of these began to fail in that time.")


class RecentAttempts(Answer):
    """The destinations that Synapse tried in the time up to now."""

    tried: int = Field(description="How many were attempts.")
    failing: int = Field(description="How many of them fail.")
    began: int = Field(description="How many of these began to fail in that time.")
    share: float | None = Field(
        description="The share that fails, from 0 to 1; null if none was attempts."
    )
    shared: list[Cause] = Field(
        description="What those that fail have in common, the most common first."
    )

    @classmethod
    def of(cls, attempts: recent_attempts.RecentAttempts) -> Self:
        """Show a value."""
        return cls(
            tried=attempts.total,
            failing=attempts.failing,
            began=attempts.began,
            share=None if attempts.share is None else round(attempts.share, 4),
            shared=[
                Cause(
                    type=cause.type,
                    value=cause.value,
                    destinations=cause.destinations,
                    began=cause.began,
                )
                for cause in attempts.causes
            ],
        )


class Outlook(Answer):
    """Whether servers began to fail together, and whether it is us."""

    verdict: CorrelationVerdict = Field(
        description="`normal`; `us`: the cause is likely to be this homeserver's; "
        "`shared`: something that several other servers share."
    )
    explanation: str = Field(description="The same for people, in a sentence.")
    last_hour: RecentAttempts = Field(description="The last hour.")
    last_15_minutes: RecentAttempts = Field(description="The last 15 minutes.")

    @classmethod
    def of(cls, outlook: Correlation) -> Self:
        """Show a value."""
        return cls(
            verdict=outlook.verdict,
            explanation=outlook.explanation,
            last_hour=RecentAttempts.of(outlook.last_hour),
            last_15_minutes=RecentAttempts.of(outlook.lately),
        )


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
    outlook: Outlook | None = Field(
        description="Whether servers began to fail together. Null where the module's "
        "own tables cannot be read."
    )
    backlog: TotalBacklog = Field(description="What waits for all of them.")
    unlisted: Unlisted = Field(
        description="Names for which something waits, but which Synapse has no row "
        "for: they are in no list, but each is found by its name."
    )
    indexes: Indexes = Field(description="The optional indexes.")

    @classmethod
    def of(
        cls,
        summary: values.Summary,
        kinds: dict[str, int] | None,
        outlook: Correlation | None,
        indexes: Indexes,
    ) -> Self:
        """Show what is known.

        Args:
            summary: The summary.
            kinds: How many fail with each kind there is; None if that cannot be read.
            outlook: The outlook; None if it cannot be read.
            indexes: The indexes.
        """
        backlog = summary.backlog
        return cls(
            as_of_ts=summary.as_of_ts,
            total=summary.total,
            status=dict(summary.by_status),
            failing=dict(summary.failing_by_age),
            failing_by_kind=None
            if kinds is None
            else {k: n for k, n in kinds.items() if n},
            outlook=None if outlook is None else Outlook.of(outlook),
            backlog=TotalBacklog(
                as_of_ts=backlog.as_of_ts if backlog else None,
                rooms=backlog.rooms if backlog else None,
                rooms_never_caught_up=backlog.rooms_never_caught_up
                if backlog
                else None,
                to_device_messages=backlog.to_device_messages if backlog else None,
                oldest_to_device_ts=backlog.oldest_to_device_ts if backlog else None,
                device_list_updates=backlog.device_list_updates if backlog else None,
            ),
            unlisted=Unlisted(
                total=backlog.unlisted if backlog else None,
                sample=list(backlog.unlisted_sample) if backlog else [],
            ),
            indexes=indexes,
        )
