# SPDX-License-Identifier: Apache-2.0
"""Where the homeserver is, and who asks.

The first that is there says where: `--url`, `-c homeserver.yaml`,
`FEDERATION_ADMIN_URL`, what `login` has kept, synadm's configuration, homeserver.yaml
where it usually is. A token is sent to the homeserver only for which it was given: that
of `FEDERATION_ADMIN_TOKEN` to any, one that was kept to the one that it was kept for.
"""

import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attr

from synapse_federation_admin.cli.exits import Exit, FailedError

URL = "FEDERATION_ADMIN_URL"
TOKEN = "FEDERATION_ADMIN_TOKEN"  # noqa: S105

# Where homeserver.yaml is in Debian's packages and in the official image.
_USUAL = ("/etc/matrix-synapse/homeserver.yaml", "/data/homeserver.yaml")

_LOOPBACK = ("localhost", "127.", "[::1]")


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Login:
    """What `login` has kept.

    Attributes:
        url: Where the homeserver is.
        user_id: Whose token it is.
        access_token: The token.
        renewal: What makes a new one at an authentication service: `token_endpoint`,
            `client_id`, `refresh_token`; empty where a token lasts.
    """

    url: str
    user_id: str
    access_token: str = attr.ib(repr=False)
    renewal: Mapping[str, str] = attr.ib(repr=False, factory=dict)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Connection:
    """Where to ask, and as whom.

    Attributes:
        url: The base URL: `https://matrix.example.org`, or `unix:/run/synapse.sock`.
        token: An access token; None if there is none for this homeserver.
        login: What was kept of a login, if the token is from there.
    """

    url: str
    token: str | None = attr.ib(default=None, repr=False)
    login: Login | None = None

    @property
    def socket(self) -> str | None:
        """The path of the unix socket; None if it is not one."""
        return self.url[len("unix:") :] if self.url.startswith("unix:") else None

    @property
    def is_local(self) -> bool:
        """Whether what is sent stays on this machine: then it needs no proxy."""
        if self.socket is not None:
            return True
        host = urlsplit(self.url).netloc
        return host.startswith(_LOOPBACK)


def find_connection(
    url: str | None,
    homeserver_yaml: Sequence[Path],
) -> Connection:
    """Return where to ask, and as whom.

    Args:
        url: As given in the arguments.
        homeserver_yaml: Likewise.

    Raises:
        FailedError: It is not said where, or what says so cannot be used.
    """
    if url and homeserver_yaml:
        raise FailedError("Give either --url or -c, not both.", Exit.USAGE)
    login = read_login()
    if homeserver_yaml:
        url = read_listener(homeserver_yaml)
    url = url or os.environ.get(URL)
    if not url and (kept := login or _read_synadm()):
        url = kept.url
    url = url or _usual_listener()
    if not url:
        raise FailedError(
            "It is not known where the homeserver is. Give --url"
            f" https://matrix.example.org, or set {URL}; on the homeserver's own"
            " machine give -c homeserver.yaml; or log in once with `login`.",
            Exit.USAGE,
        )
    found = Connection(checked_url(url))
    if token := os.environ.get(TOKEN):
        return attr.evolve(found, token=checked_token(token, TOKEN))
    if login and login.url == found.url:
        return attr.evolve(found, token=login.access_token, login=login)
    if (synadm := _read_synadm()) and synadm.url == found.url:
        return attr.evolve(found, token=synadm.access_token)
    return found


def checked_url(url: str) -> str:
    """Return a base URL without a slash at its end.

    Raises:
        FailedError: It is none.
    """
    if url.startswith("unix:/"):
        return url
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        is_url = False
    if not is_url:
        raise FailedError(
            f"{url!r} is no base URL: it begins with https://, http:// or unix:/, as"
            " https://matrix.example.org does.",
            Exit.USAGE,
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise FailedError(
            "A base URL has a host and perhaps a port and a path, and nothing else.",
            Exit.USAGE,
        )
    return url.rstrip("/")


def checked_token(token: str, told_by: str) -> str:
    """Return an access token that can stand in a header.

    Raises:
        FailedError: It cannot.
    """
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise FailedError(f"What {told_by} has is no access token.", Exit.USAGE)
    return token


# -- what login has kept ---------------------------------------------------------------


def _home() -> Path:
    # Path.home() fails for a user whom nobody has told of, as in containers.
    return Path(os.path.expanduser("~"))


def login_file() -> Path:
    """Return the path of the file that `login` writes."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or "")
    folder = folder if folder.is_absolute() else _home() / ".config"
    return folder / "synapse-federation-admin" / "login.json"


def read_login() -> Login | None:
    """Return what `login` has kept; None if nobody has logged in.

    Raises:
        FailedError: The file can be read by others, or is none of ours.
    """
    path = login_file()
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise FailedError(
                    f"{path} has an access token in it, and others can read it:"
                    f" chmod 600 {path}"
                )
            kept = json.load(file)
        return Login(
            url=str(kept["url"]),
            user_id=str(kept["user_id"]),
            access_token=checked_token(str(kept["access_token"]), str(path)),
            renewal={str(k): str(v) for k, v in kept.get("renewal", {}).items()},
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise FailedError(f"{path} cannot be read: {e}. Log in again.") from e


def keep_login(login: Login) -> Path:
    """Write a login for the commands to come, readable by its owner only.

    Returns:
        The path of the file.

    Raises:
        FailedError: It cannot be written.
    """
    path = login_file()
    new = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(number, "w", encoding="utf-8") as file:
            json.dump(attr.asdict(login), file, indent=1)
        new.replace(path)
    except OSError as e:
        raise FailedError(f"{path} cannot be written: {e.strerror}") from e
    return path


@contextmanager
def locked_login() -> Iterator[Login | None]:
    """Read what `login` has kept, and have no other command renew it meanwhile."""
    with open(login_file().with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield read_login()


# -- synadm's, and homeserver.yaml -----------------------------------------------------


def _read_synadm() -> Login | None:
    # synadm knows no XDG_CONFIG_HOME.
    path = _home() / ".config" / "synadm.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    import yaml

    try:
        kept: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    if not isinstance(kept, dict):
        return None
    url, token, user = (kept.get(key) for key in ("base_url", "token", "user"))
    if not isinstance(url, str) or not isinstance(token, str):
        return None
    return Login(
        url=url.rstrip("/"),
        user_id=user if isinstance(user, str) else "",
        access_token=checked_token(token, str(path)),
    )


def _usual_listener() -> str | None:
    # That of the official image's environment first.
    for name in (os.environ.get("SYNAPSE_CONFIG_PATH"), *_USUAL):
        if name and os.access(name, os.R_OK):
            # Debian's packages have the homeserver's name in a file of its own.
            more = Path(name).with_name("conf.d")
            return read_listener([Path(name), *([more] if more.is_dir() else [])])
    return None


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
