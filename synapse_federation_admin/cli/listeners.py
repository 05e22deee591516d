# SPDX-License-Identifier: Apache-2.0
"""Which listener of homeserver.yaml serves the admin API."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synapse_federation_admin.cli.exits import Exit, FailedError

# What listens on all addresses listens on these.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104


def read_listener(paths: Sequence[Path]) -> str:
    """Return the base URL of a listener that serves the admin API.

    It may be a unix socket's.

    Args:
        paths: homeserver.yaml, and what Synapse is given with it: a worker's file, or a
            folder of such files.

    Raises:
        FailedError: It cannot be read, or none does.
    """
    settings: dict[str, Any] = {}
    for path in paths:
        # As Synapse has it: a later file's keys take the place of an earlier one's.
        for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
            settings.update(_read(file))
    listeners = settings.get("worker_listeners") or settings.get("listeners")
    found = [
        listener
        for listener in (listeners if isinstance(listeners, list) else [])
        if _has_admin_api(listener)
    ]
    if not found:
        raise FailedError(
            f"{paths[0]} has no listener of the type http with the resource `client`,"
            " which is where the admin API is.",
            Exit.USAGE,
        )
    return _url(min(found, key=_rank))


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        with path.open(encoding="utf-8") as file:
            settings = yaml.safe_load(file)
    except OSError as e:
        raise FailedError(f"{path} cannot be read: {e.strerror}", Exit.USAGE) from e
    except (yaml.YAMLError, ValueError) as e:
        raise FailedError(f"{path} is no YAML: {e}", Exit.USAGE) from e
    if settings is None:
        # There is nothing in it, which Synapse takes, too.
        return {}
    if not isinstance(settings, dict):
        raise FailedError(f"{path} is no configuration of Synapse.", Exit.USAGE)
    return settings


def _has_admin_api(listener: Any) -> bool:
    if not isinstance(listener, dict) or listener.get("type") != "http":
        return False
    resources = listener.get("resources")
    return any(
        "client" in (resource.get("names") or ())
        for resource in (resources if isinstance(resources, list) else [])
        if isinstance(resource, dict)
    )


def _rank(listener: Mapping[str, Any]) -> int:
    """Return how hard a listener is to reach from here: a certificate is of a name."""
    if "path" in listener:
        return 0
    return 2 if listener.get("tls") else 1


def _url(listener: Mapping[str, Any]) -> str:
    if "path" in listener:
        return f"unix:{listener['path']}"
    addresses = listener.get("bind_addresses") or [listener.get("bind_address") or ""]
    # What Synapse listens on by default is both; IPv4 is on every machine.
    address = str("0.0.0.0" if "0.0.0.0" in addresses else addresses[0])  # noqa: S104
    bracketed = f"[{address}]" if ":" in address else address
    host = _ANY.get(address, bracketed)
    scheme = "https" if listener.get("tls") else "http"
    return f"{scheme}://{host}:{listener.get('port')}"
