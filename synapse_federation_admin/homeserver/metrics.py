# SPDX-License-Identifier: Apache-2.0
"""The metrics of this module, on Synapse's metrics endpoint: docs/metrics.md.

None has a label for a destination: there may be a million. As with Synapse's own, the
label `server_name` is this homeserver's (`synapse/metrics/__init__.py`).
"""

from collections.abc import Iterable, Mapping

from prometheus_client import Counter, Gauge, Summary
from synapse.metrics import SERVER_NAME_LABEL

from synapse_federation_admin.homeserver.features import Feature, Features

_PREFIX = "synapse_federation_admin_"

_destinations = Gauge(
    f"{_PREFIX}destinations", "Known destinations", [SERVER_NAME_LABEL, "status"]
)
_failing = Gauge(
    f"{_PREFIX}failing_destinations",
    "Failing destinations, by the kind of their last failure",
    [SERVER_NAME_LABEL, "kind"],
)
_backlog = Gauge(
    f"{_PREFIX}backlog", "What waits for all destinations", [SERVER_NAME_LABEL, "queue"]
)
_oldest_to_device = Gauge(
    f"{_PREFIX}oldest_to_device_age_seconds",
    "For how long the oldest to-device message has been waiting; 0 if none waits",
    [SERVER_NAME_LABEL],
)
_oldest_stuck_to_device = Gauge(
    f"{_PREFIX}oldest_stuck_to_device_age_seconds",
    "For how long the oldest to-device message for a destination that is not failing "
    "has been waiting; 0 if none waits",
    [SERVER_NAME_LABEL],
)
_outlook = Gauge(
    f"{_PREFIX}outlook",
    "1 for the verdict on whether servers fail for a cause of ours",
    [SERVER_NAME_LABEL, "verdict"],
)
_tried = Gauge(
    f"{_PREFIX}tried_destinations",
    "Destinations tried in the last hour",
    [SERVER_NAME_LABEL, "outcome"],
)
_updated = Gauge(
    f"{_PREFIX}updated_timestamp_seconds",
    "When the gauges of this module were brought up to date",
    [SERVER_NAME_LABEL],
)
_failures = Counter(
    f"{_PREFIX}failures",
    "Federation requests that failed so that the destination is backed off from",
    [SERVER_NAME_LABEL, "kind"],
)
_repairs = Counter(
    f"{_PREFIX}repairs",
    "What was done through this module, by what came of it",
    [SERVER_NAME_LABEL, "action", "outcome"],
)
_diagnoses = Counter(
    f"{_PREFIX}diagnoses",
    "Diagnoses, by their verdict and the kind of the cause",
    [SERVER_NAME_LABEL, "verdict", "kind"],
)
_features = Gauge(
    f"{_PREFIX}feature",
    "1 if a feature is on, 0 if Synapse no longer has what it needs",
    [SERVER_NAME_LABEL, "feature"],
)
_db_work = Summary(
    f"{_PREFIX}db_txn_duration_seconds",
    "How long this module's own database transactions took",
    [SERVER_NAME_LABEL, "desc"],
)


class Metrics:
    """What is counted and measured, of one homeserver."""

    def __init__(self, server_name: str) -> None:
        """Begin to count.

        Args:
            server_name: The homeserver's name.
        """
        self._server_name = server_name

    # A counter that is not there before it is counted up for the first time makes
    # Prometheus miss that time: an increase needs a value before it.

    def show_failures(self, kinds: Iterable[str]) -> None:
        """Show how many failures of each kind there were, from none on."""
        for kind in kinds:
            _failures.labels(self._server_name, kind)

    def show_repairs(self, outcomes: Mapping[str, Iterable[str]]) -> None:
        """Show how often each outcome of each action there was, from never on."""
        for action, all_of_it in outcomes.items():
            for outcome in all_of_it:
                _repairs.labels(self._server_name, action, outcome)

    def count_failures(self, kind: str, count: int) -> None:
        """Count failures of real requests."""
        _failures.labels(self._server_name, kind).inc(count)

    def count_repair(self, action: str, outcome: str) -> None:
        """Count something that was done through this module."""
        _repairs.labels(self._server_name, action, outcome).inc()

    def count_diagnosis(self, verdict: str, kind: str) -> None:
        """Count a diagnosis."""
        _diagnoses.labels(self._server_name, verdict, kind).inc()

    def measure_db_work(self, desc: str, duration_s: float) -> None:
        """Take note of how long a transaction has taken. On any thread."""
        _db_work.labels(self._server_name, desc).observe(duration_s)

    def show_destinations(self, by_status: Mapping[str, int]) -> None:
        """Show how many destinations there are. Each status is to be there."""
        for status, count in by_status.items():
            _destinations.labels(self._server_name, status).set(count)

    def show_failing(self, by_kind: Mapping[str, int]) -> None:
        """Show how many destinations fail. Each kind is to be there."""
        for kind, count in by_kind.items():
            _failing.labels(self._server_name, kind).set(count)

    def show_backlog(
        self,
        by_queue: Mapping[str, int],
        *,
        oldest_age_s: float,
        oldest_stuck_age_s: float,
    ) -> None:
        """Show what waits. Each queue is to be there."""
        for queue, count in by_queue.items():
            _backlog.labels(self._server_name, queue).set(count)
        _oldest_to_device.labels(self._server_name).set(oldest_age_s)
        _oldest_stuck_to_device.labels(self._server_name).set(oldest_stuck_age_s)

    def show_outlook(
        self, verdicts: Mapping[str, bool], tried: Mapping[str, int]
    ) -> None:
        """Show whose fault failures are. Each verdict is to be there."""
        for verdict, holds in verdicts.items():
            _outlook.labels(self._server_name, verdict).set(holds)
        for outcome, count in tried.items():
            _tried.labels(self._server_name, outcome).set(count)

    def show_features(self, features: Features) -> None:
        """Show which features are on, from now on."""

        def show(feature: Feature) -> None:
            labels = _features.labels(self._server_name, feature.value)
            labels.set(features.is_on(feature))

        for feature in Feature:
            show(feature)
        features.on_change(show)

    def show_updated(self, now_s: float) -> None:
        """Show when all that is shown was brought up to date."""
        _updated.labels(self._server_name).set(now_s)
