# SPDX-License-Identifier: Apache-2.0
"""What every servlet shares: paths, the admin check, and the parsing of parameters."""

import re
from collections.abc import Hashable, Sequence
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from synapse.module_api import JsonDict, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.homeserver.features import Feature, Features
from synapse_federation_admin.homeserver.servlets import Requester, RestServlet
from synapse_federation_admin.storage.audit_entry import Actor

# What a feature needs of Synapse may be missing: that must not take others away.
if TYPE_CHECKING:
    from synapse_federation_admin.destinations.backlog import BacklogStore
    from synapse_federation_admin.destinations.indexes import DestinationIndexes
    from synapse_federation_admin.destinations.pagination import Cursors
    from synapse_federation_admin.destinations.reader import DestinationReader
    from synapse_federation_admin.destinations.shared_rooms import SharedRoomsStore
    from synapse_federation_admin.destinations.store import DestinationStore
    from synapse_federation_admin.destinations.summary import SummaryStore
    from synapse_federation_admin.diagnosis.diagnose import Diagnoses
    from synapse_federation_admin.history.outages import Outages
    from synapse_federation_admin.history.recent_attempts import RecentAttemptsStore
    from synapse_federation_admin.history.store import HistoryStore
    from synapse_federation_admin.homeserver.homeserver import Homeserver
    from synapse_federation_admin.repair.cap_backoff import CapBackoff
    from synapse_federation_admin.repair.follow_up import FollowUp
    from synapse_federation_admin.repair.forget import Forget
    from synapse_federation_admin.repair.forget_many import ForgetMany
    from synapse_federation_admin.repair.housekeeping import Housekeeping
    from synapse_federation_admin.repair.reconnect import Reconnect
    from synapse_federation_admin.repair.reconnect_many import ReconnectMany
    from synapse_federation_admin.repair.reset import ConnectionReset
    from synapse_federation_admin.repair.runner import Runner
    from synapse_federation_admin.repair.wake import Wake
    from synapse_federation_admin.storage.audit import Audit
    from synapse_federation_admin.storage.runs import RunStore
    from synapse_federation_admin.storage.schema import Tables

E = TypeVar("E", bound=Enum)

# Longer numbers are valid and mean the same: more rows than any table has. Numbers of
# this many digits are within the 64 bits of both databases.
_MAX_DIGITS = 18


class Services:
    """What features are made of, and what servlets act with.

    A part is there if the feature that makes it is on; else whoever asks for it raises
    a `FeatureOffError`.
    """

    features: Features
    # Of `BASE`.
    homeserver: "Homeserver"
    tables: "Tables"
    destinations: "DestinationStore"
    reader: "DestinationReader"
    summary: "SummaryStore"
    indexes: "DestinationIndexes"
    outages: "Outages"
    wake: "Wake"
    # Of the feature that is named beside it in `_OWNERS`.
    cursors: "Cursors[Any]"
    reset: "ConnectionReset"
    follow_up: "FollowUp"
    backlog: "BacklogStore"
    shared_rooms: "SharedRoomsStore"
    audit: "Audit"
    housekeeping: "Housekeeping"
    reconnect: "Reconnect"
    runs: "RunStore"
    runner: "Runner"
    reconnect_many: "ReconnectMany"
    bulk_max_per_second: int
    cap_backoff: "CapBackoff"
    forget: "Forget"
    forget_many: "ForgetMany"
    diagnoses: "Diagnoses"
    history: "HistoryStore"
    recent_attempts: "RecentAttemptsStore"

    def __init__(self, features: Features) -> None:
        self.features = features
        features.on_change(self._drop)

    def __getattr__(self, name: str) -> Any:
        """Say why a part is not there."""
        self.features.require(_OWNERS.get(name, Feature.BASE))
        raise AttributeError(name)

    def _drop(self, feature: Feature) -> None:
        for name, owner in _OWNERS.items():
            if owner is feature:
                self.__dict__.pop(name, None)


_OWNERS = {
    "cursors": Feature.V1_LISTS,
    "reset": Feature.V1_RESET,
    "follow_up": Feature.V1_RESET,
    "backlog": Feature.BACKLOG,
    "shared_rooms": Feature.SHARED_ROOMS,
    "audit": Feature.AUDIT,
    "housekeeping": Feature.AUDIT,
    "reconnect": Feature.RECONNECT,
    "runs": Feature.AUDIT,
    "runner": Feature.RUNS,
    "reconnect_many": Feature.RUNS,
    "cap_backoff": Feature.RUNS,
    "forget": Feature.RUNS,
    "forget_many": Feature.RUNS,
    "diagnoses": Feature.DIAGNOSIS,
    "history": Feature.HISTORY,
    "recent_attempts": Feature.HISTORY,
}


class AdminServlet(RestServlet):
    """A servlet below `/_synapse/admin`.

    Attributes:
        PATH: Its path, from the API version on, as `ENDPOINTS` has it.
    """

    PATH: str

    def __init__(self, services: Services) -> None:
        self.PATTERNS = [path_pattern(self.PATH)]
        self._services = services


class OffServlet(AdminServlet):
    """Says why there is no answer: 503 `M_UNKNOWN`."""

    def __init__(self, services: Services, path: str, needs: Sequence[Feature]) -> None:
        self.PATH = path
        super().__init__(services)
        self._needs = needs

    async def on_GET(
        self, request: SynapseRequest, **_parameters: str
    ) -> tuple[int, JsonDict]:
        """Answer any method."""
        features = self._services.features
        if features.is_on(Feature.BASE):
            await self._services.homeserver.require_admin(request)
        features.require(*self._needs)
        raise AssertionError("all that it needs is on")

    on_POST = on_PUT = on_DELETE = on_GET


def path_pattern(path: str) -> re.Pattern[str]:
    """Return the pattern of a path, written as Synapse writes those of its servlets.

    An empty parameter matches, so that it gets an answer of ours.
    """
    return re.compile(
        "^/_synapse/admin" + re.sub("<([a-z_]+)>", r"(?P<\1>[^/]*)", path) + "$"
    )


def actor(requester: Requester) -> Actor:
    """Return who makes a request, for the audit."""
    user_id = requester.user.to_string()
    entity = requester.authenticated_entity
    return Actor(user_id, entity if entity != user_id else None)


def unknown_destination() -> SynapseError:
    """Return the error for a destination that Synapse has no row for."""
    return SynapseError(HTTPStatus.NOT_FOUND, "Unknown destination", Codes.NOT_FOUND)


def invalid_param(message: str) -> SynapseError:
    """Return the error for a bad parameter, which the message names."""
    return SynapseError(HTTPStatus.BAD_REQUEST, message, Codes.INVALID_PARAM)


def client_of(request: SynapseRequest, requester: Requester) -> Hashable:
    """Return who asks for a page, for what is remembered of their walk."""
    agent = request.getHeader("User-Agent") or ""
    return (
        requester.user.to_string(),
        requester.access_token_id,
        requester.device_id,
        getattr(request.getClientAddress(), "host", None),
        agent[:200],
    )


def _first(request: SynapseRequest, name: str) -> bytes | None:
    """Return a query parameter's value: the first one, where it is repeated."""
    values = (request.args or {}).get(name.encode())
    return values[0] if values else None


def parse_count(request: SynapseRequest, name: str, *, default: int) -> int:
    """Parse a query parameter that is a number of rows: 0 or more, without a limit.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter.
    """
    value = _first(request, name)
    if value is None:
        return default
    # Only ASCII digits: int() also takes "1_000", " 7" and digits of other scripts.
    if not re.fullmatch(b"[0-9]+", value):
        raise invalid_param(f"Query parameter '{name}' must be a non-negative integer")
    digits = value.lstrip(b"0") or b"0"
    return int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS


def parse_choice(
    request: SynapseRequest, name: str, *, default: E, choices: Sequence[E] = ()
) -> E:
    """Parse a query parameter that is one of an Enum's values.

    Args:
        request: The request.
        name: The parameter.
        default: What stands for a parameter that is not there.
        choices: Which members are valid. Empty: all.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter and the values.
    """
    value = _first(request, name)
    if value is None:
        return default
    valid = choices or tuple(type(default))
    for choice in valid:
        if value == choice.value.encode():
            return choice
    names = ", ".join(f"'{choice.value}'" for choice in valid)
    raise invalid_param(f"Query parameter '{name}' must be one of {names}")


def parse_text(request: SynapseRequest, name: str) -> str:
    """Parse a query parameter that is a text; "" if it is not there.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter, if it is not UTF-8.
    """
    value = _first(request, name)
    if value is None:
        return ""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid_param(f"Query parameter '{name}' must be UTF-8") from None
