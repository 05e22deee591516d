# SPDX-License-Identifier: Apache-2.0
"""A certificate authority of the playground's own, and good and bad certificates."""

import datetime
import ssl
from pathlib import Path

import trustme
from attrs import frozen


@frozen
class CertificateFiles:
    """Where a certificate and its private key are, as PEM files."""

    certificate: Path
    private_key: Path


class CertificateAuthority:
    """Issues certificates that Synapse trusts through `federation_custom_ca_list`."""

    def __init__(self, folder: Path) -> None:
        """Make a new authority.

        Args:
            folder: an existing folder for the PEM files.
        """
        self._folder = folder
        self.ca = trustme.CA()
        self.path = folder / "ca.pem"
        """The authority's own certificate, for whoever has to trust it."""
        self.ca.cert_pem.write_to_path(self.path)

    def files(self, address: str) -> CertificateFiles:
        """Write a valid certificate for an IP address to files."""
        leaf = self.ca.issue_cert(address)
        files = CertificateFiles(
            certificate=self._folder / f"{address}.pem",
            private_key=self._folder / f"{address}.key",
        )
        leaf.private_key_pem.write_to_path(files.private_key)
        files.private_key.chmod(0o600)
        files.certificate.unlink(missing_ok=True)
        for blob in leaf.cert_chain_pems:
            blob.write_to_path(files.certificate, append=True)
        return files

    def valid(self, *hosts: str) -> ssl.SSLContext:
        """Make a server's TLS context with a valid certificate for names, addresses."""
        return self._server_context(self.ca.issue_cert(*hosts))

    def expired(self, host: str, ago_s: int = 86_400) -> ssl.SSLContext:
        """Make one whose certificate has expired, by default yesterday."""
        now = datetime.datetime.now(datetime.timezone.utc)
        end = now - datetime.timedelta(seconds=ago_s)
        begin = end - datetime.timedelta(days=90)
        return self._server_context(
            self.ca.issue_cert(host, not_before=begin, not_after=end)
        )

    def wrong_name(self) -> ssl.SSLContext:
        """Make one whose certificate is for a name that nobody asks for."""
        return self._server_context(self.ca.issue_cert("elsewhere.example"))

    def untrusted(self, host: str) -> ssl.SSLContext:
        """Make one whose certificate is of an authority that nobody knows."""
        return self._server_context(trustme.CA().issue_cert(host))

    def client_context(self) -> ssl.SSLContext:
        """Make a client's TLS context that trusts this authority and no other."""
        return ssl.create_default_context(cafile=str(self.path))

    @staticmethod
    def _server_context(leaf: trustme.LeafCert) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        return context
