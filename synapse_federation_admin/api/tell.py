# SPDX-License-Identifier: Apache-2.0
"""v2: a message to the admins of a server."""

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin import limits
from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.schemas.model import Answer, Nothing
from synapse_federation_admin.api.schemas.values import shown
from synapse_federation_admin.api.v2_destinations import require_known
from synapse_federation_admin.diagnosis.tell import (
    message_to_admins,
    subject_for_admins,
)
from synapse_federation_admin.history.store import if_readable
from synapse_federation_admin.homeserver.features import Feature
from synapse_federation_admin.storage.records import Recorded


class Message(Answer):
    """A message to the admins of a server, which says what we see of it."""

    destination: str = Field(description="The server name.")
    subject: str = Field(description="What it is about: one line.")
    text: str = Field(description="The message: plain text of several lines.")
    diagnosed_ts: int | None = Field(
        description="When the diagnosis was made that is told in it: the last one that "
        "this process has made since it started; null if there is none."
    )
    fault: str | None = Field(
        description="Who has to act by that diagnosis: there is no use in sending it "
        "to them if it is `us`. Null if that is not known."
    )


@operation(Nothing, Message, errors={404: "Nothing is known of the destination."})
async def tell(asked: Asked, _: Nothing, destination: str) -> JsonDict:
    """Write a message to the admins of a server that says what we see.

    GET /_synapse/admin/v2/federation/destinations/<destination>/tell

    200 OK

        {
            "destination": "matrix.org",
            "subject": "Matrix federation from example.org to matrix.org",
            "text": "Hello, ...",
            "diagnosed_ts": 1557332397936,
            "fault": "them"
        }

    Nothing is sent, and the server is not contacted. It tells what was recorded, and
    what the last diagnosis has found.
    """
    services, homeserver = asked.services, asked.services.homeserver
    row = await require_known(services, destination)
    recorded = (
        await if_readable(lambda: services.history.recorded(destination)) or Recorded()
    )
    diagnosis = None
    if services.features.is_on(Feature.DIAGNOSIS):
        diagnosis = services.diagnoses.last(destination)
    return {
        "destination": destination,
        "subject": subject_for_admins(homeserver.server_name, row),
        "text": message_to_admins(
            homeserver.server_name,
            row,
            homeserver.now_ms(),
            last_success_ts=recorded.success_ts,
            failures=recorded.failures[: limits.TOLD_FAILURES],
            diagnosis=diagnosis,
        ),
        "diagnosed_ts": diagnosis.checked_ts if diagnosis else None,
        "fault": shown(diagnosis.situation.fault) if diagnosis else None,
    }
