"""The calls to the bucket (S3 API). They block: whoever makes them has a thread of its own.

What the bucket answers is `Answered` with its code; whatever else can go wrong on the way is `ArchiveFailed`.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

import msgspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

from chaperone_collector.archive.options import ArchiveOptions
from chaperone_collector.errors import ArchiveFailed

CONNECT_TIMEOUT_S: Final = 10
READ_TIMEOUT_S: Final = 20  # without a byte either way; shorter than a kubelet waits for the process to end
MAX_OBJECT_BYTES: Final = 1 << 30


class Answered(ArchiveFailed):
    """The bucket said no, or that it could not."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(f"{code} ({status})")
        self.code = code
        self.status = status


class Kept(msgspec.Struct, frozen=True):
    """A version's lock."""

    mode: str
    until: datetime


class Bucket:
    """One bucket.

    Raises:
        StoreUnusable: the credentials cannot be read. ArchiveFailed: the options make no client.
    """

    def __init__(self, options: ArchiveOptions) -> None:
        self.options = options
        self.pair = options.pair()
        config = Config(
            signature_version="s3v4", connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S,
            retries={"total_max_attempts": 1}, max_pool_connections=1, s3={"addressing_style": "path"},
            request_checksum_calculation="when_required", response_checksum_validation="when_required", proxies={},
        )  # fmt: skip
        try:
            self._client: Any = Session().create_client(
                "s3", region_name=options.region, endpoint_url=options.endpoint, verify=options.ca_file or True,
                aws_access_key_id=self.pair[0], aws_secret_access_key=self.pair[1], config=config,
            )  # fmt: skip
        except (BotoCoreError, ValueError, OSError) as error:
            raise ArchiveFailed(f"There is no way to the archive: {error}") from None

    def call(self, method: str, **arguments: object) -> dict[str, Any]:
        """One call, of the bucket.

        Raises:
            Answered: the bucket refused. ArchiveFailed: it did not answer.
        """
        try:
            answer: dict[str, Any] = getattr(self._client, method)(Bucket=self.options.bucket, **arguments)
        except ClientError as error:
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            raise Answered(str(error.response.get("Error", {}).get("Code", ""))[:100], status) from None
        except (BotoCoreError, OSError, ValueError) as error:
            raise ArchiveFailed(f"The archive did not answer {method}: {error}") from error
        return answer

    def put(self, key: str, data: bytes, until: datetime) -> bool:
        """Store an object that nobody can delete until then; False when there was one of that name.

        Raises:
            ArchiveFailed: refused, or no answer. Whether it is stored is not known then.
        """
        try:
            self.call(
                "put_object", Key=key, Body=data, ChecksumSHA256=checksum(hashlib.sha256(data).digest()),
                IfNoneMatch="*", ObjectLockMode=self.options.mode, ObjectLockRetainUntilDate=until,
                ContentType="application/octet-stream",
            )  # fmt: skip
        except Answered as error:
            if error.status == HTTPStatus.PRECONDITION_FAILED:
                return False
            raise ArchiveFailed(f"The archive refuses {key}: {error}") from error
        return True

    def get(self, key: str, version: str = "") -> bytes:
        """Read an object.

        Raises:
            ArchiveFailed: it is not there, too long, or no answer.
        """
        more = {"VersionId": version} if version else {}
        try:
            answer = self.call("get_object", Key=key, **more)
        except Answered as error:
            raise ArchiveFailed(f"The archive does not give {key}: {error}") from error
        if answer.get("ContentLength", 0) > MAX_OBJECT_BYTES:
            raise ArchiveFailed(f"{key} has {answer['ContentLength']} bytes.")
        try:
            data: bytes = answer["Body"].read()
        except (BotoCoreError, OSError) as error:
            raise ArchiveFailed(f"The archive did not give all of {key}: {error}") from error
        return data

    def first_versions(self, folder: str, name: str = "") -> dict[str, str]:
        """Of all names in a folder that begin with `name`, without the folder: the id of the version stored first.

        It is what the collector wrote, and is locked. A later one, or a delete marker, hides it and changes nothing.

        Raises:
            ArchiveFailed: refused, or no answer.
        """
        prefix = self.options.key(folder, "x")[:-1]
        found: dict[str, tuple[datetime, str]] = {}
        more: dict[str, str] = {}
        while True:
            try:
                answer = self.call("list_object_versions", Prefix=prefix + name, **more)
            except Answered as error:
                raise ArchiveFailed(f"The archive does not list {prefix}: {error}") from error
            for one in answer.get("Versions", ()):
                at, key = (one["LastModified"], one["VersionId"]), one["Key"].removeprefix(prefix)
                # The newest comes first; of two of one second the later in the list is the older.
                if key not in found or at[0] <= found[key][0]:
                    found[key] = at
            if not answer.get("IsTruncated"):
                return {key: version for key, (_, version) in sorted(found.items())}
            more = {"KeyMarker": answer["NextKeyMarker"]}
            if answer.get("NextVersionIdMarker"):
                more["VersionIdMarker"] = answer["NextVersionIdMarker"]

    def lock(self, key: str, version: str) -> Kept:
        """How a version is kept.

        Raises:
            Answered: it says none. ArchiveFailed: no answer.
        """
        said = self.call("get_object_retention", Key=key, VersionId=version)["Retention"]
        return Kept(said["Mode"], said["RetainUntilDate"].astimezone(UTC))


def checksum(digest: bytes) -> str:
    """A SHA-256 as headers say it."""
    return base64.b64encode(digest).decode()
