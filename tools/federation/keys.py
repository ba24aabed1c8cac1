"""The secrets of a deployment: a certificate authority, a server's certificate, and a key pair for every SuperNode.

TLS answers a SuperNode's question *is this my server?*: it trusts the authority whose certificate it was given. The key
pair answers the server's question *is this one of my nodes?*: it knows the public keys that were registered. Private
keys are readable by their owner only; the authority's own key is never written, so nobody can sign with it later.
"""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = timedelta(days=30)
"""How long a certificate counts. A deployment of the tests lives for minutes."""


def write_certificates(
    folder: Path, hosts: tuple[str, ...] = ("localhost",), addresses: tuple[str, ...] = ("127.0.0.1",)
) -> None:
    """Write ``ca.pem`` (for everybody), ``server.pem`` and ``server.key`` (for the SuperLink alone).

    Args:
        folder: where to.
        hosts: names by which SuperNodes call the server.
        addresses: likewise, IP addresses.
    """
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    names = [x509.DNSName(host) for host in hosts]
    numbers = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    issuer = _name("The authority of a FedProx federation")
    root = (
        _certificate(issuer, issuer, authority, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    leaf = (
        _certificate(_name(hosts[0]), issuer, server, authority)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([*names, *numbers]), critical=False)
    )
    pem = serialization.Encoding.PEM
    write_private(folder / "ca.pem", root.sign(authority, hashes.SHA384()).public_bytes(pem))
    write_private(folder / "server.pem", leaf.sign(authority, hashes.SHA384()).public_bytes(pem))
    private = serialization.PrivateFormat.PKCS8
    write_private(folder / "server.key", server.private_bytes(pem, private, serialization.NoEncryption()))


def write_node_key(path: Path) -> None:
    """Write a SuperNode's private key to ``path`` and its public key beside it, with ``.pub``."""
    key = ec.generate_private_key(ec.SECP384R1())
    ssh = serialization.PrivateFormat.OpenSSH
    write_private(path, key.private_bytes(serialization.Encoding.PEM, ssh, serialization.NoEncryption()))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_private(path.with_name(f"{path.name}.pub"), public)


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks of hosts differ
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
