"""Ways to tamper with the streams of a bundle: bytes, entries, texts, keys, whole streams."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import msgspec
from gateway_stream import Pod, Stream
from pki import Authority
from sealed_bundle import pack
from tampered_scene import CANNOT, OK, Files, Scene, Try, bundles, entries, failed, proof_of, put, segment, texts

from chaperone_evidence import entry, record
from chaperone_evidence.chain import Chain, next_link


def flip(data: bytes, position: int, mask: int = 1) -> bytes:
    return data[:position] + bytes((data[position] ^ mask,)) + data[position + 1 :]


def sample(begin: int, end: int, most: int) -> Iterator[int]:
    yield from sorted({begin + (end - begin - 1) * number // max(most - 1, 1) for number in range(most)})


def flips_in_entries(part: str) -> Callable[[Scene], Iterator[Try]]:
    """Flip bytes of one part of each entry; the first, the last and some between."""

    def tries(scene: Scene) -> Iterator[Try]:
        for files, stream, frames in bundles(scene):
            for index, frame in enumerate(frames):
                is_head = frame[3] == entry.CLASS_HEAD
                begin, end, most = {
                    "version": (2, 3, 1), "class": (3, 4, 1), "link": (4, 36, 3),
                    "record": (36, 36 if is_head else len(frame), 12), "head": (36, len(frame) if is_head else 36, 24),
                }[part]  # fmt: skip
                for position in sample(begin, end, most) if begin < end else ():
                    changed = [*frames[:index], flip(frame, position), *frames[index + 1 :]]
                    yield Try(put(files, stream, changed), failed(stream, index))

    return tries


def flips_in_texts(begin: int, end: int) -> Callable[[Scene], Iterator[Try]]:
    """Flip bytes of each text's frame: 4 bytes of length, 32 of salt, then the text."""

    def tries(scene: Scene) -> Iterator[Try]:
        named = {
            base64.b64decode(found.body.commit): (stream, found.seq)
            for stream in (scene.first, scene.third)
            for found in (record.decode(one[34:]) for one in entries(stream) if one[1] == entry.CLASS_RECORD)
            if isinstance(found, record.CommandIntent) and isinstance(found.body, record.Commitment)
        }
        for files, stream in ((scene.restarted, scene.first), (scene.stopped, scene.third)):
            if stream is scene.first and begin == 0:
                continue  # where lengths are lost, so is which of the texts that may be withheld it was
            data, start = files[texts(stream)], 0
            for body in entry.body_frames(data):
                for position in sample(start + begin, min(start + end, start + 4 + len(body)), 4):
                    whose, seq = named[entry.body_commit(body)]
                    yield Try(files | {texts(stream): flip(data, position)}, failed(whose, seq))
                start += 4 + len(body)

    return tries


def flips_in_proofs(scene: Scene) -> Iterator[Try]:
    """Flip bytes of each line of each proof."""
    for files, stream, frames in bundles(scene):
        data, start = files[proof_of(stream)], 0
        for line in data.splitlines(keepends=True):
            for position in sample(start, start + len(line), 8):
                yield Try(files | {proof_of(stream): flip(data, position)}, failed(stream, len(frames) - 1))
            start += len(line)


def flips_in_lengths(scene: Scene) -> Iterator[Try]:
    for files, stream, frames in bundles(scene):
        for index, frame in enumerate(frames):
            for changed in (flip(frame, 0), flip(frame, 1), flip(frame, 1, 0x80)):
                tried = [*frames[:index], changed, *frames[index + 1 :]]
                yield Try(put(files, stream, tried), failed(stream, index))


# Entries


def delete(scene: Scene) -> Iterator[Try]:
    for files, stream, frames in bundles(scene):
        for index in range(len(frames)):
            # Without its last entry a stream is not what the log has, which shows at the entry that is the last then.
            named = min(index, len(frames) - 2)
            yield Try(put(files, stream, frames[:index] + frames[index + 1 :]), failed(stream, named))


def insert(scene: Scene) -> Iterator[Try]:
    for files, stream, frames in bundles(scene):
        foreign = entry.frame(entries(scene.ahead)[2])
        for index in range(len(frames) + 1):
            yield Try(put(files, stream, [*frames[:index], foreign, *frames[index:]]), failed(stream, index))


def reorder(scene: Scene) -> Iterator[Try]:
    for files, stream, frames in bundles(scene):
        for index in range(len(frames) - 1):
            swapped = [*frames[:index], frames[index + 1], frames[index], *frames[index + 2 :]]
            yield Try(put(files, stream, swapped), failed(stream, index))


def duplicate(scene: Scene) -> Iterator[Try]:
    for files, stream, frames in bundles(scene):
        for index in range(len(frames)):
            yield Try(put(files, stream, [*frames[: index + 1], *frames[index:]]), failed(stream, index + 1))


def cut(scene: Scene) -> Iterator[Try]:
    for files, stream, frames in bundles(scene):
        for count in range(len(frames)):
            yield Try(put(files, stream, frames[:count]), failed(stream, max(count - 1, 0)))


def cut_in_the_middle(scene: Scene) -> Iterator[Try]:
    for files, stream, frames in bundles(scene):
        for index, frame in enumerate(frames):
            for kept in (1, 2, len(frame) // 2, len(frame) - 1):
                yield Try(put(files, stream, [*frames[:index], frame[:kept]]), failed(stream, index))


def torn(scene: Scene) -> Iterator[Try]:
    files, stream = scene.restarted, scene.first
    frames = [entry.frame(one) for one in entries(stream)]
    yield Try(
        put(files, stream, [*frames, frames[3][:40]]), OK, "was not written to its end",
        companion=failed(stream, len(frames)),
    )  # fmt: skip


def too_long(scene: Scene) -> Iterator[Try]:
    for size, frame in (
        (16_385, (16_385).to_bytes(2, "big")), (65_535, b"\xff\xff"), (65_536, (65_536).to_bytes(3, "big")[1:]),
    ):  # fmt: skip
        data = bytes((1, 1)) + bytes(32) + b"{" + b"x" * (size - 35)
        for files, stream, frames in bundles(scene):
            yield Try(put(files, stream, [*frames[:1], frame + data, *frames[1:]]), failed(stream, 1))


def twin(scene: Scene) -> Iterator[Try]:
    """The same record in another form, under links and heads that the stream's own key makes anew."""
    twins: tuple[Callable[[bytes], bytes], ...] = (
        lambda header: header.replace(b'":', b'": ', 1),
        lambda header: header + b"\n",
        lambda header: header.replace(b"-", b"\\u002d", 1),
        lambda header: header[:-1] + b',"z":null}',
        lambda header: header[:-1] + b',"z":1.0}',
        lambda header: header[:-1] + b',"z":9007199254740992}',
        lambda header: header[:-1] + header[header.rindex(b","):],
        lambda header: header[:-1] + b',"Z":1}',
    )  # fmt: skip
    for twin in twins:
        for seq in (0, 3):
            frames = chained(scene.third, scene.third.pod, change={seq: twin})
            yield Try(put(scene.stopped, scene.third, frames), failed(scene.third, seq))


def chained(
    stream: Stream, pod: Pod, *, change: dict[int, Callable[[bytes], bytes]] | None = None, heads: bool = True
) -> list[bytes]:
    """The stream's entries under links of their own, and heads of this pod's key (or as they were)."""
    chain = Chain(pod.cluster, stream.id)
    frames = []
    for seq, data in enumerate(entries(stream)):
        header = (change or {}).get(seq, lambda same: same)(data[34:])
        if data[1] == entry.CLASS_HEAD and heads:
            frames.append(chain.append_head(pod.signer, stream.now_us, "closed" if b"state closed" in data else "open"))
            continue
        chain.link = next_link(chain.link, data[1], header)
        chain.count += 1
        frames.append(entry.frame(bytes((1, data[1])) + chain.link + header))
    return frames


def said(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(header: bytes) -> bytes:
        assert old in header
        return header.replace(old, new)

    return change


def other_key(scene: Scene) -> Iterator[Try]:
    stranger = Pod(scene.ca, pod="reports-0", pod_uid=scene.other.pod_uid)
    yield Try(put(scene.stopped, scene.third, chained(scene.third, stranger)), failed(scene.third, 1))
    # The key of the process that came after, over what the one before wrote: it is good for its own stream alone.
    newer = chained(scene.first, scene.second.pod)
    yield Try(put(scene.restarted, scene.first, newer), failed(scene.first, 1))


def other_authority(scene: Scene) -> Iterator[Try]:
    namesake = Pod(Authority("gateway CA"), pod="reports-0", pod_uid=scene.other.pod_uid)
    yield Try(put(scene.stopped, scene.third, as_other(scene.third, namesake)), failed(scene.third, 0))
    # A good certificate of another pod.
    elsewhere = Pod(scene.ca, pod="reports-1", pod_uid="6f1f0a52-0000-4000-8000-000000000003")
    keep_pod = said(b'"pod":"reports-1"', b'"pod":"reports-0"')
    frames = as_other(scene.third, elsewhere, keep_pod)
    yield Try(put(scene.stopped, scene.third, frames), failed(scene.third, 0))


def as_other(stream: Stream, pod: Pod, change: Callable[[bytes], bytes] = lambda same: same) -> list[bytes]:
    opened = msgspec.structs.replace(
        Stream(pod).stream_open(), stream=stream.id, wall_us=stream.now_us, mono_us=stream.now_us - 10**15
    )
    return chained(stream, pod, change={0: lambda _: change(msgspec.json.encode(opened, order="sorted"))})


def rewritten(scene: Scene) -> Iterator[Try]:
    """By who holds the stream's own key: the log has other bytes, and so has the stream that follows."""
    frames = chained(scene.third, scene.third.pod, change={4: said(b'"rows":1', b'"rows":9')})
    yield Try(put(scene.stopped, scene.third, frames), failed(scene.third, len(frames) - 1))
    frames = chained(scene.first, scene.first.pod, change={4: said(b'"rows":1', b'"rows":9')})
    yield Try(put(scene.restarted, scene.first, frames), failed(scene.first, len(frames) - 1))


# Streams


def swap(scene: Scene) -> Iterator[Try]:
    files, (one, other) = scene.restarted, (segment(scene.first), segment(scene.second))
    yield Try(files | {one: files[other], other: files[one]}, failed(scene.first, 0))
    foreign = b"".join(scene.ahead.frames)
    yield Try(scene.stopped | {segment(scene.third): foreign}, failed(scene.third, 0))
    one, other = proof_of(scene.first), proof_of(scene.second)
    yield Try(files | {one: files[other], other: files[one]}, failed(scene.first, len(scene.first.frames) - 1))


def drop_follower(scene: Scene) -> Iterator[Try]:
    yield Try(_without(scene.restarted, scene.second), failed(scene.first, len(scene.first.frames) - 1))


def drop_followed(scene: Scene) -> Iterator[Try]:
    yield Try(_without(scene.restarted, scene.first), OK, f"follows {scene.first.id}, which is not here")


def drop_entries(scene: Scene) -> Iterator[Try]:
    kept = {name: data for name, data in scene.restarted.items() if name != segment(scene.first)}
    yield Try(kept, failed(scene.first, 0))


def drop_texts(scene: Scene) -> Iterator[Try]:
    for files, stream in ((scene.restarted, scene.first), (scene.stopped, scene.third)):
        kept = {name: data for name, data in files.items() if name != texts(stream)}
        yield Try(kept, OK, "texts that records name are not here")


def rename(scene: Scene) -> Iterator[Try]:
    data = scene.stopped[segment(scene.third)]
    kept = {name: data for name, data in scene.stopped.items() if name != segment(scene.third)}
    yield Try(kept | {f"streams/{scene.third.id}/{1:016d}.seg": data}, failed(scene.third, 0))
    yield Try(scene.stopped | {f"streams/{scene.third.id}/{99:016d}.seg": data}, failed(scene.third, 10))


def _without(files: Files, stream: Stream) -> Files:
    return {name: data for name, data in files.items() if stream.id not in name}


def clock(scene: Scene) -> Iterator[Try]:
    for name, step in (("ahead", r"\+3600\.0"), ("behind", r"-3600\.0")):
        yield Try(scene.sealed.bundles[name], OK, rf"record 3: the gateway's clock was set by {step} s")


def nothing(scene: Scene) -> Iterator[Try]:
    """The bundles as they are."""
    yield Try(scene.restarted, OK, "still open")
    yield Try(scene.stopped, OK)


def flips_in_headers(scene: Scene) -> Iterator[Try]:
    """Flip bytes of the tar itself: its checksums are no protection, but nothing may be read in two ways."""
    bundle = pack(scene.stopped)
    starts = [at for at in range(0, len(bundle), 512) if bundle[at + 257 : at + 262] == b"ustar"]
    for start in starts:
        for position in sample(start, start + 512, 24):
            says_nothing = position - start == 155  # behind the end of the checksum's digits
            changed = flip(bundle, position)
            yield Try({}, CANNOT, bundle=changed, companion=OK if says_nothing else None)
