# SPDX-License-Identifier: Apache-2.0
"""What can be off by itself, and why it is."""

import logging
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus

from synapse.module_api.errors import Codes, SynapseError

logger = logging.getLogger(__name__)


# What Python raises where something of Synapse's is not what it was, and the self-check
# could not see that.
NOT_AS_EXPECTED = (AttributeError, ImportError, LookupError, NameError, TypeError)


class Feature(Enum):
    """What is switched off by itself if Synapse no longer has what it needs."""

    # The place of the admin API. Off: the module stands aside, and Synapse answers.
    MOUNT = "mount"
    # What all others need. Off: Synapse's own servlets answer v1, also on workers.
    BASE = "base"
    # Off, too: Synapse's own servlets answer.
    V1_LISTS = "v1_lists"
    V1_RESET = "v1_reset"
    # All that is below v2.
    V2 = "v2"
    LISTS = "lists"
    BACKLOG = "backlog"
    SHARED_ROOMS = "shared_rooms"
    AUDIT = "audit"
    RECONNECT = "reconnect"
    RUNS = "runs"
    FLUSH_CACHES = "flush_caches"
    DIAGNOSIS = "diagnosis"
    HISTORY = "history"
    METRICS = "metrics"
    INDEXES = "indexes"
    SENDERS = "senders"
    CONSOLE = "console"


class FeatureOffError(SynapseError):
    """A feature is off: 503 `M_UNKNOWN`, naming it and the reason."""

    def __init__(self, feature: Feature, reason: str) -> None:
        self.feature = feature
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"The feature '{feature.value}' is off: {reason}",
            Codes.UNKNOWN,
        )


class Features:
    """Which features are off."""

    def __init__(self) -> None:
        self._reasons: dict[Feature, str] = {}
        # Those of them that nobody wants to be on.
        self._unwanted: set[Feature] = set()
        self._changed: list[Callable[[Feature], None]] = []

    def on_change(self, func: Callable[[Feature], None]) -> None:
        """Have a function called with each feature that is switched off."""
        self._changed.append(func)

    def is_on(self, feature: Feature) -> bool:
        """Tell whether a feature is on."""
        return feature not in self._reasons

    def reason(self, feature: Feature) -> str | None:
        """Return why a feature is off; None if it is on."""
        return self._reasons.get(feature)

    def is_missing(self, feature: Feature) -> bool:
        """Tell whether a feature is off that the configuration wants."""
        return feature in self._reasons.keys() - self._unwanted

    def require(self, *features: Feature) -> None:
        """Go on only if all of some features are on.

        Raises:
            FeatureOffError: One is off.
        """
        for feature in features:
            if feature in self._reasons:
                raise FeatureOffError(feature, self._reasons[feature])

    def leave_off(self, feature: Feature, reason: str) -> None:
        """Switch a feature off that the configuration does not want: no error."""
        self._unwanted.add(feature)
        self.switch_off(feature, reason)

    def switch_off(self, feature: Feature, error: str | Exception) -> None:
        """Switch a feature off, and log it; unless it is off already.

        Args:
            feature: The feature.
            error: Why. An exception is a bug, and is logged with its traceback, but for
                one that says that another feature is off.
        """
        if feature in self._reasons:
            return
        is_bug = isinstance(error, Exception) and not isinstance(error, FeatureOffError)
        if isinstance(error, FeatureOffError):
            reason = f"it needs '{error.feature.value}', which is off"
            if error.feature in self._unwanted:
                self._unwanted.add(feature)
        elif isinstance(error, Exception):
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = error
        self._reasons[feature] = reason
        logger.log(
            logging.INFO if feature in self._unwanted else logging.ERROR,
            "The feature '%s' is off: %s",
            feature.value,
            reason,
            exc_info=error if is_bug else None,  # type: ignore[arg-type]
        )
        for func in self._changed:
            func(feature)
