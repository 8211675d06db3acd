"""How the SSH servers behind a target prove themselves: keys that are named beforehand, never the first one seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from chaperone_operator.compile.model import TargetSpec, Tls

MAX_KEYS: Final = 32
MAX_CHARACTERS: Final = 4096


def problems(spec: TargetSpec) -> Iterator[tuple[str, str]]:
    """What is wrong with a target's host keys: a reason, and a message that begins with the field."""
    if spec.protocol != "SSH":
        if spec.ssh is not None:
            yield "NotSsh", f"spec.ssh: belongs to protocol SSH, and this is {spec.protocol}; remove it."
        return
    if spec.tls != Tls():
        yield "NoTls", "spec.tls: SSH has none; name the server's keys in spec.ssh.hostKeys instead."
    keys = spec.ssh.host_keys if spec.ssh is not None else ()
    authorities = spec.ssh.host_authorities if spec.ssh is not None else ()
    if not keys and not authorities:
        yield (
            "NoHostKey",
            "spec.ssh: names no hostKeys and no hostAuthorities, and a server is not believed the first time it is "
            "seen; take the keys from /etc/ssh/ssh_host_*_key.pub of the host.",
        )
    if len(keys) + len(authorities) > MAX_KEYS:
        yield "TooManyHostKeys", f"spec.ssh: more than {MAX_KEYS} keys; have the hosts' keys signed by an authority."
    for field, texts in (("hostKeys", keys), ("hostAuthorities", authorities)):
        for index, text in enumerate(texts):
            if not _is_key(text):
                yield (
                    "BadHostKey",
                    f"spec.ssh.{field}[{index}]: is no public key; write it as ssh-keyscan does, without the host.",
                )


def _is_key(text: str) -> bool:
    if len(text) > MAX_CHARACTERS or not text.isascii() or "\n" in text:
        return False
    try:
        serialization.load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True
