# SPDX-License-Identifier: Apache-2.0
"""What every handler shares: who asks, what it acts with, and errors."""

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from synapse.module_api import Requester, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.config import FederationAdminConfig
from synapse_federation_admin.homeserver.features import Feature, Features
from synapse_federation_admin.storage.values import Actor

# What a feature needs of Synapse may be missing: that must not take others away.
if TYPE_CHECKING:
    from synapse_federation_admin.destinations.attention import AttentionStore
    from synapse_federation_admin.destinations.backlog import BacklogStore
    from synapse_federation_admin.destinations.indexes import DestinationIndexes
    from synapse_federation_admin.destinations.pagination import Cursors
    from synapse_federation_admin.destinations.reader import DestinationReader
    from synapse_federation_admin.destinations.senders import Senders
    from synapse_federation_admin.destinations.shared_rooms import SharedRoomsStore
    from synapse_federation_admin.destinations.store import DestinationStore
    from synapse_federation_admin.destinations.summary import SummaryStore
    from synapse_federation_admin.diagnosis.diagnose import Diagnoses
    from synapse_federation_admin.diagnosis.support import SupportFiles
    from synapse_federation_admin.history.changes import ChangesStore
    from synapse_federation_admin.history.outlook import RecentAttemptsStore
    from synapse_federation_admin.history.recorder import Recorder
    from synapse_federation_admin.history.store import HistoryStore
    from synapse_federation_admin.homeserver.homeserver import Homeserver
    from synapse_federation_admin.repair.cap_backoff import CapBackoff
    from synapse_federation_admin.repair.flush_caches import FlushCaches
    from synapse_federation_admin.repair.follow_up import FollowUp
    from synapse_federation_admin.repair.forget import Forget
    from synapse_federation_admin.repair.forget_many import ForgetMany
    from synapse_federation_admin.repair.reconnect import Reconnect
    from synapse_federation_admin.repair.reconnect_many import ReconnectMany
    from synapse_federation_admin.repair.reset import ConnectionReset
    from synapse_federation_admin.repair.runner import Runner
    from synapse_federation_admin.repair.wake import Wake
    from synapse_federation_admin.storage.audit import Audit
    from synapse_federation_admin.storage.runs import RunStore
    from synapse_federation_admin.storage.schema import Tables


class Services:
    """What features are made of, and what handlers act with.

    A part is there if the feature that makes it is on; else whoever asks for it raises
    a `FeatureOffError`.
    """

    features: Features
    config: FederationAdminConfig
    # Of `BASE`.
    homeserver: "Homeserver"
    tables: "Tables"
    destinations: "DestinationStore"
    reader: "DestinationReader"
    summary: "SummaryStore"
    indexes: "DestinationIndexes"
    wake: "Wake"
    follow_up: "FollowUp"
    # Of the feature that is named beside it.
    cursors: Annotated["Cursors[Any]", Feature.V1_LISTS]
    reset: Annotated["ConnectionReset", Feature.V1_RESET]
    backlog: Annotated["BacklogStore", Feature.BACKLOG]
    shared_rooms: Annotated["SharedRoomsStore", Feature.SHARED_ROOMS]
    attention: Annotated["AttentionStore", Feature.SHARED_ROOMS]
    senders: Annotated["Senders", Feature.SENDERS]
    audit: Annotated["Audit", Feature.AUDIT]
    reconnect: Annotated["Reconnect", Feature.RECONNECT]
    runs: Annotated["RunStore", Feature.AUDIT]
    changes: Annotated["ChangesStore", Feature.AUDIT]
    runner: Annotated["Runner", Feature.RUNS]
    reconnect_many: Annotated["ReconnectMany", Feature.RUNS]
    cap_backoff: Annotated["CapBackoff", Feature.RUNS]
    forget: Annotated["Forget", Feature.RUNS]
    forget_many: Annotated["ForgetMany", Feature.RUNS]
    flush_caches: Annotated["FlushCaches", Feature.FLUSH_CACHES]
    diagnoses: Annotated["Diagnoses", Feature.DIAGNOSIS]
    support: Annotated["SupportFiles", Feature.DIAGNOSIS]
    history: Annotated["HistoryStore", Feature.HISTORY]
    recorder: Annotated["Recorder", Feature.HISTORY]
    recent_attempts: Annotated["RecentAttemptsStore", Feature.HISTORY]

    def __init__(self, features: Features, config: FederationAdminConfig) -> None:
        self.features = features
        self.config = config
        features.on_change(self._drop)

    def __getattr__(self, name: str) -> Any:
        """Say why a part is not there."""
        self.features.require(_OWNERS.get(name, Feature.BASE))
        raise AttributeError(name)

    def _drop(self, feature: Feature) -> None:
        for name, owner in _OWNERS.items():
            if owner is feature:
                self.__dict__.pop(name, None)


_OWNERS: dict[str, Feature] = {
    name: part.__metadata__[0]
    for name, part in Services.__annotations__.items()
    if hasattr(part, "__metadata__")
}


class Asked(NamedTuple):
    """What a handler is called with: the request of an admin, and what it acts with."""

    services: Services
    request: SynapseRequest
    requester: Requester

    @property
    def actor(self) -> Actor:
        """Who makes the request, for the audit."""
        user_id = self.requester.user.to_string()
        entity = self.requester.authenticated_entity
        return Actor(user_id, entity if entity != user_id else None)


def unknown_destination() -> SynapseError:
    """Return the error for a destination that Synapse has no row for."""
    return SynapseError(HTTPStatus.NOT_FOUND, "Unknown destination", Codes.NOT_FOUND)


def invalid_param(message: str) -> SynapseError:
    """Return the error for a bad parameter, which the message names."""
    return SynapseError(HTTPStatus.BAD_REQUEST, message, Codes.INVALID_PARAM)
