# SPDX-License-Identifier: Apache-2.0
"""The metrics of this module, on Synapse's metrics endpoint: docs/metrics.md.

None has a label for a destination: there may be a million. As with Synapse's own, the
label `server_name` is this homeserver's (`synapse/metrics/__init__.py`).
"""

from typing import TypeVar

from prometheus_client import Counter, Gauge
from synapse.metrics import SERVER_NAME_LABEL

M = TypeVar("M", Counter, Gauge)

_PREFIX = "synapse_federation_admin_"

DESTINATIONS = Gauge(
    f"{_PREFIX}destinations", "Known destinations", [SERVER_NAME_LABEL, "status"]
)
FAILING = Gauge(
    f"{_PREFIX}failing_destinations",
    "Failing destinations, by the kind of their last failure",
    [SERVER_NAME_LABEL, "kind"],
)
BACKLOG = Gauge(
    f"{_PREFIX}backlog", "What waits for all destinations", [SERVER_NAME_LABEL, "queue"]
)
OLDEST_TO_DEVICE = Gauge(
    f"{_PREFIX}oldest_to_device_age_seconds",
    "For how long the oldest to-device message has been waiting; 0 if none waits",
    [SERVER_NAME_LABEL],
)
OLDEST_STUCK_TO_DEVICE = Gauge(
    f"{_PREFIX}oldest_stuck_to_device_age_seconds",
    "For how long the oldest to-device message for a destination that is not failing "
    "has been waiting; 0 if none waits",
    [SERVER_NAME_LABEL],
)
OUTLOOK = Gauge(
    f"{_PREFIX}outlook",
    "1 for the verdict on whether servers fail for a cause of ours",
    [SERVER_NAME_LABEL, "verdict"],
)
TRIED = Gauge(
    f"{_PREFIX}tried_destinations",
    "Destinations tried in the last hour",
    [SERVER_NAME_LABEL, "outcome"],
)
SENDER_UP = Gauge(
    f"{_PREFIX}sender_up",
    "1 if a process that sends runs, 0 if not; no name: none sends",
    [SERVER_NAME_LABEL, "sender"],
)
SENDER_LATE = Gauge(
    f"{_PREFIX}sender_late",
    "1 if a process that sends was not seen for 30 s, or its reactor is 5 s late",
    [SERVER_NAME_LABEL, "sender"],
)
SENDER_BEHIND = Gauge(
    f"{_PREFIX}sender_behind_events",
    "Events to which a process that sends has not come; 10000 for so many or more",
    [SERVER_NAME_LABEL, "sender"],
)
SENDER_LAG = Gauge(
    f"{_PREFIX}sender_behind_seconds",
    "How long ago the oldest of those events was received; 0 if there is none",
    [SERVER_NAME_LABEL, "sender"],
)
SENDER_AHEAD = Gauge(
    f"{_PREFIX}sender_ahead_events",
    "By how much the position of a process that sends is beyond the newest event",
    [SERVER_NAME_LABEL, "sender"],
)
UPDATED = Gauge(
    f"{_PREFIX}updated_timestamp_seconds",
    "When the gauges of this module were brought up to date",
    [SERVER_NAME_LABEL],
)
FAILURES = Counter(
    f"{_PREFIX}failures",
    "Federation requests that failed so that the destination is backed off from",
    [SERVER_NAME_LABEL, "kind"],
)
REPAIRS = Counter(
    f"{_PREFIX}repairs",
    "What was done through this module, by what came of it",
    [SERVER_NAME_LABEL, "action", "outcome"],
)
DIAGNOSES = Counter(
    f"{_PREFIX}diagnoses",
    "Diagnoses, by their verdict and the kind of the cause",
    [SERVER_NAME_LABEL, "verdict", "kind"],
)
FEATURES = Gauge(
    f"{_PREFIX}feature",
    "1 if a feature is on, 0 if Synapse no longer has what it needs",
    [SERVER_NAME_LABEL, "feature"],
)


class Metrics:
    """The metrics of one homeserver."""

    def __init__(self, server_name: str) -> None:
        self._server_name = server_name

    def __call__(self, metric: M, *labels: str) -> M:
        """Return a metric for some values of its labels, `server_name` left out.

        From then on it is exported: a counter that is not there before it is counted up
        for the first time makes Prometheus miss that time. On any thread.
        """
        return metric.labels(self._server_name, *labels)
