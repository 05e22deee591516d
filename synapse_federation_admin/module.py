# SPDX-License-Identifier: Apache-2.0
"""The class that Synapse loads."""

from typing import TYPE_CHECKING

from synapse_federation_admin.config import (
    FederationAdminConfig,
    parse_config,
    require_supported_synapse,
)

if TYPE_CHECKING:
    from synapse.module_api import ModuleApi


class FederationAdmin:
    """Serves the Federation admin API from inside Synapse.

    Synapse calls `parse_config` while it reads homeserver.yaml, and makes one instance
    in every process, before that process begins to listen.
    """

    def __init__(self, config: FederationAdminConfig, api: "ModuleApi") -> None:
        # Only now: on a Synapse that parse_config has refused, these might not import.
        from synapse_federation_admin.api import Services, mount
        from synapse_federation_admin.destinations.backlog import BacklogStore
        from synapse_federation_admin.destinations.indexes import DestinationIndexes
        from synapse_federation_admin.destinations.pagination import Cursors
        from synapse_federation_admin.destinations.reader import DestinationReader
        from synapse_federation_admin.destinations.shared_rooms import SharedRoomsStore
        from synapse_federation_admin.destinations.store import DestinationStore
        from synapse_federation_admin.destinations.summary import SummaryStore
        from synapse_federation_admin.diagnosis.diagnose import Diagnoses
        from synapse_federation_admin.history.gauges import Monitor
        from synapse_federation_admin.history.outages import Outages
        from synapse_federation_admin.history.recent_attempts import RecentAttemptsStore
        from synapse_federation_admin.history.recorder import Recorder
        from synapse_federation_admin.history.store import HistoryStore
        from synapse_federation_admin.homeserver.homeserver import Homeserver
        from synapse_federation_admin.repair.attempts import Attempts
        from synapse_federation_admin.repair.bulk import BulkReconnect
        from synapse_federation_admin.repair.cap_backoff import Clamp
        from synapse_federation_admin.repair.follow_up import FollowUp
        from synapse_federation_admin.repair.forget import Forget
        from synapse_federation_admin.repair.housekeeping import Housekeeping
        from synapse_federation_admin.repair.reconnect import Reconnect
        from synapse_federation_admin.repair.reset import ConnectionReset
        from synapse_federation_admin.repair.runs import RunStore
        from synapse_federation_admin.repair.wake import Wake
        from synapse_federation_admin.storage.audit import Audit
        from synapse_federation_admin.storage.schema import Tables

        homeserver = Homeserver(api)
        destinations = DestinationStore(homeserver)
        backlog = BacklogStore(homeserver)
        indexes = DestinationIndexes(homeserver, config.indexes)
        tables = Tables(homeserver)
        audit = Audit(homeserver, tables)
        housekeeping = Housekeeping(
            homeserver,
            tables,
            keep_for_ms=config.audit_keep_for_ms,
            outages_keep_for_ms=config.outages_keep_for_ms,
        )
        wake = Wake(homeserver)
        follow_up = FollowUp(
            homeserver, wake, contact_timeout_ms=config.contact_timeout_ms
        )
        reader = DestinationReader(homeserver, tables)
        runs = RunStore(homeserver, audit)
        shared_rooms = SharedRoomsStore(homeserver)
        outages = Outages(
            homeserver, tables, contact_timeout_ms=config.contact_timeout_ms
        )
        summary = SummaryStore(homeserver)
        history = HistoryStore(homeserver, tables)
        diagnoses = Diagnoses(
            homeserver,
            destinations,
            backlog,
            history.last_failure,
            timeout_ms=config.diagnosis_timeout_ms,
        )
        recent_attempts = RecentAttemptsStore(
            homeserver, tables, diagnoses.find_addresses
        )
        bulk = BulkReconnect(homeserver, runs, destinations, reader, wake, housekeeping)
        mount(
            Services(
                homeserver=homeserver,
                destinations=destinations,
                reader=reader,
                cursors=Cursors(homeserver.now_ms),
                backlog=backlog,
                shared_rooms=shared_rooms,
                summary=summary,
                indexes=indexes,
                reset=ConnectionReset(
                    config, homeserver, destinations, audit, wake, follow_up
                ),
                reconnect=Reconnect(
                    homeserver,
                    destinations,
                    backlog,
                    Attempts(homeserver, tables),
                    audit,
                    wake,
                    follow_up,
                ),
                audit=audit,
                runs=runs,
                bulk=bulk,
                bulk_max_per_second=config.bulk_max_per_second,
                clamp=Clamp(homeserver, audit),
                forget=Forget(
                    homeserver, reader, backlog, shared_rooms, audit, outages.end_txn
                ),
                diagnoses=diagnoses,
                history=history,
                recent_attempts=recent_attempts,
            )
        )
        indexes.start()
        housekeeping.start()
        bulk.start()
        Recorder(
            homeserver,
            tables,
            diagnoses.without_dns,
            contact_timeout_ms=config.contact_timeout_ms,
        ).start()
        outages.start()
        recent_attempts.start()
        Monitor(homeserver, summary, history, recent_attempts).start()

    @staticmethod
    def parse_config(config: object) -> FederationAdminConfig:
        """Parse the module's `config` section.

        Raises:
            ConfigError: The section is wrong, or Synapse is too old. See
                `synapse_federation_admin.config.parse_config`.
        """
        require_supported_synapse()
        return parse_config(config)
