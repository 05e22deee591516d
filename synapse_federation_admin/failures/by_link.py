# SPDX-License-Identifier: Apache-2.0
"""What is told of a failure by how a request came to the place where it failed."""

from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.failures.links import How

_NAME_A_HOST = "Tell their admin: m.server has to name a valid host that exists."

# What is told in place of a kind's advice where a request came to the place by such a
# link last. It is always their admin who has to act.
BY_LINK: dict[tuple[FailureKind, How], str] = {
    (FailureKind.DNS_NOT_FOUND, How.FILE): _NAME_A_HOST,
    (FailureKind.DNS_NOT_FOUND, How.FILE_WITHOUT_PORT): _NAME_A_HOST,
    (FailureKind.DNS_NOT_FOUND, How.SERVICE): (
        "Tell their admin: the SRV record has to name a valid host that exists, or to "
        "be removed."
    ),
    (FailureKind.WELL_KNOWN_UNREACHABLE, How.REDIRECT): (
        "Tell their admin: correct the redirect of the file on their web server."
    ),
    (FailureKind.CONNECTION_REFUSED, How.PORT): (
        "Tell their admin: the homeserver is down, or it is not at port {port}."
    ),
    (FailureKind.CONNECTION_REFUSED, How.FILE): (
        "Tell their admin: the homeserver is down, or m.server has to name another "
        "port than {port}."
    ),
    (FailureKind.CONNECTION_REFUSED, How.FILE_WITHOUT_PORT): (
        "Tell their admin: the homeserver is down; or it is at port 443, and m.server "
        'has to be "{to}:443".'
    ),
    (FailureKind.CONNECTION_REFUSED, How.SERVICE): (
        "Tell their admin: the homeserver is down, or the SRV record has to name "
        "another host or port."
    ),
    (FailureKind.CONNECTION_TIMEOUT, How.FILE_WITHOUT_PORT): (
        "Tell their admin: the host is down, or a firewall drops port {port}; or "
        'm.server has to be "{to}:443".'
    ),
} | dict.fromkeys(
    [(kind, How.SECOND_FILE) for kind in FailureKind],
    "Tell their admin: only one delegation is followed; m.server has to be "
    '"{to}:{port}" itself.',
)
