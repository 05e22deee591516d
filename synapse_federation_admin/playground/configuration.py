# SPDX-License-Identifier: Apache-2.0
"""The configuration files of a Synapse of the playground's own."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen
from signedjson.key import generate_signing_key, write_signing_keys

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.processes import free_port
from synapse_federation_admin.playground.services import Database, Redis

Json = dict[str, Any]

MAIN = "main"
GENERIC_WORKER = "generic_worker"
FEDERATION_SENDERS = ("federation_sender_1", "federation_sender_2")
WORKERS = (GENERIC_WORKER, *FEDERATION_SENDERS)

_UNLIMITED = {"per_second": 10000, "burst_count": 10000}


@frozen
class Layout:
    """Which processes make up a Synapse, and where they listen."""

    address: str
    """The address of the federation listener."""
    federation_port: int
    client_ports: Mapping[str, int]
    """On 127.0.0.1, per process: the main process and, if there are any, workers.
    Those of the federation senders serve `/health` only."""
    replication_port: int
    """On 127.0.0.1; used if there are workers."""

    @property
    def server_name(self) -> str:
        """The homeserver's server name: where its federation listener is."""
        return f"{self.address}:{self.federation_port}"

    @property
    def processes(self) -> tuple[str, ...]:
        """The names of the processes, the main process first."""
        return tuple(self.client_ports)

    @classmethod
    def choose(cls, address: str, *, workers: bool) -> "Layout":
        """Choose free ports."""
        names = (MAIN, *WORKERS) if workers else (MAIN,)
        return cls(
            address=address,
            federation_port=free_port(address),
            client_ports={name: free_port() for name in names},
            replication_port=free_port(),
        )


def merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> Json:
    """Merge settings into others: mappings are merged, all else is replaced."""
    result = dict(base)
    for key, value in extra.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def write_configuration(
    folder: Path,
    layout: Layout,
    certificates: CertificateAuthority,
    *,
    registration_secret: str,
    database: Database | None = None,
    redis: Redis | None = None,
    module_config: Mapping[str, Any] | None = {},  # never changed
    extra_config: Mapping[str, Any] | None = None,
    extra_listeners: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write homeserver.yaml, and with workers `<worker>.yaml`, and what they name.

    Args:
        folder: where everything goes; must exist.
        layout: processes and ports.
        certificates: who issues the federation listener's certificate, and is trusted.
        registration_secret: the `registration_shared_secret`.
        database: a PostgreSQL database; SQLite in `folder` if there is none.
        redis: needed if the layout has workers.
        module_config: the module's configuration; None runs Synapse without it.
        extra_config: merged into homeserver.yaml at the end.
        extra_listeners: more listeners of the main process.
    """
    settings = _homeserver(
        folder,
        layout,
        certificates,
        registration_secret=registration_secret,
        database=database,
    )
    if module_config is not None:
        settings["modules"] = [
            {
                "module": "synapse_federation_admin.FederationAdmin",
                "config": dict(module_config),
            }
        ]
    if len(layout.processes) > 1:
        assert redis is not None, "workers need Redis"
        settings = merged(settings, _workers(layout, redis))
        settings["listeners"].append(
            _listener("127.0.0.1", layout.replication_port, ["replication"])
        )
    settings["listeners"] += map(dict, extra_listeners)
    settings = merged(settings, extra_config or {})

    with _private(folder / "signing.key").open("w") as file:
        write_signing_keys(file, [generate_signing_key("a_home")])
    _write(folder / "homeserver.yaml", settings)
    for name in layout.processes:
        _write(folder / f"{name}.log.yaml", _logging(folder / f"{name}.log"))
        if name != MAIN:
            _write(folder / f"{name}.yaml", _worker(folder, layout, name))


def _homeserver(
    folder: Path,
    layout: Layout,
    certificates: CertificateAuthority,
    *,
    registration_secret: str,
    database: Database | None,
) -> Json:
    files = certificates.files(layout.address)
    return {
        "server_name": layout.server_name,
        "public_baseurl": f"http://127.0.0.1:{layout.client_ports[MAIN]}/",
        "pid_file": str(folder / "main.pid"),
        "listeners": [
            _listener("127.0.0.1", layout.client_ports[MAIN], ["client", "metrics"]),
            _listener(
                layout.address,
                layout.federation_port,
                ["federation"],
                tls=True,
            ),
        ],
        "tls_certificate_path": str(files.certificate),
        "tls_private_key_path": str(files.private_key),
        "database": _database(folder, database),
        "log_config": str(folder / f"{MAIN}.log.yaml"),
        "media_store_path": str(folder / "media"),
        "signing_key_path": str(folder / "signing.key"),
        "registration_shared_secret": registration_secret,
        "macaroon_secret_key": secrets.token_hex(32),
        "form_secret": secrets.token_hex(32),
        "report_stats": False,
        "trusted_key_servers": [],
        # Federation on this machine, and nowhere else.
        "federation_custom_ca_list": [str(certificates.path)],
        "ip_range_blacklist": [],
        "federation_ip_range_blacklist": [],
        "presence": {"enabled": False},
        # Else the same /sync, asked again, gets the same answer for two minutes.
        "caches": {"sync_response_cache_duration": 0},
        # Cheap on purpose: nobody attacks these passwords.
        "bcrypt_rounds": 4,
        # Failures shall come in seconds; the backoff after them is Synapse's default.
        "federation": {
            "client_timeout": "5s",
            "max_short_retries": 1,
            "max_long_retries": 1,
            "max_short_retry_delay": 500,  # ms
            "max_long_retry_delay": 500,  # ms
            "destination_min_retry_interval": "10m",
        },
        **_rate_limits(),
    }


def _rate_limits() -> Json:
    return {
        "rc_message": dict(_UNLIMITED),
        "rc_registration": dict(_UNLIMITED),
        "rc_joins_per_room": dict(_UNLIMITED),
        "rc_login": {
            kind: dict(_UNLIMITED) for kind in ("address", "account", "failed_attempts")
        },
        "rc_joins": {kind: dict(_UNLIMITED) for kind in ("local", "remote")},
        "rc_invites": {
            kind: dict(_UNLIMITED) for kind in ("per_room", "per_user", "per_issuer")
        },
        "rc_federation": {
            "window_size": 1000,
            "sleep_limit": 10000,
            "sleep_delay": 1,
            "reject_limit": 10000,
            "concurrent": 100,
        },
    }


def _database(folder: Path, database: Database | None) -> Json:
    if database is None:
        return {
            "name": "sqlite3",
            "args": {"database": str(folder / "homeserver.db")},
        }
    return {
        "name": "psycopg2",
        "args": {
            "host": database.host,
            "user": database.user,
            "dbname": database.name,
            "cp_min": 1,
            "cp_max": 5,
        },
    }


def _workers(layout: Layout, redis: Redis) -> Json:
    return {
        # Workers have no replication listener, but whichever listener they have passes
        # requests to other servers on (`outbound_federation_restricted_to`).
        "instance_map": {
            "main": {"host": "127.0.0.1", "port": layout.replication_port},
            **{
                name: {"host": "127.0.0.1", "port": layout.client_ports[name]}
                for name in WORKERS
            },
        },
        "worker_replication_secret": secrets.token_hex(32),
        "redis": {
            "enabled": True,
            "host": redis.host,
            "port": redis.port,
            "password": redis.password,
        },
        "federation_sender_instances": list(FEDERATION_SENDERS),
    }


def _worker(folder: Path, layout: Layout, name: str) -> Json:
    served = "client" if name == GENERIC_WORKER else "health"
    return {
        "worker_app": "synapse.app.generic_worker",
        "worker_name": name,
        "worker_pid_file": str(folder / f"{name}.pid"),
        "worker_log_config": str(folder / f"{name}.log.yaml"),
        "worker_listeners": [
            _listener("127.0.0.1", layout.client_ports[name], [served, "metrics"])
        ],
    }


def _listener(
    address: str, port: int, resources: list[str], *, tls: bool = False
) -> Json:
    return {
        "type": "http",
        "port": port,
        "bind_addresses": [address],
        "tls": tls,
        "resources": [{"names": resources, "compress": False}],
    }


def _logging(file: Path) -> Json:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "precise": {
                "format": "%(asctime)s - %(name)s - %(lineno)d - %(levelname)s - "
                "%(request)s - %(message)s"
            }
        },
        "handlers": {
            "file": {
                "class": "logging.FileHandler",
                "formatter": "precise",
                "filename": str(file),
                "encoding": "utf-8",
            }
        },
        # At INFO this logger would write every SQL statement's parameters.
        "loggers": {"synapse.storage.SQL": {"level": "WARNING"}},
        "root": {"level": "INFO", "handlers": ["file"]},
    }


def _private(path: Path) -> Path:
    """Make sure that a file is there and that only we can read it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    path.chmod(0o600)
    return path


def _write(path: Path, settings: Json) -> None:
    with _private(path).open("w", encoding="utf-8") as file:
        yaml.safe_dump(settings, file, sort_keys=False)
