# SPDX-License-Identifier: Apache-2.0
"""What is told of a failure by how a request came to the place where it failed."""

from synapse_federation_admin.failures.kinds import FailureKind, Fault
from synapse_federation_admin.failures.links import How

# What is told in place of a kind's advice, and whose fault it is, where a request came
# to the place by such a link last.
BY_LINK: dict[tuple[FailureKind, How], tuple[str, Fault]] = {
    (FailureKind.DNS_NOT_FOUND, How.FILE): (
        "Tell their admin: m.server has to name a valid host that exists.",
        Fault.THEM,
    ),
    (FailureKind.DNS_NOT_FOUND, How.FILE_WITHOUT_PORT): (
        "Tell their admin: m.server has to name a valid host that exists.",
        Fault.THEM,
    ),
    (FailureKind.DNS_NOT_FOUND, How.SERVICE): (
        "Tell their admin: the SRV record has to name a valid host that exists, or to "
        "be removed.",
        Fault.THEM,
    ),
    (FailureKind.WELL_KNOWN_UNREACHABLE, How.REDIRECT): (
        "Tell their admin: correct the redirect of the file on their web server.",
        Fault.THEM,
    ),
    (FailureKind.CONNECTION_REFUSED, How.PORT): (
        "Tell their admin: the homeserver is down, or it is not at port {port}.",
        Fault.THEM,
    ),
    (FailureKind.CONNECTION_REFUSED, How.FILE): (
        "Tell their admin: the homeserver is down, or m.server has to name another "
        "port than {port}.",
        Fault.THEM,
    ),
    (FailureKind.CONNECTION_REFUSED, How.FILE_WITHOUT_PORT): (
        "Tell their admin: the homeserver is down; or it is at port 443, and m.server "
        'has to be "{to}:443".',
        Fault.THEM,
    ),
    (FailureKind.CONNECTION_REFUSED, How.SERVICE): (
        "Tell their admin: the homeserver is down, or the SRV record has to name "
        "another host or port.",
        Fault.THEM,
    ),
    **{
        (kind, How.SECOND_FILE): (
            "Tell their admin: only one delegation is followed; m.server has to be "
            '"{to}:{port}" itself.',
            Fault.THEM,
        )
        for kind in FailureKind
    },
    (FailureKind.CONNECTION_TIMEOUT, How.FILE_WITHOUT_PORT): (
        "Tell their admin: the host is down, or a firewall drops port {port}; or "
        'm.server has to be "{to}:443".',
        Fault.THEM,
    ),
}
