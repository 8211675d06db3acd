"""A namespace's coverage, verified offline: what holds, each way to tamper with it, and whether an agent was silent."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from covered_scene import MINUTE, SECOND, Bundle, Spoken, beats, bundle, covered, ended, pod, speaker
from gateway_stream import Stream
from pki import Authority
from sealed_bundle import pack

from chaperone_cli.main import main
from chaperone_collector.api import census
from chaperone_collector.population import Given
from chaperone_evidence import entry, record
from chaperone_evidence.population import Uncovered

BEGIN = time.time_ns() // 10**9 * SECOND  # certificates are valid from now on
END = BEGIN + 20 * MINUTE
IDLE = "crm-agent"


class Scene:
    """Four pods: one lives, one ended, one's gateway began anew, one of another identity does nothing."""

    def __init__(self, ca: Authority) -> None:
        self.ca = ca
        self.live = Stream(pod(ca, "a1"), start_us=BEGIN + SECOND)
        session = self.live.open_session()
        self.live.conclude(session, self.live.intend(session, with_body=False))
        self.live.close_session(session, 1)
        beats(self.live, END)
        self.over = Stream(pod(ca, "a2"), start_us=BEGIN + SECOND)
        beats(self.over, BEGIN + 5 * MINUTE)
        self.over.close()
        self.first = Stream(pod(ca, "a3"), start_us=BEGIN + SECOND)
        beats(self.first, BEGIN + 2 * MINUTE)
        self.second = Stream(pod(ca, "a3"), previous=self.first, start_us=BEGIN + 2 * MINUTE + 9 * SECOND)
        beats(self.second, END)
        self.idle = Stream(pod(ca, "a4", IDLE), start_us=BEGIN + SECOND)
        beats(self.idle, END)
        self.streams = [self.live, self.over, self.first, self.second, self.idle]

    def said(self, speaks: Spoken) -> list[Given]:
        """Three populations, ten minutes apart."""
        there = [covered(uid, BEGIN) for uid in ("a1", "a3")]
        idle = covered("a4", BEGIN, IDLE)
        over = ended("a2", BEGIN, BEGIN + 5 * MINUTE + SECOND)
        return [
            speaks.say(BEGIN, *there, idle, covered("a2", BEGIN)),
            speaks.say(BEGIN + 10 * MINUTE, *there, idle, over),
            speaks.say(END, *there, idle),
        ]


@pytest.fixture(scope="module")
def scene(gateway_ca: Authority) -> Scene:
    return Scene(gateway_ca)


@pytest.fixture(scope="module")
def honest(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("store"), scene.ca, scene.said(speaker()), scene.streams, END)


def verified(folder: Path, scene: Scene, given: Bundle, *more: str, key: str | None = None) -> Result:
    (folder / "ca.pem").write_text(scene.ca.pem)
    (folder / "log.policy").write_text(given.policy)
    (folder / "operator.vkey").write_text(given.vkey if key is None else key)
    (folder / "coverage.tar").write_bytes(pack(given.files))
    return CliRunner().invoke(main, [
        "verify", str(folder / "coverage.tar"), "--trust", str(folder / "ca.pem"), "--log-policy",
        str(folder / "log.policy"), "--operator-key", str(folder / "operator.vkey"), *more,
    ])  # fmt: skip


def last(done: Result) -> str:
    return done.output.splitlines()[-1]


def test_what_holds_is_said_of_each_pod(scene: Scene, honest: Bundle, tmp_path: Path) -> None:
    done = verified(tmp_path, scene, honest)
    assert (done.exit_code, last(done)) == (0, "verify: OK"), done.output
    pods = [line for line in done.output.splitlines() if line.startswith("pod ")]
    assert [line.split(", ")[0] for line in pods] == [
        "pod pod-a1 a1 as billing-agent: Covered", "pod pod-a2 a2 as billing-agent: Ended (Succeeded)",
        "pod pod-a3 a3 as billing-agent: Covered", f"pod pod-a4 a4 as {IDLE}: Covered",
    ]  # fmt: skip
    assert f"stream {scene.second.id}, last record {scene.second.chain.count - 1} seen" in pods[2]
    assert "populations agents: epochs 1 to 3, as of" in done.output
    assert "lay in the bundle" not in done.output
    said = json.loads(verified(tmp_path, scene, honest, "--json").output)["coverage"]
    assert [one["state"] for one in said["pods"]] == ["Covered", "Ended", "Covered", "Covered"]
    assert said["operator"] == {"given": True, "vkey": honest.vkey}


def test_a_key_that_lay_in_the_bundle_is_said(scene: Scene, honest: Bundle, tmp_path: Path) -> None:
    verified(tmp_path, scene, honest)
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "coverage.tar"), "--trust", str(tmp_path / "ca.pem")])
    assert done.exit_code == 0, done.output
    assert f"trust: operator {honest.vkey}" in done.output
    assert "note: this operator key lay in the bundle" in done.output
    assert "note: the proof that the log has the newest population was not checked" in done.output


def other(scene: Scene) -> Stream:
    """Of another namespace; a log has a name once it has a stream."""
    return Stream(pod(scene.ca, "z1", namespace="elsewhere"), start_us=BEGIN + SECOND)


def epochs(given: Bundle) -> list[bytes]:
    """Salt and note of each population of a bundle."""
    (name,) = [name for name in given.files if name.startswith("populations/") and name.endswith(".seg")]
    return list(entry.body_frames(given.files[name]))


def with_epochs(given: Bundle, bodies: list[bytes]) -> Bundle:
    """The bundle with other populations."""
    (name,) = [name for name in given.files if name.startswith("populations/") and name.endswith(".seg")]
    data = b"".join(entry.body_frame(body[: entry.SALT_BYTES], body[entry.SALT_BYTES :]) for body in bodies)
    return Bundle(given.files | {name: data}, given.policy, given.vkey)


def without(given: Bundle, *parts: str) -> Bundle:
    files = {name: data for name, data in given.files.items() if not any(part in name for part in parts)}
    return Bundle(files, given.policy, given.vkey)


def drop_a_pod(_: Scene, given: Bundle) -> Bundle:
    first, *more = epochs(given)
    lines = [line for line in first[entry.SALT_BYTES :].split(b"\n") if b"pod-a1" not in line]
    return with_epochs(given, [first[: entry.SALT_BYTES] + b"\n".join(lines), *more])


def drop_an_epoch(_: Scene, given: Bundle) -> Bundle:
    first, _second, third = epochs(given)
    return with_epochs(given, [first, third])


def drop_the_first(_: Scene, given: Bundle) -> Bundle:
    return with_epochs(given, epochs(given)[1:])


def repeat_an_epoch(_: Scene, given: Bundle) -> Bundle:
    first, *more = epochs(given)
    return with_epochs(given, [first, first, *more])


def fork_an_epoch(_: Scene, given: Bundle) -> Bundle:
    """The operator itself says two of one epoch."""
    speaks = speaker()
    one = speaks.say(BEGIN, covered("a1", BEGIN))
    return with_epochs(given, [one.salt + one.note, *epochs(given)[1:]])


def roll_back(_: Scene, given: Bundle) -> Bundle:
    return with_epochs(given, epochs(given)[:2])


def drop_a_stream(scene: Scene, given: Bundle) -> Bundle:
    return without(given, scene.live.id)


def drop_the_first_of_two(scene: Scene, given: Bundle) -> Bundle:
    return without(given, scene.first.id)


def drop_the_second_of_two(scene: Scene, given: Bundle) -> Bundle:
    return without(given, scene.second.id)


def cut_a_stream(scene: Scene, given: Bundle) -> Bundle:
    name = f"streams/{scene.over.id}/{0:016d}.seg"
    kept = list(entry.frames(given.files[name]))[:-3]
    return Bundle(given.files | {name: b"".join(map(entry.frame, kept))}, given.policy, given.vkey)


TAMPERED: list[tuple[Callable[[Scene, Bundle], Bundle], str]] = [
    (drop_a_pod, "population 1 of agents: it is none of this operator's"),
    (drop_an_epoch, "population 2 of agents: it is not here; epoch 3 stands in its place"),
    (drop_the_first, "population 1 of agents: it is not here; epoch 2"),
    (repeat_an_epoch, "population 2 of agents: it is not here; epoch 1"),
    (fork_an_epoch, "population 2 of agents: it does not follow from the one before it"),
    (roll_back, "population 2 of agents: nothing shows that the log has it: the entry is that of epoch 3"),
    (drop_a_stream, "pod pod-a1 a1: billing-agent is Missing"),
    (drop_the_first_of_two, "record 0: it follows"),
    (drop_the_second_of_two, "pod pod-a3 a3: billing-agent is Lost"),
    (cut_a_stream, "nothing shows that the log has it"),
]


@pytest.mark.parametrize(("tamper", "told"), TAMPERED, ids=lambda one: getattr(one, "__name__", ""))
def test_whatever_is_tampered_with_is_found(
    tamper: Callable[[Scene, Bundle], Bundle], told: str, scene: Scene, honest: Bundle, tmp_path: Path
) -> None:
    done = verified(tmp_path, scene, tamper(scene, honest))
    assert done.exit_code == 1, done.output
    assert last(done).startswith("verify: FAILED at ")
    assert told in last(done)


def test_a_stream_that_was_cut_with_its_proof_is_truncated(scene: Scene, honest: Bundle, tmp_path: Path) -> None:
    given = without(cut_a_stream(scene, honest), f"log/{scene.over.id}")
    (tmp_path / "ca.pem").write_text(scene.ca.pem)
    (tmp_path / "coverage.tar").write_bytes(pack(given.files))
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "coverage.tar"), "--trust", str(tmp_path / "ca.pem")])
    assert done.exit_code == 1
    assert "FAILED at pod pod-a2 a2: billing-agent is Truncated (Succeeded)" in last(done)


def test_another_operators_populations_are_refused(
    scene: Scene, honest: Bundle, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = scene.said(speaker(seed=2))
    forged = bundle(tmp_path_factory.mktemp("store"), scene.ca, said, scene.streams, END)
    done = verified(tmp_path, scene, forged, key=honest.vkey)
    assert done.exit_code == 1
    assert "FAILED at population 1 of agents: it is none of this operator's" in last(done)


def test_another_namespaces_populations_are_found(
    scene: Scene, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = speaker("elsewhere")
    other = bundle(
        tmp_path_factory.mktemp("store"), scene.ca, [elsewhere.say(END, covered("a1", BEGIN))], scene.streams, END,
        "elsewhere",
    )  # fmt: skip
    named_ours = {name.replace("/elsewhere/", "/agents/"): data for name, data in other.files.items()}
    done = verified(tmp_path, scene, Bundle(named_ours, other.policy, other.vkey))
    assert "FAILED at population 1 of agents: it is one of the namespace elsewhere" in last(done)
    with_our_streams = other.files | {
        f"streams/{scene.live.id}/{0:016d}.seg": b"".join(scene.live.frames)
    }  # fmt: skip
    done = verified(tmp_path, scene, Bundle(with_our_streams, other.policy, other.vkey))
    assert done.exit_code == 1
    assert "it is of the namespace agents" in done.output


@pytest.mark.parametrize("is_log_young", [True, False], ids=["by the log", "by a stream"])
def test_an_older_state_gives_itself_away(
    scene: Scene, tmp_path: Path, is_log_young: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A bundle that ends with an old population but has a young log, or young streams."""
    said = scene.said(speaker())[:1]
    streams = [other(scene)] if is_log_young else scene.streams
    stale = bundle(
        tmp_path_factory.mktemp("store"), scene.ca, said, streams, END if is_log_young else BEGIN + MINUTE
    )  # fmt: skip
    done = verified(tmp_path, scene, stale)
    assert done.exit_code == 1
    assert "population 1 of agents: it is the newest here" in done.output
    assert ("the log was signed 20 minutes later" in done.output) is is_log_young


def test_streams_that_nobody_knows_and_pods_without_a_gateway_are_named(
    scene: Scene, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    speaks = speaker()
    said = [speaks.say(END, covered("a1", BEGIN, IDLE), Uncovered("b1", "old", "billing-agent", "ExistedBefore"))]
    found = bundle(tmp_path_factory.mktemp("store"), scene.ca, said, [scene.live, scene.idle], END)
    done = verified(tmp_path, scene, found)
    assert "it is of pod-a1 as billing-agent, the pod is pod-a1 as crm-agent" in last(done)
    assert "also: pod old b1: billing-agent is Uncovered (ExistedBefore)" in done.output
    assert f"also: pod pod-a4 a4: {IDLE} is Unknown" in done.output


def test_a_long_stream_is_given_by_its_ends(
    scene: Scene, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    long = Stream(pod(scene.ca, "a1", IDLE), start_us=BEGIN + SECOND)
    for _ in range(census.MAX_WHOLE):
        long.add(record.DnsDenied(seq=0, wall_us=0, mono_us=0, name="a.example.com", qtype="A"))
    long.head("idle")
    speaks = speaker()
    said = [speaks.say(BEGIN, covered("a1", BEGIN, IDLE)), speaks.say(long.now_us, covered("a1", BEGIN, IDLE))]
    found = bundle(tmp_path_factory.mktemp("store"), scene.ca, said, [long], long.now_us)
    assert [name for name in found.files if long.id in name] == [f"ends/{long.id}.seg", f"log/{long.id}.tlog-proof"]
    done = verified(tmp_path, scene, found)
    assert (done.exit_code, last(done)) == (0, "verify: OK"), done.output
    assert "its first record and its last head are here" in done.output
    first, head = entry.frames(found.files[f"ends/{long.id}.seg"])
    changed = entry.frame(first) + entry.frame(head.replace(b"state idle", b"state open"))
    files = found.files | {f"ends/{long.id}.seg": changed}
    done = verified(tmp_path, scene, Bundle(files, found.policy, found.vkey))
    assert f"FAILED at stream {long.id} record {census.MAX_WHOLE + 1}" in last(done)
    done = verified(tmp_path, scene, found, *asked(IDLE, BEGIN + SECOND, BEGIN + 2 * SECOND))
    assert f"stream {long.id} is not here whole" in done.output


GUIDE = (Path(__file__).parents[2] / "docs/guides/coverage.md").read_text()
EXAMPLES = re.findall(r"^    \$ chaperone (verify .+)\n((?:    [^$].*\n)+)", GUIDE, re.MULTILINE)


def test_the_guide_has_both_questions() -> None:
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize(("command", "told"), EXAMPLES, ids=["coverage", "silence"])
def test_what_the_guide_says_is_said(
    scene: Scene, honest: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, told: str
) -> None:
    verified(tmp_path, scene, honest)
    (tmp_path / "gateway-ca.pem").write_text(scene.ca.pem)
    monkeypatch.chdir(tmp_path)
    _, _, _, begin, _, end = asked(IDLE, BEGIN + MINUTE, BEGIN + 19 * MINUTE)
    words = [{"BEGIN": begin, "END": end}.get(word, word) for word in shlex.split(command)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    for line in told.splitlines():
        assert line.strip() in done.output


def asked(identity: str, from_us: int, until_us: int) -> tuple[str, ...]:
    begin, end = (datetime.fromtimestamp(us / 1e6, UTC).isoformat() for us in (from_us, until_us))
    return "--identity", identity, "--from", begin, "--to", end


def test_silence_is_proved_by_heads_and_populations(scene: Scene, honest: Bundle, tmp_path: Path) -> None:
    done = verified(tmp_path, scene, honest, *asked(IDLE, BEGIN + MINUTE, BEGIN + 19 * MINUTE))
    assert done.exit_code == 0, done.output
    assert "proved, of 1 pods" in done.output
    done = verified(tmp_path, scene, honest, *asked("billing-agent", BEGIN + MINUTE, BEGIN + 19 * MINUTE))
    assert "silence: billing-agent did nothing from" in done.output
    assert "proved, of 3 pods" in done.output, done.output


@pytest.mark.parametrize(
    ("identity", "from_us", "until_us", "told"),
    [
        ("billing-agent", BEGIN, BEGIN + MINUTE, "is a session.open"),
        (IDLE, BEGIN - MINUTE, BEGIN + MINUTE, "no population is so old"),
        (IDLE, BEGIN + MINUTE, END + MINUTE, "no population is so young"),
    ],
    ids=["active", "too old", "too young"],
)
def test_what_is_not_proved_is_not_said(
    scene: Scene, honest: Bundle, tmp_path: Path, identity: str, from_us: int, until_us: int, told: str
) -> None:
    done = verified(tmp_path, scene, honest, *asked(identity, from_us, until_us))
    assert done.exit_code == 1
    assert told in done.output, done.output
    assert "proved, of" not in done.output
    assert last(done) == "verify: FAILED at the question, see silence"


def test_a_gap_between_heads_proves_nothing(
    scene: Scene, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    quiet = Stream(pod(scene.ca, "a4", IDLE), start_us=BEGIN + SECOND)
    beats(quiet, BEGIN + 5 * MINUTE)
    quiet.now_us += 2 * MINUTE
    beats(quiet, END)
    speaks = speaker()
    said = [speaks.say(BEGIN + at * MINUTE, covered("a4", BEGIN, IDLE)) for at in (0, 10, 20)]
    found = bundle(tmp_path_factory.mktemp("store"), scene.ca, said, [quiet], END)
    done = verified(tmp_path, scene, found, *asked(IDLE, BEGIN + MINUTE, BEGIN + 4 * MINUTE))
    assert done.exit_code == 0, done.output
    done = verified(tmp_path, scene, found, *asked(IDLE, BEGIN + MINUTE, BEGIN + 9 * MINUTE))
    assert done.exit_code == 1
    assert "no head was signed for 13" in done.output
    assert "NOT PROVED" in done.output


def test_a_pod_that_once_had_no_gateway_proves_nothing(
    scene: Scene, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    speaks = speaker()
    said = [
        speaks.say(BEGIN, Uncovered("b1", "old", IDLE, "ExistedBefore")),
        speaks.say(BEGIN + 10 * MINUTE, ended("b1", 0, BEGIN + 9 * MINUTE, IDLE)),
        speaks.say(END),
    ]
    found = bundle(tmp_path_factory.mktemp("store"), scene.ca, said, [other(scene)], END)
    done = verified(tmp_path, scene, found, *asked(IDLE, BEGIN + MINUTE, BEGIN + 8 * MINUTE))
    assert done.exit_code == 1
    assert "or was a pod without a gateway before" in done.output


@pytest.mark.parametrize(
    "more", [("--identity", IDLE), ("--identity", IDLE, "--from", "noon", "--to", "2026-01-01T00:00:00Z"),
             ("--identity", IDLE, "--from", "2026-01-01T00:00:00", "--to", "2026-01-02T00:00:00Z"),
             ("--identity", IDLE, "--from", "2026-01-02T00:00:00Z", "--to", "2026-01-01T00:00:00Z")],
)  # fmt: skip
def test_a_question_that_is_none_is_told(scene: Scene, honest: Bundle, tmp_path: Path, more: tuple[str, ...]) -> None:
    assert verified(tmp_path, scene, honest, *more).exit_code == 2
