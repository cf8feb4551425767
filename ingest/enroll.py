"""Certificates for gateways: what one needs to reach a broker that lets nobody else in (docs/decisions/0018).

The agency is its own certificate authority: one folder with `ca.crt`, `ca.key` and the broker's certificate, made by the first enrolment.
A certificate's common name is the gateway's name, which the broker takes for the user's, so that its rules can hold each gateway to its
own topics. Keys are P-256, in PEM files that nobody but their user may read.
"""

from __future__ import annotations

import ipaddress
import json
import re
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from devices.errors import InputError
from ingest import files
from ingest.gateway import checked_name

HUB = "pumpledger-hub"
"""The name by which the hub itself is enrolled."""

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_YEARS = timedelta(days=7300)
_EARLIER = timedelta(days=1)
"""Clocks of gateways may be behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What an enrolment made, until when it holds (UTC), and the lines to write: for the broker, its rules, and the gateway."""

    certificate: Path
    key: Path
    ca: Path
    until: datetime
    mosquitto: tuple[str, ...]
    acl: tuple[str, ...]
    settings: tuple[str, ...]


def enroll(name: str, out: Path, *, authority: Path, host: str, port: int = 8883, days: int = 825) -> Enrolled:
    """Makes `out`/NAME.pem, NAME.key and ca.crt for a gateway, or for `HUB`, and what of `authority` is not there yet.

    `host` is the broker's, as gateways call it. A run that was cut is ended by the next one; a certificate that is there is not
    replaced. Raises InputError for names that cannot be, a certificate that is there, an authority that is not whole; StorageError.
    """
    checked_name(name)
    folder, out = authority.resolve(), out.resolve()
    if out == folder:
        raise InputError(f"{out} is the authority's own folder.", do="Name another one with --out: what is in it leaves.", code="out")
    certificate, ca = out / f"{name}.pem", out / "ca.crt"
    if certificate.exists():
        raise InputError(
            f"{name} has a certificate already: {certificate}.",
            do="Remove that file to have a new one made for the same key, or name another folder with --out.",
            code="enrolled",
        )
    broker = folder / f"broker-{host}.pem"
    names = x509.SubjectAlternativeName([_host(host)])
    issuer = _Authority(folder)
    if not broker.exists():
        files.create(broker, issuer.sign(_key(broker.with_suffix(".key")), host, _YEARS, ExtendedKeyUsageOID.SERVER_AUTH, names))
    files.replace(ca, (folder / "ca.crt").read_bytes())
    key = out / f"{name}.key"
    made = issuer.sign(_key(key), name, timedelta(days=days), ExtendedKeyUsageOID.CLIENT_AUTH)
    files.create(certificate, made)
    address = f"[{host}]" if ":" in host else host
    query = urlencode({"ca": ca, "cert": certificate, "key": key}, safe="/")
    return Enrolled(
        certificate=certificate,
        key=key,
        ca=ca,
        until=x509.load_pem_x509_certificate(made).not_valid_after_utc,
        mosquitto=(
            f"listener {port}",
            f"cafile {folder / 'ca.crt'}",
            f"certfile {broker}",
            f"keyfile {broker.with_suffix('.key')}",
            "require_certificate true",
            "use_identity_as_username true",
            "allow_anonymous false",
        ),
        acl=(f"user {HUB}", "topic read pl1/#", "topic readwrite hub1/#", "pattern write pl1/%u/#", "pattern read hub1/%u/#"),
        settings=(
            *([] if name == HUB else [f'gateway = "{name}"']),
            f"broker = {json.dumps(f'mqtts://{address}:{port}?{query}', ensure_ascii=False)}",
        ),
    )


class _Authority:
    """The key that signs, and its certificate; made where they are not there yet."""

    def __init__(self, folder: Path) -> None:
        path = folder / "ca.crt"
        if path.exists() and not path.with_suffix(".key").exists():
            raise InputError(
                f"The authority's key {path.with_suffix('.key')} is not there.",
                do="Name the folder that has it with --ca; without it no certificate can be made that the broker knows.",
                code="ca",
            )
        self._key = _key(path.with_suffix(".key"))
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pumpledger gateways")])
        if not path.exists():
            files.create(path, self.sign(self._key, None, _YEARS, None))
        try:
            found = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}.", do="Bring it back from a backup.", code="ca") from error
        if found.public_key() != self._key.public_key():
            raise InputError(f"{path} does not belong to the key beside it.", do="Bring both back from a backup.", code="ca")
        self._name, self._until = found.subject, found.not_valid_after_utc

    def sign(
        self,
        key: ec.EllipticCurvePrivateKey,
        name: str | None,
        lasting: timedelta,
        usage: x509.ObjectIdentifier | None,
        names: x509.SubjectAlternativeName | None = None,
    ) -> bytes:
        """The certificate (PEM) of a key; its own where there is no name. None outlasts the authority's."""
        now = datetime.now(UTC)
        subject = self._name if name is None else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        until = now + lasting if name is None else min(now + lasting, self._until)
        if until <= now:
            raise InputError(
                "The authority's certificate has run out.", do="Begin another folder with --ca, and enroll all anew.", code="ca"
            )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=name is None, path_length=0 if name is None else None), critical=True)
            .add_extension(_usage(signs=name is None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    """The broker's name or address as a certificate has it. Raises InputError."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise InputError(f"{host!r} is no name of a host.", do="Name the broker's with --broker HOST.", code="host") from None
        return x509.DNSName(host)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a file; a new one where there is none. Raises InputError, StorageError."""
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files.create(path, made, private=True)
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise InputError(f"{path} may be read by other users of this machine.", do=f"Run `chmod 600 {path}`.", code="key_mode")
        found = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"The key {path} cannot be read: {error}.", do="Bring it back from a backup.", code="key") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise InputError(f"The key {path} is none that pumpledger made.", do="Name another folder.", code="key")
    return found
