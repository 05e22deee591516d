# SPDX-License-Identifier: Apache-2.0
"""The JSON body of a request of v2: whatever is misspelt is an error."""

from collections.abc import Collection
from typing import Any

from synapse.module_api import SynapseRequest, parse_json_object_from_request

from synapse_federation_admin.api._base import invalid_param
from synapse_federation_admin.failures.classify import bounded

_MAX_REASON = 1000


class Body:
    """The keys of a body, or of an object in it.

    Every method raises 400 `M_INVALID_PARAM`, naming the key, if its value is wrong.
    """

    def __init__(self, values: dict[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    @classmethod
    def parse(cls, request: SynapseRequest, keys: Collection[str]) -> "Body":
        """Parse the body of a request; an empty one stands for `{}`.

        Args:
            request: The request.
            keys: The keys that it may have.

        Raises:
            SynapseError: 400 `M_NOT_JSON`, `M_BAD_JSON`, or `M_INVALID_PARAM` for an
                unknown key.
        """
        values = parse_json_object_from_request(request, allow_empty_body=True)
        body = cls(values)
        body.require_known(keys)
        return body

    def require_known(self, keys: Collection[str]) -> None:
        """Refuse keys that are not known."""
        for key in self._values:
            if key not in keys:
                known = (
                    ", ".join(f"'{self._prefix}{known}'" for known in keys) or "none"
                )
                raise invalid_param(
                    f"Unknown key '{self._prefix}{bounded(key, 100)}'; known are: "
                    f"{known}"
                )

    def __contains__(self, key: str) -> bool:
        """Tell whether there is a key."""
        return key in self._values

    def object(self, key: str, keys: Collection[str]) -> "Body":
        """Return an object, whose keys are named in full in errors."""
        value = self._values[key]
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        body = Body(value, f"{self._prefix}{key}.")
        body.require_known(keys)
        return body

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return a boolean."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def integer(self, key: str, *, default: int | None, least: int, most: int) -> int:
        """Return an integer; None as default: it is required."""
        value = self._values.get(key, default)
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not least <= value <= most
        ):
            raise self._wrong(key, f"an integer from {least} to {most}")
        return value

    def number(
        self, key: str, *, default: float, least: float, most: float
    ) -> int | float:
        """Return a number."""
        value = self._values.get(key, default)
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not least <= value <= most
        ):
            raise self._wrong(key, f"a number from {least:g} to {most:g}")
        return value

    def text(self, key: str) -> str:
        """Return a text; "" if it is not there."""
        value = self._values.get(key, "")
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        self._require_whole(key, value)
        return value

    def texts(self, key: str, most: int) -> list[str]:
        """Return a list of texts."""
        value = self._values[key]
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(key, f"a list of at most {most} strings")
        if not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of strings")
        for item in value:
            self._require_whole(key, item)
        return value

    def text_or_texts(self, key: str, most: int) -> list[str]:
        """Return a text, or a list of texts, as a list."""
        value = self._values[key]
        return [self.text(key)] if isinstance(value, str) else self.texts(key, most)

    def reason(self) -> str | None:
        """Return `reason`: why, as the admin says; None if he does not."""
        reason = self.text("reason")
        if len(reason) > _MAX_REASON or "\0" in reason:
            raise self._wrong(
                "reason", f"a string of at most {_MAX_REASON} characters without NUL"
            )
        return reason or None

    def _require_whole(self, key: str, text: str) -> None:
        """Refuse half of a surrogate pair, which no database and no answer takes."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self._wrong(key, "of whole characters only") from None

    def _wrong(self, key: str, expected: str) -> Exception:
        return invalid_param(f"Key '{self._prefix}{key}' must be {expected}")
