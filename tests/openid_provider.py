# SPDX-License-Identifier: Apache-2.0
"""An OpenID provider (OpenID Connect Core 1.0): discovery, and the code flow."""

import secrets
import ssl
import time
from base64 import b64decode
from collections.abc import Mapping
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.jwk import RSAKey
from web_site import Answer, Asked, WebSite, as_json, page, see

CLIENT_ID = "synapse"
CLIENT_SECRET = "of-the-provider"


class OpenIDProvider(WebSite):
    """Signs in whom a test says, in whatever browser, once they have confirmed it."""

    def __init__(
        self, address: str, port: int, context: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(address, port, context)
        self.user = "carol"
        self._key = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"})
        self._key.ensure_kid()
        self._codes: dict[str, Mapping[str, str]] = {}

    @property
    def metadata(self) -> Mapping[str, object]:
        """What it announces."""
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
        }

    def get_wellknown_openidconfiguration(self, _: Asked) -> Answer:
        return as_json(self.metadata)

    def get_keys(self, _: Asked) -> Answer:
        return as_json({"keys": [self._key.as_dict(private=False)]})

    def get_authorize(self, asked: Asked) -> Answer:
        query = asked.query
        assert query["client_id"] == CLIENT_ID, query
        assert query["response_type"] == "code", query
        assert "openid" in query["scope"].split(), query
        code = secrets.token_urlsafe(16)
        self._codes[code] = {**query, "user": self.user}
        return page(
            f"<form method='post' action='/confirm'><p>{self.user}</p>"
            f"<input type='hidden' name='code' value='{code}'>"
            "<button>Go on</button></form>"
        )

    def post_confirm(self, asked: Asked) -> Answer:
        code = asked.form["code"]
        found = self._codes[code]
        back = urlencode({"code": code, "state": found["state"]})
        return see(f"{found['redirect_uri']}?{back}")

    def post_token(self, asked: Asked) -> Answer:
        _, _, given = asked.authorization.partition(" ")
        assert b64decode(given).decode() == f"{CLIENT_ID}:{CLIENT_SECRET}"
        found = self._codes.pop(asked.form["code"], None)
        if found is None or found["redirect_uri"] != asked.form["redirect_uri"]:
            return as_json({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": f"subject of {found['user']}",
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 600,
            "nonce": found["nonce"],
            "preferred_username": found["user"],
        }
        header = {"alg": "RS256", "kid": self._key.kid}
        return as_json(
            {
                "access_token": secrets.token_urlsafe(16),
                "token_type": "Bearer",
                "id_token": jwt.encode(header, claims, self._key),
            }
        )


def oidc_providers(provider: OpenIDProvider, *, discover: bool = True) -> object:
    """Return what homeserver.yaml has of it.

    Args:
        provider: The provider.
        discover: Whether Synapse asks it when it starts what it announces.
    """
    endpoints = ("authorization_endpoint", "token_endpoint", "jwks_uri")
    known = {} if discover else {key: provider.metadata[key] for key in endpoints}
    return [
        {
            "idp_id": "test",
            "idp_name": "The <Provider>",
            "issuer": provider.url,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "discover": discover,
            "skip_verification": not provider.url.startswith("https:"),
            "scopes": ["openid"],
            "allow_existing_users": True,
            "user_mapping_provider": {
                "config": {"localpart_template": "{{ user.preferred_username }}"}
            },
            **known,
        }
    ]
