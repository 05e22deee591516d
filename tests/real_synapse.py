# SPDX-License-Identifier: Apache-2.0
"""A real Synapse with an admin, and what tests ask of it."""

from functools import cached_property
from pathlib import Path
from typing import Any

from deadlines import SOON_S
from synapse.config.workers import ShardedWorkerHandlingConfig

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import (
    FEDERATION_V2,
    MatrixClient,
    User,
    quoted,
)
from synapse_federation_admin.playground.configuration import FEDERATION_SENDERS, MAIN
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.remote import RemoteServer
from synapse_federation_admin.playground.synapse import SynapseServer

PASSWORD = "of-the-admin"

# Who sends to whom, of the two that a cluster has.
SHARDS = ShardedWorkerHandlingConfig(list(FEDERATION_SENDERS))


class Admin(MatrixClient):
    """An admin at one process."""

    def v2(self, path: str, **params: str | int) -> Any:
        """Read something of v2."""
        return self.request("GET", f"{FEDERATION_V2}/{path}", params=params)

    def detail(self, name: str) -> Any:
        return self.v2(f"destinations/{quoted(name)}")

    def outages(self, name: str) -> Any:
        return self.v2(f"destinations/{quoted(name)}/outages")["outages"]

    def ended(self, run_id: str) -> Any:
        """Wait until a run has ended, and return it."""
        wait_until(lambda: self.run(run_id)["ended_ts"], "the run to end", SOON_S)
        return self.run(run_id)


class RealSynapse(SynapseServer):
    """One with an authority of its own, unless another is given, and an admin."""

    def __init__(
        self,
        folder: Path,
        certificates: CertificateAuthority | None = None,
        **options: Any,
    ) -> None:
        self.certificates = certificates or CertificateAuthority(folder)
        super().__init__(folder / "synapse", self.certificates, **options)

    @cached_property
    def admin(self) -> User:
        return self.create_user("admin", admin=True, password=PASSWORD)

    def as_admin(self, process: str = MAIN) -> Admin:
        """Make a client as which the admin speaks to a process."""
        client = Admin(self.url(process), self.admin.access_token)
        self._stack.callback(client.close)
        return client


def remote_of(
    sender: str,
    address: str,
    certificates: CertificateAuthority,
    shards: ShardedWorkerHandlingConfig = SHARDS,
) -> RemoteServer:
    """Make a remote server to which a certain federation sender sends."""
    while True:
        remote = RemoteServer(address, certificates)
        if shards.should_handle(sender, remote.server_name):
            return remote
