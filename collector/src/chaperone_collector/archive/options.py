"""What `--archive FILE` says (YAML, and so JSON): which bucket, for how long, in what pieces.

Credentials are never in the file: it names a directory, as a Secret is mounted, with the files `access-key` and
`secret-key`, which are read for each connection, so that they can be replaced.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec

from chaperone_collector.errors import StoreUnusable

MIB: Final = 1 << 20
MAX_FILE_BYTES: Final = 64 << 10
MAX_CREDENTIAL_BYTES: Final = 4096


class ArchiveOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One bucket.

    Attributes:
        endpoint: `https://host[:port]`; plain http only on the machine itself.
        bucket: has Object Lock.
        credentials: directory of `access-key` and `secret-key`.
        region: as the endpoint wants it signed.
        prefix: of all names in the bucket.
        mode: COMPLIANCE: until the date nobody deletes it; GOVERNANCE: whoever has the right to, does (rehearsals).
        retention_days: how long each object is kept from deletion; a mistake cannot be taken back.
        segment_seconds: how long entries wait for a segment, at most.
        segment_bytes: of entries and bodies in one segment, about; what is built in memory at once.
        ca_file: PEM, of the endpoint's CA; empty: those that the system believes.
    """

    endpoint: Annotated[str, msgspec.Meta(max_length=500)]
    bucket: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    credentials: str
    region: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,64}$")] = "us-east-1"
    prefix: Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9_.-]{1,100}(/[A-Za-z0-9_.-]{1,100}){0,5})?$")] = ""
    mode: Literal["COMPLIANCE", "GOVERNANCE"] = "COMPLIANCE"
    retention_days: Annotated[int, msgspec.Meta(ge=1, le=36500)] = 365
    segment_seconds: Annotated[int, msgspec.Meta(ge=1, le=86400)] = 300
    segment_bytes: Annotated[int, msgspec.Meta(ge=64 << 10, le=64 * MIB)] = 16 * MIB
    ca_file: str = ""

    def __post_init__(self) -> None:
        """Refuse an endpoint that would carry evidence in clear over a network.

        Raises:
            ValueError: it is not https.
        """
        url = urlsplit(self.endpoint)
        is_plain = url.scheme == "http" and _is_loopback(url.hostname or "")
        if not url.hostname or not (url.scheme == "https" or is_plain) or url.username or url.path.strip("/"):
            raise ValueError("endpoint is https://host[:port]")
        if url.query or url.fragment:
            raise ValueError("endpoint has neither query nor fragment")

    @property
    def place(self) -> str:
        """Where objects lie; another place has none of them."""
        return f"{self.endpoint.rstrip('/')}/{self.bucket}/{self.prefix}"

    def key(self, *parts: str) -> str:
        """The name of an object."""
        return "/".join(part for part in (self.prefix, *parts) if part)

    def pair(self) -> tuple[str, str]:
        """Access key and secret.

        Raises:
            StoreUnusable: they cannot be read.
        """
        found: list[str] = []
        for one in ("access-key", "secret-key"):
            path = Path(self.credentials) / one
            try:
                with path.open("rb") as file:
                    found.append(file.read(MAX_CREDENTIAL_BYTES).decode("ascii").strip())
            except OSError as error:
                raise StoreUnusable(f"The archive's credentials {path} cannot be read: {error.strerror}.") from error
            except UnicodeDecodeError:
                raise StoreUnusable(f"The archive's credentials {path} are not text.") from None
            if not found[-1]:
                raise StoreUnusable(f"The archive's credentials {path} are empty.")
        return found[0], found[1]


def load(path: Path) -> ArchiveOptions:
    """Read the file.

    Raises:
        StoreUnusable: it cannot be read, or says what no archive can be.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise StoreUnusable(f"{path} is too long to describe an archive.")
        return msgspec.yaml.decode(data, type=ArchiveOptions)
    except OSError as error:
        raise StoreUnusable(f"The archive's file {path} cannot be read: {error.strerror}.") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreUnusable(f"{path} describes no archive: {error}.") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
