"""Ways to tamper with the log: its proofs and checkpoints, and the collector's database by who administers it."""

from __future__ import annotations

import base64
import functools
import shutil
import sqlite3
from collections.abc import Callable, Iterator

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gateway_stream import Pod
from pki import Authority
from sealed_bundle import read_again
from tampered_scene import OK, ORIGIN, Files, Scene, Try, entries, failed, proof_of, put, segment
from tampering_streams import as_other, chained, said

from chaperone_evidence import entry, merkle
from chaperone_evidence.checkpoint import Checkpoint
from chaperone_evidence.cosignature import ED25519, ED25519_COSIGNATURE, CheckpointSigner, Key, sign_checkpoint
from chaperone_evidence.note import Signature, Signer
from chaperone_evidence.policy import Policy
from chaperone_evidence.policyfile import render
from chaperone_evidence.proof import LogProof, parse_proof

TIME_S = 1_790_000_000


def leaves(scene: Scene) -> list[bytes]:
    """All entries of the log, as leaves."""
    with sqlite3.connect(scene.folder / "store" / "evidence.db") as database:
        return [merkle.leaf_hash(row[0]) for row in database.execute("SELECT bytes FROM entry ORDER BY idx")]


def node_reader(tree: list[bytes]) -> merkle.Reader:
    """Nodes of a tree that is whole in memory."""
    return lambda nodes: [merkle.root(tree[one.index << one.level : (one.index + 1) << one.level]) for one in nodes]


def proved(tree: list[bytes], leaf: bytes, signers: tuple[CheckpointSigner, ...]) -> bytes:
    """A true proof of a leaf, in a tree that these keys sign."""
    index = tree.index(leaf)
    hashes = merkle.inclusion_proof(index, len(tree), node_reader(tree))
    note = sign_checkpoint(Checkpoint(ORIGIN, len(tree), merkle.root(tree)), signers, TIME_S)
    return LogProof(index, tuple(hashes), note).encode()


def _at_third(scene: Scene, proof: bytes, *, policy: str = "") -> Try:
    return Try(scene.stopped | {proof_of(scene.third): proof}, failed(scene.third, 9), policy=policy)


def _changed(scene: Scene, **fields: object) -> bytes:
    return msgspec.structs.replace(parse_proof(scene.stopped[proof_of(scene.third)]), **fields).encode()


def lengths(scene: Scene) -> Iterator[Try]:
    """Proofs that are too long or too short."""
    hashes = parse_proof(scene.stopped[proof_of(scene.third)]).hashes
    for changed in ((*hashes, hashes[0]), (hashes[0], *hashes), hashes[:-1], hashes[1:], (), hashes * 20):
        yield _at_third(scene, _changed(scene, hashes=changed))


def places(scene: Scene) -> Iterator[Try]:
    """Indexes that are others, or in no tree."""
    found = parse_proof(scene.stopped[proof_of(scene.third)])
    for index in (found.index - 1, found.index + 1, len(leaves(scene)), 2**62, 2**63, 10**19 - 1):
        yield _at_third(scene, _changed(scene, index=index))


def sizes(scene: Scene) -> Iterator[Try]:
    """Sizes that no tree has, signed by the log over the root to which the proof leads; the largest one is possible."""
    signer = Signer(ORIGIN, Ed25519PrivateKey.generate())
    policy = f"log {signer.verifier.vkey}\nquorum none\n"
    leaf = merkle.leaf_hash(entries(scene.third)[-1])
    for size in (0, 2**63 - 1, 2**63):
        last = max(size - 1, 0)
        hashes = (bytes(32),) * last.bit_count()
        root = functools.reduce(lambda right, left: merkle.node_hash(left, right), hashes, leaf)
        note = signer.sign(f"{ORIGIN}\n{size}\n{base64.b64encode(root).decode()}\n")
        tried = _at_third(scene, LogProof(last, hashes, note).encode(), policy=policy)
        yield msgspec.structs.replace(tried, expected=OK) if size == 2**63 - 1 else tried


def rolled_back(scene: Scene) -> Iterator[Try]:
    """An older checkpoint, and an older proof, for a stream that is newer."""
    for note in scene.sealed.checkpoints[:2]:
        yield _at_third(scene, _changed(scene, checkpoint=note))
    old = leaves(scene)[:12]
    yield _at_third(scene, proved(old, merkle.leaf_hash(entries(scene.first)[-1]), scene.keys))


def forked(scene: Scene) -> Iterator[Try]:
    """Two trees of one size, both signed by the log, in one bundle."""
    tree = leaves(scene)
    other = [*tree[:-1], merkle.leaf_hash(b"another entry")]
    proof = proved(other, merkle.leaf_hash(entries(scene.second)[1]), scene.keys)
    yield Try(scene.restarted | {proof_of(scene.second): proof}, failed(scene.second, 1))


def forked_elsewhere(scene: Scene) -> Iterator[Try]:
    """A tree that nobody else sees; it shows only to who asks for a witness."""
    other = [*leaves(scene)[:-1], merkle.leaf_hash(b"another entry")]
    proof = proved(other, merkle.leaf_hash(entries(scene.third)[-1]), scene.keys)
    yield Try(scene.stopped | {proof_of(scene.third): proof}, OK)


def unwitnessed(scene: Scene) -> Iterator[Try]:
    """The same, where a witness is asked for: it has not signed, or what it signed was another tree."""
    witness = CheckpointSigner("witness.example", Ed25519PrivateKey.generate(), ED25519_COSIGNATURE)
    policy = render(Policy(ORIGIN, tuple(one.key for one in scene.keys), 2, (witness.key,), 1))
    tree = leaves(scene)
    leaf = merkle.leaf_hash(entries(scene.third)[-1])
    yield Try(scene.stopped | {proof_of(scene.third): proved(tree, leaf, (*scene.keys, witness))}, OK, policy=policy)
    yield _at_third(scene, proved(tree, leaf, scene.keys), policy=policy)
    other = [*tree[:-1], merkle.leaf_hash(b"another entry")]
    seen = sign_checkpoint(Checkpoint(ORIGIN, len(tree), merkle.root(tree)), (witness,), TIME_S)
    proof = parse_proof(proved(other, leaf, scene.keys))
    line = seen.partition(b"\n\n")[2]
    yield _at_third(scene, msgspec.structs.replace(proof, checkpoint=proof.checkpoint + line).encode(), policy=policy)


def signed_by_others(scene: Scene) -> Iterator[Try]:
    """Checkpoints without a key of the log, with another's, or with a known one that does not verify."""
    tree, leaf = leaves(scene), merkle.leaf_hash(entries(scene.third)[-1])
    stranger = CheckpointSigner(ORIGIN, Ed25519PrivateKey.generate(), ED25519)
    for signers in ((scene.keys[0],), (scene.keys[1],), (stranger, scene.keys[1]), (stranger,)):
        yield _at_third(scene, proved(tree, leaf, signers))
    good = parse_proof(proved(tree, leaf, scene.keys))
    for signer in scene.keys:
        bad = Signature(signer.key.name, signer.key.id, bytes(2428 if signer.key.kind == 6 else 64)).line
        added = msgspec.structs.replace(good, checkpoint=good.checkpoint + bad.encode())
        yield _at_third(scene, added.encode())
    policy = f"log {Key(ORIGIN, ED25519, bytes(32)).vkey}\nquorum none\n"
    yield _at_third(scene, good.encode(), policy=policy)
    policy = f"log {Key('chaperone.dev/log/another', ED25519, scene.keys[0].key.public).vkey}\nquorum none\n"
    yield _at_third(scene, good.encode(), policy=policy)


def _with_unknown(scene: Scene, count: int) -> bytes:
    found = parse_proof(scene.stopped[proof_of(scene.third)])
    lines = "".join(Signature(f"unknown-{number}", b"abcd", b"x").line for number in range(count))
    return msgspec.structs.replace(found, checkpoint=found.checkpoint + lines.encode()).encode()


def too_many_signatures(scene: Scene) -> Iterator[Try]:
    """17 and more."""
    for count in (15, 16, 98):
        yield _at_third(scene, _with_unknown(scene, count))


def unknown_signatures(scene: Scene) -> Iterator[Try]:
    """Of keys that the policy does not name; up to 16 in all they say nothing."""
    for count in (1, 14):
        yield Try(scene.stopped | {proof_of(scene.third): _with_unknown(scene, count)}, OK)


def no_proof(scene: Scene) -> Iterator[Try]:
    """The proof is left out, or is empty."""
    kept = {name: data for name, data in scene.stopped.items() if not name.startswith("log/")}
    yield Try(kept, failed(scene.third, 9))
    yield _at_third(scene, b"")


def lacking(scene: Scene) -> Iterator[Try]:
    """A record without a field on which nothing else depends, said by the gateway itself and taken into the log."""
    frames = chained(scene.third, scene.third.pod, change={2: said(b',"target":"orders-db"', b"")})
    leaf = merkle.leaf_hash(frames[-1][2:])
    files = put(scene.stopped, scene.third, frames) | {proof_of(scene.third): proved([leaf], leaf, scene.keys)}
    yield Try(files, failed(scene.third, 2), companion=OK)


def older_end(scene: Scene) -> Iterator[Try]:
    """The newest records are withheld: the stream ends with an older head, of which the log has a true proof."""
    frames = [entry.frame(one) for one in entries(scene.third)[:2]]
    proof = proved(leaves(scene), merkle.leaf_hash(entries(scene.third)[1]), scene.keys)
    files = {segment(scene.third): b"".join(frames), proof_of(scene.third): proof}
    yield Try(files, OK, "is still open")


# The database


def edited(scene: Scene, change: Callable[[Scene, list[bytes]], list[bytes]]) -> Files:
    """The bundle of `third` after its entries were changed in the database, and the log was hashed and signed anew."""
    store = scene.folder / f"edited-{len(list(scene.folder.iterdir()))}"
    shutil.copytree(scene.folder / "store", store)
    database = sqlite3.connect(store / "evidence.db", isolation_level=None)
    stream, count = database.execute("SELECT id, count FROM stream WHERE name = ?", (scene.third.id,)).fetchone()
    old = [
        bytes(row[0]) for row in database.execute("SELECT bytes FROM entry WHERE stream = ? ORDER BY seq", (stream,))
    ]
    new = change(scene, list(old))
    first = database.execute("SELECT min(idx) FROM entry WHERE stream = ?", (stream,)).fetchone()[0]
    database.execute("DELETE FROM entry WHERE stream = ?", (stream,))
    database.executemany(
        "INSERT INTO entry (idx, stream, seq, class, bytes) VALUES (?,?,?,?,?)",
        [(first + seq, stream, seq, data[1], data) for seq, data in enumerate(new)],
    )
    gone = count - len(new)
    if gone:
        for table, column in (("entry", "idx"), ("session", "idx"), ("session", "close_idx"), ("command", "idx")):
            behind = first + (4 if table != "entry" else len(new))
            database.execute(f"UPDATE {table} SET {column} = {column} - ? WHERE {column} > ?", (gone, behind))
        database.execute("UPDATE stream SET count = ?, signed = ? WHERE id = ?", (len(new), len(new), stream))
    database.execute("DELETE FROM tile")
    database.execute("DELETE FROM checkpoint")
    database.close()
    return read_again(store, {"it": scene.session}).bundles["it"]


def _frames(made: list[bytes]) -> list[bytes]:
    return [one[2:] for one in made]


def _edit(scene: Scene, change: Callable[[Scene, list[bytes]], list[bytes]], seq: int) -> Iterator[Try]:
    yield Try(edited(scene, change), failed(scene.third, seq))


def _more_rows(data: bytes) -> bytes:
    assert b'"rows":1' in data
    return data.replace(b'"rows":1', b'"rows":9')


def changed_row(scene: Scene) -> Iterator[Try]:
    """An entry is changed."""
    yield from _edit(scene, lambda _, old: [*old[:4], _more_rows(old[4]), *old[5:]], 4)


def deleted_row(scene: Scene) -> Iterator[Try]:
    """A row is deleted, and all that follows is numbered anew."""
    yield from _edit(scene, lambda _, old: old[:4] + old[5:], 4)


def chained_anew(scene: Scene) -> Iterator[Try]:
    """An entry is changed, and the links after it; the heads stay, or are signed by a key of one's own."""

    def keep_heads(scene: Scene, _: list[bytes]) -> list[bytes]:
        return _frames(chained(scene.third, scene.third.pod, change={4: _more_rows}, heads=False))

    def own_key(scene: Scene, _: list[bytes]) -> list[bytes]:
        own = Pod(scene.ca, pod="reports-0", pod_uid=scene.other.pod_uid)
        return _frames(chained(scene.third, own, change={4: _more_rows}))

    yield from _edit(scene, keep_heads, 9)
    yield from _edit(scene, own_key, 1)


def chained_by_a_stranger(scene: Scene) -> Iterator[Try]:
    """The whole stream under a key and a CA of the administrator's own."""
    own = Pod(Authority("gateway CA"), pod="reports-0", pod_uid=scene.other.pod_uid)
    yield from _edit(scene, lambda scene, _: _frames(as_other(scene.third, own)), 0)


def edited_text(scene: Scene) -> Iterator[Try]:
    """A text is changed under its commitment."""
    store = scene.folder / "edited-text"
    shutil.copytree(scene.folder / "store", store)
    with sqlite3.connect(store / "evidence.db") as database:
        for number, body in database.execute("SELECT id, bytes FROM body").fetchall():
            if body.endswith(b"SELECT 4"):
                database.execute("UPDATE body SET bytes = ? WHERE id = ?", (body[:-1] + b"5", number))
    yield Try(read_again(store, {"it": scene.session}).bundles["it"], failed(scene.third, 5))
