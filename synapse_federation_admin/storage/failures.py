# SPDX-License-Identifier: Apache-2.0
"""Why real requests to a destination failed."""

import attr


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RecordedFailure:
    """Failures of one kind of real requests to one destination.

    Attributes:
        kind: The cause.
        message: What the last of them said; for a person.
        first_ts: When the first of them failed.
        last_ts: When the last of them failed.
        count: How many there were.
        instance: The process whose request was the last of them.
        issuer: Who issued the certificate that was not trusted; "" if that is not it.
    """

    kind: str
    message: str
    first_ts: int
    last_ts: int
    count: int
    instance: str
    issuer: str = ""
