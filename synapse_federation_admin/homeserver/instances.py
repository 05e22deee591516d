# SPDX-License-Identifier: Apache-2.0
"""The processes of a homeserver, by their names."""

from typing import TYPE_CHECKING

from synapse.config.workers import MAIN_PROCESS_INSTANCE_NAME

if TYPE_CHECKING:
    from synapse.server import HomeServer

# What the main process is called here, as in Synapse's `instance_map`; in its code it
# is "master".
MAIN = "main"


def shown_instance(instance: str) -> str:
    """Return the name of a process as it is in `instance_map`."""
    return MAIN if instance == MAIN_PROCESS_INSTANCE_NAME else instance


def outbound_instances(hs: "HomeServer") -> list[str] | None:
    """Return the processes that go out to other servers in this one's stead.

    None if this one goes itself (`outbound_federation_restricted_to`).
    """
    allowed = hs.config.worker.outbound_federation_restricted_to
    if hs.get_instance_name() in allowed:
        return None
    return sorted(map(shown_instance, allowed.instances or []))
