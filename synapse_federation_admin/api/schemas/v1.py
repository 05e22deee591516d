# SPDX-License-Identifier: Apache-2.0
"""v1, described for the document alone: it parses and renders without these models."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api.schemas.model import Answer, Input, Lax, Nothing
from synapse_federation_admin.destinations.values import Direction

_UNKNOWN = {404: "Synapse has no row for the destination."}

# How a long answer fails if there are too many others.
TOO_MANY = {
    429: "Too many long answers are being read from this process (`M_LIMIT_EXCEEDED`, "
    "with `Retry-After`)."
}

Count = Annotated[int, Field(ge=0)]


class PageQuery(Input):
    """Which rows of a list."""

    from_: Count = Field(
        default=0,
        alias="from",
        description="How many rows to leave out at the start: the `next_token` of the "
        "page before.",
    )
    limit: Count = Field(
        default=100,
        description="The most rows to return; there is no upper bound, and `0` returns "
        "only `total`.",
    )
    dir: Annotated[Direction, Lax] = Field(
        default=Direction.FORWARDS, description="`f`: ascending; `b`: descending."
    )


class DestinationsQuery(PageQuery):
    """Which destinations, and in which order."""

    order_by: str = Field(
        default="destination",
        description="What to sort by; `null` comes last in both directions, and equal "
        "values are sorted by name.",
        json_schema_extra={
            "enum": [
                "destination",
                "retry_last_ts",
                "retry_interval",
                "failure_ts",
                "last_successful_stream_ordering",
            ]
        },
    )
    destination: str = Field(
        default="",
        description="Keep the names that contain this text, in any case of ASCII "
        "letters; every character stands for itself.",
    )


class V1Destination(Answer):
    """A destination, as in every answer of v1."""

    destination: str = Field(description="The server name.")
    retry_last_ts: int = Field(
        description="When Synapse last tried and failed; 0 if it is not failing."
    )
    retry_interval: int = Field(
        description="How long Synapse waits after that, in ms; 0 if it is not failing."
    )
    failure_ts: int | None = Field(
        description="Since when it has been failing; null if it is not."
    )
    last_successful_stream_ordering: int | None = Field(
        description="Up to which event it has everything; null if no event was "
        "delivered to it yet."
    )


class V1Page(Answer):
    """What the pages of both lists have."""

    total: int = Field(description="How many rows the filter keeps.")
    next_token: str | None = Field(
        default=None, description="The next page's `from`; absent on the last page."
    )


class V1Destinations(V1Page):
    """A page of the list."""

    destinations: list[V1Destination] = Field(description="The rows of the page.")


class V1Room(Answer):
    """A room in which an event was ever queued for a destination."""

    room_id: str = Field(description="The room's ID.")
    stream_ordering: int = Field(
        description="The stream ordering of the newest such event."
    )


class V1Rooms(V1Page):
    """A page of a destination's rooms."""

    rooms: list[V1Room] = Field(description="The rows of the page.")


class V1Reset(Answer):
    """A reset: an empty object."""


# By the name of the handler.
OPERATIONS: Mapping[str, Operation[Any]] = {
    "list_destinations_v1": Operation(
        DestinationsQuery, V1Destinations, errors=TOO_MANY
    ),
    "get_destination_v1": Operation(Nothing, V1Destination, errors=_UNKNOWN),
    "list_rooms_v1": Operation(PageQuery, V1Rooms, errors={**_UNKNOWN, **TOO_MANY}),
    "reset_connection_v1": Operation(
        Nothing,
        V1Reset,
        errors={
            400: "The destination is not failing (`M_UNKNOWN`).",
            **_UNKNOWN,
            500: "The database failed; nothing has changed (`M_UNKNOWN`).",
        },
    ),
}
