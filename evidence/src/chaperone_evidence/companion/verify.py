"""Checks a bundle of Chaperone's evidence offline; written from the byte formats, apart from `chaperone verify`.

python3 verify.py BUNDLE.tar --trust gateway-ca.pem [--log-policy log.policy]      (what it proves: README.txt)
"""

import argparse
import base64
import contextlib
import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

try:
    from cryptography.hazmat.primitives.asymmetric import mldsa
except ImportError:  # of an older version: those signatures are not checked, and that is said
    mldsa = None  # type: ignore[assignment]

INDEX = r"[0-9]{16}\.(?:entry|tlog-proof)"  # of an entry that states an erasure
POLICY = r"revisions/([a-z0-9-]{1,63}/[0-9]{16}\.(?:entry|seg|tlog-proof)|operator\.vkey|absent\.txt)"
ULID, NUMBER = "([0-7][0-9a-hjkmnp-tv-z]{25})", "(0|[1-9][0-9]{0,18})"
LAYOUT = re.compile(
    rf"(streams|bodies)/{ULID}/([0-9]{{1,16}})\.seg|log/{ULID}\.tlog-proof|certificates/{INDEX}|{POLICY}"
)
BESIDE = {"trust.pem", "log.policy", "verify.py", "README.txt"}  # not believed, and not run
HEAD = rf"chaperone\.dev/stream/([^/\s]+)/{ULID}\n{NUMBER}\n(.{{44}})\ntime {NUMBER}\nstate (open|idle|closed)\n"
PROOF = rf"(?s)c2sp\.org/tlog-proof@v1\n(?:extra [!-~]+\n)?index {NUMBER}\n((?:[!-~]{{44}}\n){{0,63}})\n(.*)"
SPIFFE = "spiffe://chaperone.dev/{0}/ns/{0}/pod/{0}/{0}/identity/{0}".format("([A-Za-z0-9._:-]{1,253})")
SCHEME = "chaperone-stream-key:"
WHO = ("cluster", "namespace", "pod", "pod_uid", "identity", "vkey")
KEY_BYTES = {1: 33, 4: 33, 6: 1313}  # by type, which is the first of them: Ed25519, its cosignature, ML-DSA-44
KNOWN = {"approval.request", "approval.outcome", "identity.suspension", "egress.denied", "dns.denied", "stream.open"}
KNOWN |= {"stream.close", "session.open", "session.close", "command.intent", "command.outcome", "recording.chunk"}
Key = tuple[str, bytes, int, bytes]  # name, id, type, public key


class Cannot(BaseException):
    """Nothing can be told. It is no Exception: those are findings at the entry that makes them happen."""


def need(holds: object, what: str) -> None:
    """Something is wrong unless it holds."""
    if not holds:
        raise ValueError(what)


def why(error: BaseException) -> str:
    """What went wrong; an InvalidSignature says nothing but its name."""
    return str(error) if isinstance(error, Cannot | ValueError | OSError) else f"{type(error).__name__} {error}".strip()


def sha(*parts: bytes) -> bytes:
    """SHA-256 of the parts, one behind the other."""
    return hashlib.sha256(b"".join(parts)).digest()


def unbase64(text: str) -> bytes:
    """Base64 in its one form."""
    need(base64.b64encode(data := base64.b64decode(text)).decode() == text, "base64 is not in its one form")
    return data


def read_tar(tar: tarfile.TarFile, file: BinaryIO) -> dict[str, tarfile.TarInfo]:
    """The files of the layout. Nothing else may be in it, nor behind its end."""
    found: dict[str, tarfile.TarInfo] = {}
    for one in tar:
        name = one.name.removeprefix("./")
        is_as_it_says = not set(one.pax_headers) - {"mtime", "atime", "ctime"}  # others rename or resize
        need(one.isdir() or (one.type in {b"0", b"\0"} and is_as_it_says), f"{name} is not a plain file")
        if not one.isdir():
            need(name not in found and (LAYOUT.fullmatch(name) or name in BESIDE), f"{name} does not belong here")
            found[name] = one
    file.seek(tar.offset)
    rest = file.read()
    need(len(rest) >= 512 and not rest.strip(b"\0"), "it is cut, or something follows its end")
    need(any(name.startswith(("streams/", "bodies/")) for name in found), "there is no stream in it")
    return found


def frames(data: bytes, width: int) -> Iterator[bytes]:
    """What stands in a segment, each behind its length in so many bytes; zeros may follow."""
    position = 0
    while length := int.from_bytes(data[position : position + width]):
        begin, position = position + width, position + width + length
        need(position <= len(data), "it is cut")
        yield data[begin:position]
    need(len(data) - position in {0, *range(width, len(data))} and not data[position:].strip(b"\0"), "it is cut")


def is_plain(value: object, depth: int = 0) -> bool:
    """Whether JSON keeps to the profile: no null, no float, whole numbers below 2^53, plain keys, not deep."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    fits = isinstance(value, list | str | dict) or (isinstance(value, int) and abs(value) < 2**53)
    keys = all(re.fullmatch("[a-z][a-z0-9_]*", key) for key in value) if isinstance(value, dict) else True
    return fits and keys and depth <= 8 and all(is_plain(item, depth + 1) for item in items)


def read_certificate(der: bytes, authorities: list[x509.Certificate], at_us: int) -> tuple[str, ...]:
    """Whom a gateway's certificate binds to which key, see `WHO`; the file of CAs is the auditor's, and believed."""
    certificate, issuers = x509.load_der_x509_certificate(der), []
    for ca in authorities:
        with contextlib.suppress(Exception):
            certificate.verify_directly_issued_by(ca)
            issuers.append(ca)
    need(issuers, "its certificate was not issued by the trusted gateway CA")
    at = datetime.fromtimestamp(at_us / 1e6, UTC)
    for one in (certificate, issuers[0]):
        need(one.not_valid_before_utc <= at <= one.not_valid_after_utc, f"its certificate was not valid at {at}")
    of: dict[type, Any] = {type(one.value): one.value for one in certificate.extensions}
    need("1.3.6.1.5.5.7.3.2" in [one.dotted_string for one in of[x509.ExtendedKeyUsage]], "it is for no client")
    uris = of[x509.SubjectAlternativeName].get_values_for_type(x509.UniformResourceIdentifier)
    (pod,) = [match.groups() for uri in uris if (match := re.fullmatch(SPIFFE, uri))]
    (vkey,) = [uri.removeprefix(SCHEME) for uri in uris if uri.startswith(SCHEME)]
    return (*pod, vkey)


def read_key(text: str) -> Key:
    """A verifier key (C2SP signed-note): name+id+key."""
    name, identifier, encoded = text.split("+", 2)
    data = unbase64(encoded)
    need(re.fullmatch(r"[^\s+\x00-\x1f]+", name) and len(data) == KEY_BYTES.get(data[0]), "a key is of no known kind")
    need(sha(name.encode(), b"\n", data)[:4].hex() == identifier, "the id of a key does not belong to it")
    return name, bytes.fromhex(identifier), data[0], data[1:]


def check_signature(key: Key, body: str, data: bytes) -> int:
    """Verify a signature (C2SP tlog-cosignature); the time that it says, 1 if its kind says none, -1: not checked."""
    name, kind = key[0].encode(), key[2]
    stamp, data = (data[:8], data[8:]) if kind > 1 else (b"", data)
    need(len(data) == (2420 if kind == 6 else 64) and stamp < b"\x80", "a signature does not have the form of its kind")
    if kind < 6:
        text = f"cosignature/v1\ntime {int.from_bytes(stamp)}\n{body}" if kind == 4 else body
        ed25519.Ed25519PublicKey.from_public_bytes(key[3]).verify(data, text.encode())
    elif mldsa is None:
        return -1
    else:
        origin, size, root = body.split("\n")[:3]
        said = bytes((len(name),)) + name + stamp + bytes((len(origin),)) + origin.encode()
        message = b"subtree/v1\n\0" + said + bytes(8) + int(size).to_bytes(8) + unbase64(root)
        mldsa.MLDSA44PublicKey.from_public_bytes(key[3]).verify(data, message)
    return int.from_bytes(stamp) if stamp else 1


def open_note(note: bytes, keys: list[Key], most: int) -> tuple[str, dict[Key, int]]:
    """The body of a signed note, and which of the keys have signed it (C2SP signed-note)."""
    body, parted, lines = note.decode().rpartition("\n\n")
    need(parted and len(note) <= 1 << 16 and not re.search(rb"[\x00-\x09\x0b-\x1f]", note), "it is no note")
    need(lines.endswith("\n") and lines.count("\n") <= most, "a note has too many signatures, or the last is cut")
    signed: dict[Key, int] = {}
    for line in lines[:-1].split("\n"):
        name, encoded = re.fullmatch("\u2014 ([^\\s+]+) ([!-~]+)", line).groups()  # type: ignore[union-attr]
        need(len(data := unbase64(encoded)) > 4, "a signature is too short")
        signed |= {key: check_signature(key, body + "\n", data[4:]) for key in keys if key[:2] == (name, data[:4])}
    return body + "\n", signed


def read_policy(text: str) -> tuple[list[Key], list[Key], int]:
    """A log's keys, all of which must have signed, and those of witnesses, of which so many must (C2SP tlog-policy)."""
    logs, quorums, groups = list[Key](), list[str](), {"none": (0, list[Key]())}
    for line in text.split("\n"):
        match line.split():
            case ["log", vkey, *_]:
                logs.append(read_key(vkey))
            case ["witness", name, vkey, *_] if name not in groups:
                groups[name] = (1, [read_key(vkey)])
            case ["group", name, count, *members] if name not in groups:
                need(all(len(groups[one][1]) == 1 for one in members), "groups of groups are not known here")
                keys = [groups[one][1][0] for one in members]
                groups[name] = (int({"any": "1", "all": str(len(members))}.get(count, count)), keys)
            case ["quorum", name]:
                quorums.append(name)
            case [word, *_]:
                need(word.startswith("#"), "a line of the policy is not understood")
    needed, witnesses = groups[quorums[0]]
    need(len(quorums) == len({key[0] for key in logs}) == 1, "the policy names not one log or not one quorum")
    need((needed > 0) is (quorums[0] != "none"), "a quorum of none is written as none")
    need(len({key[3] for key in logs + witnesses}) == len(logs + witnesses), "a key is there twice")
    need(all(key[2] > 1 for key in witnesses), "a witness's key says no time")
    return logs, witnesses, needed


class Stream:
    """One stream: what its gateway recorded, and what is wrong with it."""

    def __init__(self, name: str, authorities: list[x509.Certificate]) -> None:
        self.name, self.authorities, self.end = name, authorities, "unsigned"
        self.count, self.signed, self.head_us, self.clock_us, self.leaf = 0, 0, 0, 0, b""
        self.link = sha(b"chaperone.dev/stream/v1\n", name.encode())
        self.opened: dict[str, Any] = {}
        self.sessions: dict[str, bool] = {}  # whether it is open
        self.chunks: dict[str, int] = {}  # of its recording
        self.waiting: dict[int, tuple[str, str]] = {}  # session and command of intents without outcome
        self.texts: dict[bytes, tuple[int, int, str]] = {}  # by commitment: record, size, hash if the text is whole
        self.named_us: dict[bytes, int] = {}  # by commitment: when it was named last
        self.missing: dict[bytes, int] = {}  # by commitment: record whose text is not here
        self.problems: list[tuple[int, str]] = []
        self.notes: list[str] = []
        self.unnamed: list[tuple[int, str]] = []
        self.root: tuple[int, bytes] = (0, b"")  # of the log's tree: its size, its hash

    def read(self, segments: Iterable[tuple[int, bytes]]) -> None:
        """Take all entries; the first that is wrong is the last that is looked at."""
        try:
            for first, data in segments:
                need(first == self.count, "the segment here is one of another number")
                for entry in frames(data, 2):
                    self._add(entry)
            need(self.count, "the stream is empty")
        except Exception as error:
            self.problems.append((self.count, why(error)))
        if self.problems or (self.signed == self.count and self.end != "closed"):
            self.end = "broken" if self.problems else "open"

    def _add(self, entry: bytes) -> None:
        need(self.end != "closed", "it comes after the stream's signed end")
        need(34 < len(entry) <= 16384 and entry[:2] in (b"\1\1", b"\1\2"), "its length, version or class is impossible")
        link = sha(b"chaperone.dev/link/v1\n", self.link, entry[1:2], entry[34:])
        need(link == entry[2:34], "its link does not follow from the record before it")
        (self._head if entry[1] == 2 else self._record)(entry[34:])
        self.link, self.leaf, self.count = link, sha(b"\0", entry), self.count + 1

    def _head(self, header: bytes) -> None:
        body, signed = open_note(header, [key := read_key(self.opened["vkey"])], 100)
        cluster, name, count, link, time, state = re.fullmatch(HEAD, body).groups()  # type: ignore[union-attr]
        here = (self.opened["cluster"], self.name, self.count, self.link)
        need(key in signed, "its head is not signed by the stream's key")
        need(here == (cluster, name, int(count), unbase64(link)), "it signs other records than those here")
        if self.head_us and not 0 <= int(time) - self.head_us <= 60_000_000:
            self.notes.append(f"record {self.count}: its time is {int(time) - self.head_us} us after the last head's")
        self.head_us, self.signed, self.end = int(time), self.count + 1, "closed" if state == "closed" else self.end

    def _record(self, header: bytes) -> None:
        said = json.loads(header.decode())
        again = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        need(isinstance(said, dict) and is_plain(said) and again == header, "its header is not in canonical form")
        kind, session = said["type"], said.get("session")
        need(said["seq"] == self.count, f"it says it is number {said['seq']}")
        need((kind == "stream.open") is (self.count == 0), "a stream opens with its first record, and only there")
        need(self.end != "said", "it comes after the record that says it is the last")
        if kind == "stream.open":
            bound = read_certificate(unbase64(said["certificate"]), self.authorities, said["wall_us"])
            need(said["stream"] == self.name, "it opens another stream")
            need(bound == tuple(said[one] for one in WHO), "its certificate belongs to another pod, identity or key")
            name, _, key_type, _ = read_key(said["vkey"])
            need(name == f"{said['cluster']}/gateway/{said['pod_uid']}" and key_type == 1, "its key is named otherwise")
            self.opened, self.clock_us = said, said["wall_us"] - said["mono_us"]
        elif kind == "stream.close":
            self.end = "said"
        elif kind == "session.open":
            need(session not in self.sessions, "its session is opened twice")
            self.sessions[session] = True
        elif kind in ("session.close", "command.intent", "command.outcome", "recording.chunk"):
            need(self.sessions.get(session), "its session is not open")
            self.sessions[session] = kind != "session.close"
        if kind == "command.outcome":
            intent = self.waiting.pop(said["ref"], None)
            need(intent == (session, said["command"]), "it is the outcome of no open intent")
        elif kind == "command.intent":
            if said["decision"] == "Allow":
                self.waiting[self.count] = (session, said["command"])
            for part in (said[name] for name in ("body", "params") if name in said):
                is_whole = part is said.get("body") and part["size"] == said["size_bytes"]
                of_text = (self.count, part["size"], said["sha256"] if is_whole else "")
                self.texts.setdefault(unbase64(part["commit"]), of_text)
                self.named_us[unbase64(part["commit"])] = said["wall_us"]
        elif kind == "recording.chunk":
            need(said.get("number", 0) == self.chunks.get(session, 0), "it is another part of its session's recording")
            self.chunks[session] = self.chunks.get(session, 0) + 1
            self.texts.setdefault(unbase64(said["body"]["commit"]), (self.count, said["body"]["size"], ""))
            self.named_us[unbase64(said["body"]["commit"])] = said["wall_us"]
        if kind in KNOWN:
            clock_us = said["wall_us"] - said["mono_us"]
            step_us, self.clock_us = clock_us - self.clock_us, clock_us
            if abs(step_us) > 2_000_000 and self.count:
                self.notes.append(f"record {self.count}: the gateway's clock was set by {step_us / 1e6:+.1f} s")
        else:
            self.notes.append(f"record {self.count} is of a type that is not known here")

    def read_texts(self, segments: Iterable[bytes]) -> None:
        """Compare the texts with what records commit to; a text that is not here may be withheld."""
        missing, last, unnamed, suspect = dict(self.texts), -1, 0, self.count

        def following(size: int) -> int:  # one of that size, if there is any, was the text before it was changed
            later = [(length != size, seq) for seq, length, _ in missing.values() if seq > last]
            return min(later, default=(False, self.count))[1]

        try:
            for data in segments:
                for body in frames(data, 4):
                    commit = sha(b"chaperone.dev/body/v1\n", body)
                    if commit in self.texts:
                        last, _, expected = self.texts[commit]
                        missing.pop(commit, None)
                        if expected not in {"", hashlib.sha256(body[32:]).hexdigest()}:
                            self.problems.append((last, "its hash is not that of the text kept"))
                    else:
                        suspect, unnamed = suspect if unnamed else following(len(body) - 32), unnamed + 1
        except Exception as error:
            self.problems.append((following(-1), f"its text cannot be read, nor those after it: {why(error)}"))
        left = sorted({seq for seq, _, _ in missing.values()})
        if unnamed and (self.end == "closed" or left):
            seq = suspect if suspect in left else min(left, default=self.count)
            self.unnamed = [(seq, f"its text may have been changed: {unnamed} texts are here that no record names")]
        self.missing = {commit: seq for commit, (seq, _, _) in missing.items()}

    def read_certificate(self, entry: bytes, proof: bytes, policy: tuple[list[Key], list[Key], int] | None) -> None:
        """The log's word that texts were erased, which says why they are missing; without one they may be withheld."""
        said = json.loads(entry[34:])
        need(entry[:34] == b"\1\x09" + bytes(32) and said["type"] == "bodies.erased", "it states no erasure")
        if policy is not None:
            self.find_in_log(sha(b"\0", entry), proof, *policy)
        is_ours = all(said[name] == self.opened[name] for name in ("namespace", "identity"))
        old = [one for one in self.missing if is_ours and self.named_us[one] < said["until_us"] + 60_000_000]
        for commit in old:
            del self.missing[commit]
        if old:
            self.notes.append(f"{len(old)} texts are not here: older ones were erased, says the log ({said})")

    def read_revision(
        self, entry: bytes, data: bytes, proof: bytes, policy: tuple[list[Key], list[Key], int] | None
    ) -> None:
        """The log has a revision of policy, and its files are those that its entry commits to."""
        said, bodies = json.loads(entry[34:]), list[bytes]()
        need(entry[:34] == b"\1\x05" + bytes(32) and said["type"] == "policy.revision", "it is no revision of policy")
        while data:
            size = int.from_bytes(data[:4], "big")
            bodies, data = [*bodies, data[4 : 4 + size]], data[4 + size :]
        named = [unbase64(said[name]["commit"]) for name in ("bundle", "gateway", "notes")]
        need(
            named == [sha(b"chaperone.dev/body/v1\n", body) for body in bodies], "its files are not those of its entry"
        )
        if policy is not None:
            self.find_in_log(sha(b"\0", entry), proof, *policy)

    def find_in_log(self, leaf: bytes, proof: bytes, logs: list[Key], witnesses: list[Key], quorum: int) -> None:
        """An entry is in the tree that log and witnesses have signed; the last one's link speaks for all before it."""
        index, lines, note = re.fullmatch(PROOF, proof.decode("latin-1")).groups()  # type: ignore[union-attr]
        body, signed = open_note(note.encode("latin-1"), logs + witnesses, 16)
        origin, size, root = re.fullmatch(rf"([^\n]+)\n{NUMBER}\n(.{{44}})\n", body).groups()  # type: ignore[union-attr]
        need(origin == logs[0][0] == f"chaperone.dev/log/{self.opened['cluster']}", "the log is another one")
        need(all(key in signed for key in logs), "not every key of the log has signed")
        unchecked = {key[0] for key, time in signed.items() if time < 0}
        by = {key[0] for key in witnesses if signed.get(key, 0) > 0}
        need(len(by | unchecked - {origin}) >= quorum, "too few witnesses have signed")
        if len(by) < quorum or all(signed[key] < 0 for key in logs):
            raise Cannot("this version of cryptography has no ML-DSA, and no other signature is enough")
        self.notes.extend(f"the ML-DSA-44 signature by {name} was not checked" for name in unchecked)
        node, at, last, proofs = leaf, int(index), int(size) - 1, [unbase64(line) for line in lines.split()]
        inner = (at ^ last).bit_length()
        need(at <= last < 2**63 - 1, "the tree has no such leaf")
        need(len(proofs) == inner + (at >> inner).bit_count(), "the proof has another length")
        for level, one in enumerate(proofs):
            is_left = level < inner and not at >> level & 1
            node = sha(b"\1", node, one) if is_left else sha(b"\1", one, node)
        self.root = (int(size), node) if leaf == self.leaf else self.root
        need(node == unbase64(root), "the proof does not lead to the root of the checkpoint")


def join(streams: dict[str, Stream]) -> list[tuple[str, int, str]]:
    """Judge the ends of streams by those that follow them; everything that is wrong, the first bad record first."""
    whole, followed = {name for name, one in streams.items() if not one.problems}, set[str]()
    for one in streams.values():
        if not one.signed or not one.opened.get("previous"):
            continue
        before = streams.get(one.opened["previous"])
        if before is None:
            one.notes.append(f"it follows {one.opened['previous']}, which is not here")
            continue
        if before.opened and any(before.opened[name] != one.opened[name] for name in ("cluster", "pod_uid")):
            one.problems.append((0, f"it follows {before.name}, the stream of another pod"))
        elif before.name in followed:
            one.problems.append((0, f"it follows {before.name}, as another stream does"))
        else:
            followed.add(before.name)
            if base64.b64encode(before.link).decode() == one.opened.get("previous_link"):
                if before.end not in ("closed", "broken"):
                    before.end, before.signed = "continued", before.count
            elif not before.problems:
                before.problems.append((before.count, f"its end is not the one that {one.name} signed"))
    roots = {one.root[0]: one for one in reversed(streams.values())}
    for one in streams.values():
        if one.root != (first := roots[one.root[0]]).root and not one.problems:
            one.problems.append((one.count - 1, f"the log was forked: it has signed another root for {first.name}"))
        if one.end in ("unsigned", "said") and not one.problems:
            one.problems.append((one.signed, "the records from here on are under no signature"))
        one.problems += one.unnamed if not one.problems else []
        if one.waiting:
            one.notes.append(f"{len(one.waiting)} allowed commands have no outcome here (records {[*one.waiting][:5]})")
        if one.end == "open":
            one.notes.append("it is still open: what came after its last head is not here")
    ordered = sorted(streams.values(), key=lambda one: (one.name in whole, one.name))
    return [(one.name, seq, what) for one in ordered for seq, what in one.problems]


def verify(tar: tarfile.TarFile, files: dict[str, tarfile.TarInfo], trust: Path, log_policy: Path | None) -> int:
    """Print what is found; 0: everything holds, 1: something is wrong."""
    authorities = x509.load_pem_x509_certificates(trust.read_bytes())
    policy = read_policy(log_policy.read_text()) if log_policy else None
    streams: dict[str, Stream] = {}

    def read(name: str) -> bytes:
        return tar.extractfile(files[name]).read()  # type: ignore[union-attr]

    for name in sorted({name.split("/")[1] for name in files if name.startswith(("streams/", "bodies/"))}):
        one = streams[name] = Stream(name, authorities)
        ours = [path for path in sorted(files) if path.split("/")[1:2] == [name]]
        one.read((int(Path(path).stem), read(path)) for path in ours if path.startswith("streams/"))
        one.read_texts(read(path) for path in ours if path.startswith("bodies/"))
        if policy is not None and not one.problems:
            try:
                need(f"log/{name}.tlog-proof" in files, "there is no proof of it")
                one.find_in_log(one.leaf, read(f"log/{name}.tlog-proof"), *policy)
            except Exception as error:
                one.problems.append((one.count - 1, f"nothing shows that the log has it: {why(error)}"))
        for path in sorted(path for path in files if path.startswith("revisions/") and path.endswith(".entry")):
            try:
                data, proof = (read(path.replace(".entry", ending)) for ending in (".seg", ".tlog-proof"))
                one.read_revision(read(path), data, proof, policy)
            except Exception as error:
                one.problems.append((one.count - 1, f"the policy {path} does not hold: {why(error)}"))
        for path in sorted(path for path in files if path.startswith("certificates/") and one.missing):
            if not path.endswith(".entry"):
                continue
            try:
                one.read_certificate(read(path), read(path.replace("entry", "tlog-proof")), policy)
            except Exception as error:
                what = f"its text is missing, and {path} gives no reason for it: {why(error)}"
                one.problems.append((min(one.missing.values()), what))
        if left := sorted({*one.missing.values()}):
            one.notes.append(f"{len(one.missing)} texts that records name are not here (records {left[:5]})")
    problems, lines = join(streams), list[str]()
    for one in streams.values():
        lines.append(f"stream {one.name}: {one.count} records, {one.signed} signed, end {one.end}")
        lines += [f"note: stream {one.name}: {note}" for note in one.notes]
    said = [f"stream {name} record {seq}: {what}" for name, seq, what in problems]
    lines += [f"also: {one}" for one in said[1:]]
    lines.append(f"verify: FAILED at {said[0]}" if said else "verify: OK")
    for line in lines:
        print("".join(sign if sign.isprintable() else "?" for sign in line))
    return 1 if problems else 0


def main(arguments: list[str] | None = None) -> int:
    """Check the bundle that the command line names; 2: it cannot be told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--trust", type=Path, required=True)
    parser.add_argument("--log-policy", type=Path)
    given = parser.parse_args(arguments)
    try:
        with given.bundle.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return verify(tar, read_tar(tar, file), given.trust, given.log_policy)
    except (Cannot, Exception) as error:
        print(f"verify: CANNOT VERIFY: {why(error)}")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
