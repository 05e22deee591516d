# SPDX-License-Identifier: Apache-2.0
"""Names to which nothing is sent, whoever asks for it."""

from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.server_name import (
    InvalidServerNameError,
    ServerName,
)


def why_not_contacted(homeserver: Homeserver, name: str) -> Failure | None:
    """Tell why requests may not be sent to a server name at all; None if they may."""
    if failure := why_invalid(homeserver, name):
        return failure
    if not homeserver.is_allowed(name):
        return Failure(FailureKind.NOT_ALLOWED)
    return None


def why_invalid(homeserver: Homeserver, name: str) -> Failure | None:
    """Tell why a name leads to no other server; None if it may.

    Any user can make up such names, and some of them would be looked up for long.
    """
    try:
        ServerName.parse(name)
    except InvalidServerNameError as e:
        return invalid_name(e)
    # Host names are the same in capitals.
    if name.lower() == homeserver.server_name.lower():
        return Failure(FailureKind.INVALID_NAME, Reason.OWN_NAME)
    return None


def invalid_name(error: InvalidServerNameError) -> Failure:
    """Return the failure to send anything to what is no server name."""
    return Failure(FailureKind.INVALID_NAME, Reason[error.fault.name])
