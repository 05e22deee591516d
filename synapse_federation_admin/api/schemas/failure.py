# SPDX-License-Identifier: Apache-2.0
"""v2: why a request to another server failed."""

from pydantic import Field
from typing_extensions import Self

from synapse_federation_admin.api.schemas.model import Answer, Kind
from synapse_federation_admin.failures import kinds
from synapse_federation_admin.failures.kinds import Reason
from synapse_federation_admin.failures.text import detail_of, message_of


class Failure(Answer):
    """What is wrong."""

    kind: Kind = Field(description="The cause.")
    reason: str | None = Field(
        description="What exactly, below the kind; null where that cannot be told.",
        examples=[reason.value for reason in Reason],
    )
    message: str = Field(description="The same for people.")
    detail: str = Field(
        description="What is particular, in the words of the other server, of OpenSSL "
        "and of the network; empty if there is nothing."
    )

    @classmethod
    def of(cls, failure: kinds.Failure) -> Self:
        """Show a value."""
        return cls(
            kind=failure.kind.value,
            reason=failure.reason.value if failure.reason else None,
            message=message_of(failure),
            detail=detail_of(failure),
        )
