# SPDX-License-Identifier: Apache-2.0
"""This process among the processes of its homeserver."""

import sys
from collections.abc import Callable
from http import HTTPStatus
from importlib.metadata import version
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from typing import TYPE_CHECKING

from synapse.config.workers import MAIN_PROCESS_INSTANCE_NAME
from synapse.module_api import ModuleApi, Requester, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError
from synapse.rest.admin._base import assert_user_is_admin
from twisted.internet.interfaces import IReactorTime

if TYPE_CHECKING:
    from synapse.server import HomeServer

# What the main process is called here, as in Synapse's `instance_map`; in its code it
# is "master".
MAIN = "main"

# Read once, from a file.
SYNAPSE_VERSION = version("matrix-synapse")


class Process:
    """What this process is, what its configuration says, how to reach the others.

    Attributes:
        is_shutting_down: Whether it has been told to end.
    """

    def __init__(self, api: ModuleApi) -> None:
        self._api = api
        self._hs = api._hs
        self.is_shutting_down = False
        self._hs.get_reactor().addSystemEventTrigger("before", "shutdown", self._end)

    def _end(self) -> None:
        self.is_shutting_down = True

    @property
    def server_name(self) -> str:
        """This homeserver's own server name."""
        return self._hs.hostname

    @property
    def reactor(self) -> IReactorTime:
        """The clock of timeouts."""
        return self._hs.get_reactor()

    def now_ms(self) -> int:
        """Return the time, in ms since the epoch, by Synapse's clock."""
        return self._hs.get_clock().time_msec()

    @property
    def runs_background_tasks(self) -> bool:
        """Whether this is the process that does what is to be done once only.

        One process of the homeserver is: main, or `run_background_tasks_on`.
        """
        return self._api.should_run_background_tasks()

    @property
    def most_files(self) -> int:
        """How many files and connections this process may have open at once."""
        soft, _ = getrlimit(RLIMIT_NOFILE)
        return sys.maxsize if soft == RLIM_INFINITY else soft

    # -- the processes ---------------------------------------------------------------

    @property
    def instance_name(self) -> str:
        """The name of this process; that of the main process is `main`."""
        return shown_instance(self._hs.get_instance_name())

    @property
    def has_other_processes(self) -> bool:
        """Whether this homeserver runs on several processes, joined by Redis."""
        return bool(self._hs.config.redis.redis_enabled)

    @property
    def other_instances(self) -> list[str]:
        """The names of the other processes that the configuration names."""
        if not self.has_other_processes:
            return []
        names = {MAIN, *map(shown_instance, self._hs.config.worker.instance_map)}
        return sorted(names.union(self.senders) - {self.instance_name})

    @property
    def senders(self) -> list[str]:
        """The names of the processes that send, as the configuration names them.

        None where nothing sends, and where the sender is configured in the old way,
        with `send_federation: false`, which tells only the sender itself who it is.
        """
        senders = self._hs.config.worker.federation_shard_config
        return [shown_instance(name) for name in senders.instances]

    @property
    def can_tell_others(self) -> bool:
        """Whether this process is connected with the others, through Redis."""
        return self._hs.get_replication_command_handler().connected()

    def sender_of(self, destination: str) -> str | None:
        """Return the name of the process that sends to a destination.

        The main process is called `main`. None if this process knows of none: see
        `senders`.
        """
        senders = self._hs.config.worker.federation_shard_config
        for name in senders.instances:
            if senders.should_handle(name, destination):
                return shown_instance(name)
        return None

    def wake(self, destination: str) -> None:
        """Have this process try a destination now, if it sends to it."""
        self._hs.get_notifier().notify_remote_server_up(destination)

    def wake_elsewhere(self, destination: str) -> None:
        """Have every other process try a destination now: also one without the module.

        It may come before what this process has just changed in Synapse's caches.
        """
        self._hs.get_replication_command_handler().send_remote_server_up(destination)

    @property
    def is_allowed(self) -> Callable[[str], bool]:
        """Tells whether `federation_domain_whitelist` lets requests to a server out."""
        config = self._hs.config.federation
        return config.is_domain_allowed_according_to_federation_whitelist

    # -- who makes a request ----------------------------------------------------------

    async def require_admin(self, request: SynapseRequest) -> Requester:
        """Return who makes a request, a server admin.

        Synapse's own check, which also holds where accounts are delegated to an
        authentication service (`synapse/rest/admin/_base.py`).

        Raises:
            SynapseError: 401 without a valid access token, 403 if the user is no admin.
        """
        requester = await self.require_user(request)
        await assert_user_is_admin(self._hs.get_auth(), requester)
        return requester

    async def require_user(self, request: SynapseRequest) -> Requester:
        """Return who makes a request, admin or not.

        Raises:
            SynapseError: 401 without a valid access token.
        """
        try:
            return await self._hs.get_auth().get_user_by_req(request)
        except UnicodeDecodeError as e:
            # It is not ASCII.
            raise SynapseError(
                HTTPStatus.UNAUTHORIZED, "Invalid access token", Codes.UNKNOWN_TOKEN
            ) from e


def shown_instance(instance: str) -> str:
    """Return the name of a process as it is in `instance_map`."""
    return MAIN if instance == MAIN_PROCESS_INSTANCE_NAME else instance


def stored_instance(instance: str) -> str:
    """Return the name of a process as it is in Synapse's tables."""
    return MAIN_PROCESS_INSTANCE_NAME if instance == MAIN else instance


def outbound_instances(hs: "HomeServer") -> list[str] | None:
    """Return the processes that go out to other servers in this one's stead.

    None if this one goes itself (`outbound_federation_restricted_to`).
    """
    allowed = hs.config.worker.outbound_federation_restricted_to
    if hs.get_instance_name() in allowed:
        return None
    return sorted(map(shown_instance, allowed.instances or []))
