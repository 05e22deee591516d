# SPDX-License-Identifier: Apache-2.0
"""What comes of a repair."""

from enum import Enum

import attr

from synapse_federation_admin.failures.kinds import Failure


class ResetOutcome(Enum):
    """What came of a request to reset a destination's retry timings."""

    RESET = "reset"
    NOT_FAILING = "not_failing"
    UNKNOWN_DESTINATION = "unknown_destination"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Server:
    """What a server says of itself.

    Attributes:
        name: Its software; None if it does not say.
        version: Its version; None if it does not say.
    """

    name: str | None = None
    version: str | None = None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Contact:
    """What came of one request to a destination.

    Attributes:
        duration_ms: How long it took.
        server: What the server says of itself; None if it did not answer well.
        failure: Why it failed; None if it did not.
    """

    duration_ms: int
    server: Server | None = None
    failure: Failure | None = None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Refused:
    """The transaction that a destination has refused, where that is known.

    Attributes:
        status: The HTTP status; None if there was no answer.
        bytes: The size of its body; None if that is not known.
        pdus: How many PDUs were in it.
        edus: How many EDUs were in it.
        to_device_messages: How many of these were to-device messages.
    """

    status: int | None
    bytes: int | None
    pdus: int | None
    edus: int | None
    to_device_messages: int | None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Told:
    """Which processes were told that a destination may be up again.

    Attributes:
        names: The names of the processes; the main process is `main`.
        others: The names of those that could not be told.
        error: Why they could not be told; None if all were.
    """

    names: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    error: str | None = None


class ReconnectOutcome(Enum):
    """What came of a request to reconnect a destination."""

    # It has taken an empty transaction; nothing waited, or the first of that, too.
    CONNECTED = "connected"

    # It has taken an empty transaction, and refuses what waits.
    REFUSED = "refused"

    # It has not answered well. The row is as it was, or as Synapse has made it since.
    STILL_FAILING = "still_failing"

    # That is not known yet; the attempt goes on.
    PENDING = "pending"

    # It has not answered well, and its retry timings are cleared even so.
    FORCED = "forced"

    # The contact failed because of a bug on this side; nothing has changed.
    INTERNAL = "internal"


class LeftOut(Enum):
    """Why a run has done nothing with a destination."""

    # It was failing when it was queued, and is not any more.
    NO_LONGER_FAILING = "no_longer_failing"

    # Synapse has no row for it any more; or it is no valid server name, or is shut out
    # by `federation_domain_whitelist`.
    SKIPPED = "skipped"
