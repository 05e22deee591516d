# SPDX-License-Identifier: Apache-2.0
"""Names to which nothing is sent, whoever asks for it."""

from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.server_name import (
    InvalidServerNameError,
    ServerName,
)


def why_not_contacted(homeserver: Homeserver, name: str) -> Failure | None:
    """Tell why requests may not be sent to a server name at all; None if they may.

    Any user can make up such names, and some of them would be looked up for long.
    """
    try:
        host = ServerName.parse(name).host
    except InvalidServerNameError as e:
        return invalid_name(e)
    reason = None
    if not homeserver.is_server_name(name):
        reason = Reason.NAME_REFUSED
    elif not homeserver.federation.can_be_host(host):
        reason = Reason.NO_HOST_NAME
    elif name == homeserver.server_name:
        reason = Reason.OWN_NAME
    if reason is not None:
        return Failure(FailureKind.INVALID_NAME, reason)
    if not homeserver.is_allowed(name):
        return Failure(FailureKind.NOT_ALLOWED)
    return None


def invalid_name(error: InvalidServerNameError) -> Failure:
    """Return the failure to send anything to what is no server name."""
    return Failure(FailureKind.INVALID_NAME, Reason[error.fault.name])
