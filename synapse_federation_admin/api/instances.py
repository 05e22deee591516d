# SPDX-License-Identifier: Apache-2.0
"""v2: the processes of this homeserver."""

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.schemas.model import Answer, Nothing
from synapse_federation_admin.api.schemas.values import Shown, model_of, shown
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.storage.instances import Instance


class Process(model_of(Instance)):  # type: ignore[misc]
    """A process of this homeserver."""

    sender: Shown[Sender] | None = Field(
        description="How far it has come, if it sends; null if it does not."
    )


class Processes(Answer):
    """The processes of this homeserver."""

    instances: list[Process] = Field(
        description="Those that the configuration names, and others that were seen "
        "within a week; by name."
    )


@operation(Nothing, Processes)
async def list_instances(asked: Asked, _: Nothing) -> JsonDict:
    """Tell which processes run, and how far those are that send.

    GET /_synapse/admin/v2/federation/instances

    200 OK

        {
            "instances": [
                {
                    "instance": "federation_sender1",
                    "state": "running",
                    "seen_ts": 1557332397936,
                    "started_ts": 1557331397936,
                    "module_version": "0.1.0",
                    "synapse_version": "1.163.2",
                    "sends": true,
                    "in_memory": {
                        "destinations": 2,
                        "pdus": 5,
                        "edus": 1,
                        "oldest_ts": 1557332397936
                    },
                    "reactor_late_ms": 3,
                    "sender": {
                        "instance": "federation_sender1",
                        "state": "running",
                        "seen_ts": 1557332397936,
                        "position": 4711,
                        "behind_events": 0,
                        "behind_ms": 0,
                        "ahead_events": 0
                    }
                }
            ]
        }

    What is null of a process is not known: it was never seen. It is read at most every
    five seconds, for all who ask.
    """
    found = await asked.services.senders.lately.get()
    assert found is not None
    senders = {sender.instance: shown(sender) for sender in found.senders}
    return {
        "instances": [
            {**shown(instance), "sender": senders.get(name)}
            for name, instance in found.instances.items()
        ]
    }
