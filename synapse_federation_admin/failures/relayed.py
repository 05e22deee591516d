# SPDX-License-Identifier: Apache-2.0
"""Failures that one process of this homeserver tells another one, as text."""

import json

import attr

from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason

# The facts that are told.
_TOLD = ("host", "status", "said", "exception", "code", "issuer", "subject", "ago_ms")


def description_of(failure: Failure) -> str:
    """Return what another process is told of a failure."""
    facts = attr.asdict(failure.facts, filter=lambda field, _: field.name in _TOLD)
    facts["also"] = [kind.value for kind in failure.facts.also]
    reason = failure.reason.value if failure.reason else None
    return json.dumps([failure.kind.value, reason, facts])


def failure_told(description: str) -> Failure:
    """Return the failure that another process has met; see `description_of`."""
    try:
        kind, reason, facts = json.loads(description)
        also = facts.pop("also", ())
        return Failure(
            FailureKind[kind.upper()],
            Reason[reason.upper()] if reason else None,
            Facts(
                **facts,
                also=tuple(FailureKind[kind.upper()] for kind in also),
                is_relayed=True,
            ),
        )
    except (AttributeError, LookupError, ValueError, TypeError):
        # It has another release of this module.
        return Failure(FailureKind.OTHER, facts=Facts(is_relayed=True))
