"""Certificates: made, signed and read. Keys are ECDSA on P-256."""

import datetime
import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from dormouse_core.certificates import BACKDATED, DAY, Lifetime
from dormouse_core.errors import FailedPrecondition, text_of


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM of a certificate and its key."""

    certificate: str
    key: str


def make_authority(name: str, days: float, now: float) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    named = _name(name)
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        _begun(named, named, key, days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(made, key)


def issue(authority: Pair, name: str, hosts: Collection[str], days: float, now: float) -> Pair:
    """For servers and, since etcd's members show the same one to each other, for clients. `hosts`: DNS names and IP addresses.
    FailedPrecondition: the authority's key is not its certificate's, or none."""
    issuer = _one(authority.certificate)
    try:
        signing = serialization.load_pem_private_key(authority.key.encode(), None)
    except (ValueError, TypeError) as error:
        raise FailedPrecondition(f"ca.key: {text_of(error)}; a private key in PEM, without a password, is allowed") from error
    if not isinstance(signing, ec.EllipticCurvePrivateKey) or signing.public_key() != issuer.public_key():
        raise FailedPrecondition("ca.key: another key found, the one of ca.crt is allowed")
    key = ec.generate_private_key(ec.SECP256R1())
    names = [_host(host) for host in sorted(hosts)]
    made = (
        _begun(_name(name), issuer.subject, key, days, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)  # type: ignore[arg-type]
        .sign(signing, hashes.SHA256())
    )
    return _pair(made, key)


# ------------------------------------------------------------------------------------------------------------------------ reading


def identified(pem: str) -> dict[str, str]:
    """Each certificate of a file, by its fingerprint. FailedPrecondition: it has none, or what is there is none."""
    return {_fingerprint(each): each.public_bytes(serialization.Encoding.PEM).decode() for each in _all(pem)}


def lifetime(pem: str) -> Lifetime:
    found = _all(pem)[0]
    return Lifetime(found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())


def hosts_of(pem: str) -> frozenset[str]:
    try:
        names = _all(pem)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress))


def issuer_of(pem: str, authorities: Iterable[str]) -> str:
    """The fingerprint of the one of `authorities` (PEM) that signed the first certificate of `pem`; '': none did."""
    found = _all(pem)[0]
    for text in authorities:
        for each in _all(text):
            try:
                found.verify_directly_issued_by(each)
            except (InvalidSignature, ValueError, TypeError):
                continue
            return _fingerprint(each)
    return ""


def _all(pem: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise FailedPrecondition(f"{text_of(error)}; certificates in PEM are allowed") from error


def _one(pem: str) -> x509.Certificate:
    return _all(pem)[0]


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


# ------------------------------------------------------------------------------------------------------------------------ making


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float, now: float) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now - BACKDATED))
        .not_valid_after(_time(now + days * DAY))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _pair(made: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(made.public_bytes(serialization.Encoding.PEM).decode(), text.decode())
