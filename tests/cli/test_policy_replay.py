"""`chaperone replay-policy` and `suggest` over real evidence: of `chaperone dev`, and of streams with what is rare."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import yaml
from click.testing import CliRunner, Result
from evidence_directory import pack, write_stream
from fix_dev import Gateway
from gateway_stream import Pod, Stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import Object, identity, policy, rule, target
from pki import Authority

from chaperone_cli.main import main
from chaperone_evidence import record
from chaperone_operator.compile import compile_namespace

pytestmark = pytest.mark.peer

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 42 + "B"
WORKED = [
    "SELECT * FROM orders",
    "SELECT id FROM orders WHERE id = 1",
    "INSERT INTO invoices (id, paid) VALUES (977, false)",
    "UPDATE invoices SET id = id WHERE id = 1",
    "SELECT 1",
    "CREATE TABLE IF NOT EXISTS suggested (a int)",
    "SELECT * FROM suggested",
    "DROP TABLE suggested",
    "SET application_name = 'x'",
]


def write_policies(folder: Path, *more: Object, **spec: Any) -> Path:
    """Manifests with one policy of `rules`, and whatever else; `acts` is the identity's delegation."""
    folder.mkdir(exist_ok=True)
    rules = spec.pop("rules", [rule("read", "Allow", ["read"], ["public.orders"])])
    agent = identity(**{"delegation": spec.pop("acts")} if "acts" in spec else {})
    (folder / "all.yaml").write_text(yaml.safe_dump_all([agent, target(), policy(rules, **spec), *more]))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def replayed(folder: Path, evidence: Path) -> dict[str, Any]:
    done = run("replay-policy", "--manifests", folder, "--evidence", evidence, "-o", "json")
    assert done.exit_code in {0, 1}, done.output
    found: dict[str, Any] = json.loads(done.output)
    assert done.exit_code == bool(found["changed"])
    assert found["commands"] == found["replayed"] + sum(found["not_replayed"].values())
    return found


# --- a gateway's evidence ---------------------------------------------------------------------------


@pytest.fixture
def observed(gateway_with: Callable[..., Gateway]) -> Gateway:
    """A gateway that has observed what an agent does, and stopped."""
    gateway = gateway_with(rules=[rule("read", "Allow", ["read"], ["public.orders"])], mode="Observe")
    with gateway.connect() as connection:
        for text in WORKED:
            connection.execute(text)
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELEC 1")
    gateway.stop()
    return gateway


def test_draft_compiles_and_replayed_allows_exactly_what_it_lists(observed: Gateway, tmp_path: Path) -> None:
    done = run("suggest", "--evidence", observed.evidence)
    assert done.exit_code == 0, done.output
    draft = yaml.safe_load(done.output)
    listed = {
        (effect, name)
        for one in draft["spec"]["rules"]
        for effect in one["match"]["effects"]
        for name in one["match"]["objects"]
    }
    assert ("create", "public.invoices") in listed
    assert ("modify", "public.invoices") in listed
    assert all(one["action"] == "Allow" for one in draft["spec"]["rules"])
    assert not {effect for effect, _ in listed} & {"destroy", "privilege", "execute_code", "external_io", "unknown"}
    assert "# not suggested: destroy public.suggested (once, " in done.output

    made = compile_namespace("agents", [identity()], [target()], [draft], [], namespace_labels={})
    assert made.is_usable, made.problems
    found = replayed(write_policies(tmp_path / "draft", draft), observed.evidence)
    refused = {one["text"] for one in found["changes"] if one["would_be"] == "Deny"}
    assert refused == {"DROP TABLE suggested"}
    assert found["not_replayed"] == {}


def test_policy_that_was_in_force_changes_nothing(gateway_with: Callable[..., Gateway], tmp_path: Path) -> None:
    rules = [
        {"name": "careful", "action": "Allow",
         "match": {"effects": ["read"], "objects": ["public.*"], "require": {"where": True, "limit": 10}}},
        rule("never", "Deny", ["destroy"]),
    ]  # fmt: skip
    gateway = gateway_with(rules=rules)
    with gateway.connect() as connection:
        for text in ("SELECT * FROM orders WHERE id = 1 LIMIT 10", "SELECT * FROM orders WHERE id = 1 LIMIT 11",
                     "SELECT * FROM orders LIMIT 1", "DROP TABLE orders", "SELECT 1", "SELEC"):  # fmt: skip
            with contextlib.suppress(psycopg.Error):
                connection.execute(text)
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT * FROM orders WHERE id = %s LIMIT 10", (1,))
    gateway.stop()
    found = replayed(write_policies(tmp_path / "same", rules=rules), gateway.evidence)
    assert (found["changes"], found["not_replayed"], found["faults"]) == ([], {}, [])
    assert found["decisions"]["Allow"] >= 3
    assert found["decisions"]["Deny"] >= 4

    stricter = [*rules, rule("no-orders", "Deny", ["read"], ["public.orders"], message="Not now.")]
    folder = write_policies(tmp_path / "stricter", rules=stricter)
    done = run("replay-policy", "--manifests", folder, "--evidence", gateway.evidence)
    assert done.exit_code == 1
    assert "× Allow by careful of agents/billing → Deny by no-orders of agents/billing\n" in done.output
    assert "billing-agent at orders-db: Not now.\n" in done.output
    assert ": SELECT * FROM orders WHERE id = 1 LIMIT 10\n" in done.output


def test_masked_text_is_not_replayed_where_its_words_decide(
    gateway_with: Callable[..., Gateway], tmp_path: Path
) -> None:
    rules = [rule("all", "Allow", ["*"])]
    gateway = gateway_with(
        rules=rules, masks=[{"columns": ["public.orders.*"], "method": "Redact"}], unmaskable="Redact"
    )
    with gateway.connect() as connection, contextlib.suppress(psycopg.Error):
        connection.execute("SELECT 'secret', id FROM orders WHERE id = 1")
    gateway.stop()
    assert any(one.is_masked for one in gateway.records() if isinstance(one, record.CommandIntent))
    found = replayed(write_policies(tmp_path / "same", rules=rules), gateway.evidence)
    assert found["not_replayed"] == {}
    require = {"effects": ["read", "read_sensitive"], "require": {"where": True}}
    careful = [{"name": "careful", "action": "Allow", "match": require}]
    found = replayed(write_policies(tmp_path / "careful", rules=careful), gateway.evidence)
    assert found["not_replayed"] == {"WHERE or LIMIT decides, and its text is masked or not here": 1}


# --- streams with what is rare ----------------------------------------------------------------------


class Writer:
    """A stream whose intents are what a test wants them to be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stream = Stream(Pod(Authority("gateway CA")))
        self.session = self.stream.open_session()

    def intend(self, text: str, *accesses: tuple[str, ...], with_body: bool = True, **changed: Any) -> None:
        """A command."""
        add = self.stream.add

        def replaced(unset: record.Record) -> int:
            assert isinstance(unset, record.CommandIntent)
            named = tuple(record.AccessEntry(*one) for one in accesses) or unset.accesses
            return add(msgspec.structs.replace(unset, accesses=named, **changed))

        self.stream.add = replaced  # type: ignore[method-assign]
        self.stream.intend(self.session, text, with_body=with_body)
        self.stream.add = add  # type: ignore[method-assign]

    def refuse(self, text: str, *accesses: tuple[str, ...]) -> None:
        """A command that no rule covered."""
        self.intend(text, *accesses, decision="Deny", policy="", rule="uncovered")

    def end(self) -> Path:
        """The evidence directory."""
        self.stream.close()
        write_stream(self.folder, self.stream)
        return self.folder


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "evidence")


READ = "SELECT id FROM orders WHERE id = 1"


@pytest.mark.parametrize(
    ("rules", "changed", "why"),
    [
        ([], {"rule": "limit:commandsPerMinute"}, "it was refused by limit:commandsPerMinute, which is no matter of"),
        ([], {"rule": "policy-unavailable", "policy": ""}, "it was refused by policy-unavailable"),
        ([], {"resolution": "psychic"}, "its record has words of another version"),
        ([], {"accesses": (record.AccessEntry("read", "public.t"),) * 100}, "its record does not list all that it"),
        ([], {"accesses": (record.AccessEntry("read", "channel:[masked]"),)}, "its record hides names of objects"),
        ([], {"accesses": (record.AccessEntry("read", "public.customers"),)}, "its record and its text do not say the"),
        ([{"maxEstimatedRows": 3}], {}, "an estimate of rows decides"),
        ([{"maxRepeats": {"count": 2, "per": "1d"}}], {}, "it depends on how often a rule was used before"),
        ([{"where": True}], {"is_masked": True}, "WHERE or LIMIT decides, and its text is masked or not here"),
    ],
)
def test_what_cannot_be_replayed_says_why(
    writer: Writer, tmp_path: Path, rules: list[Object], changed: dict[str, Any], why: str
) -> None:
    named = changed.pop("accesses", None)
    writer.intend(READ, *([(one.effect, one.object) for one in named] if named else []), **changed)
    made = [
        {"name": f"r{index}", "action": "Allow", "match": {"effects": ["read"], "require": one}}
        for index, one in enumerate(rules)
    ]
    folder = write_policies(tmp_path / "manifests", rules=made or [rule("read", "Allow", ["read"])])
    found = replayed(folder, writer.end())
    ((told, count),) = found["not_replayed"].items()
    assert told.startswith(why)
    assert (count, found["replayed"]) == (1, 0)


def test_commands_of_users_are_passed_over_and_counted_where_their_groups_may_decide(
    writer: Writer, tmp_path: Path
) -> None:
    for subject in ("user-7", "user-7", "user-8", ""):
        writer.intend(READ, subject=subject)
    evidence = writer.end()
    acts = {"issuer": "https://login.example.com", "audience": "billing-agent", "required": False}
    finance = {"effects": ["read"], "require": {"userGroups": ["finance"]}}
    read = [rule("read", "Allow", ["read"])]
    needing = write_policies(tmp_path / "needs", acts=acts, rules=[{"name": "f", "action": "Allow", "match": finance}])
    own = write_policies(tmp_path / "own", acts=acts, rules=read, rego='deny contains "x" if input.user.email == ""')
    why = "it may depend on the groups of its user, which are not recorded"
    for folder, decided in ((needing, "Deny"), (own, "Allow")):
        found = replayed(folder, evidence)
        assert (found["commands"], found["replayed"], found["not_replayed"]) == (4, 1, {why: 3})
        assert found["decisions"] == {decided: 1}  # of the one without a user, of whom no group is missing
        assert f"skipped:  3 × {why}\n" in run("replay-policy", "--manifests", folder, "--evidence", evidence).output
    found = replayed(write_policies(tmp_path / "none", acts=acts, rules=read), evidence)
    assert (found["replayed"], found["not_replayed"], found["decisions"]) == (4, {}, {"Allow": 4})


def test_text_that_is_withheld_does_not_hide_those_after_it(writer: Writer, tmp_path: Path) -> None:
    writer.intend(READ, with_body=False)
    writer.intend("SELECT id FROM a WHERE id = 1 LIMIT 1", ("read", "public.a"))
    writer.intend(READ + " LIMIT 1")
    where = {"effects": ["read"], "require": {"where": True, "limit": 1}}
    folder = write_policies(tmp_path / "manifests", rules=[{"name": "one", "action": "Allow", "match": where}])
    found = replayed(folder, writer.end())
    assert (found["replayed"], found["decisions"]) == (2, {"Allow": 2})
    assert found["not_replayed"] == {"WHERE or LIMIT decides, and its text is masked or not here": 1}


def test_commands_of_other_protocols_are_replayed_by_what_is_recorded_of_them(writer: Writer, tmp_path: Path) -> None:
    writer.session = writer.stream.open_session("build", "SSH")
    writer.intend("rm -rf /srv/build", ("destroy", "path:/srv/build"), ("execute_code", "command:rm"), target="build")
    writer.intend("SELECT FROM orders", ("read", "path:/srv"), target="build")  # which PostgreSQL would read otherwise
    ssh = target("build", protocol="SSH", hosts=["build.data.svc"], ssh={"hostKeys": [HOST_KEY]})
    reads = [rule("look", "Allow", ["read"], ["path:/srv*"])]
    folder = write_policies(tmp_path / "manifests", ssh, rules=reads, targets=[{"name": "build"}])
    found = replayed(folder, writer.end())
    assert (found["replayed"], found["not_replayed"], found["decisions"]) == (2, {}, {"Allow": 1, "Deny": 1})


def test_people_who_did_not_approve_are_no_change_and_an_approval_that_is_no_longer_needed_is(
    writer: Writer, tmp_path: Path
) -> None:
    by = {"policy": "agents/billing", "rule": "ask"}
    writer.intend(READ, decision="Deny", **by)
    writer.intend(READ, decision="Allow", approval="apr-1", **by)
    asks = [rule("ask", "RequireApproval", ["read"], approval={"groups": ["leads"]})]
    evidence = writer.end()
    assert replayed(write_policies(tmp_path / "asks", rules=asks), evidence)["changes"] == []
    found = replayed(write_policies(tmp_path / "allows"), evidence)
    assert {(one["was"], one["would_be"]) for one in found["changes"]} == {
        ("Deny", "Allow"), ("RequireApproval", "Allow"),
    }  # fmt: skip


def test_the_time_of_a_command_is_that_of_its_record(writer: Writer, tmp_path: Path) -> None:
    writer.stream.now_us = 1_783_933_200_000_000  # Monday, 2026-07-13 09:00 UTC
    writer.intend(READ)
    writer.stream.now_us += 12 * 3_600_000_000
    writer.intend(READ)
    window = {"days": ["Mon-Fri"], "from": "07:00", "to": "19:00", "timezone": "UTC"}
    folder = write_policies(tmp_path / "manifests", windows=[window])
    assert replayed(folder, writer.end())["decisions"] == {"Allow": 1, "Deny": 1}


def test_rego_that_fails_on_some_commands_costs_the_others_nothing(writer: Writer, tmp_path: Path) -> None:
    for name in (*"01234567", "x"):
        writer.intend(f"SELECT id FROM t{name}", ("read", f"public.t{name}"))
    own = 'deny contains "seven" if to_number(substring(input.accesses[0].object, 8, -1)) == 7'
    folder = write_policies(tmp_path / "manifests", rules=[rule("read", "Allow", ["read"])], rego=own)
    found = replayed(folder, writer.end())
    assert found["not_replayed"] == {"the Rego of a policy fails on it, which at a gateway denies": 1}
    assert found["decisions"] == {"Allow": 7, "Deny": 1}


def test_replay_is_the_same_from_a_bundle_and_says_where_evidence_breaks_off(writer: Writer, tmp_path: Path) -> None:
    writer.intend(READ)
    folder, evidence = write_policies(tmp_path / "manifests"), writer.end()
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(pack(evidence))
    assert replayed(folder, bundle) == replayed(folder, evidence)
    (segment,) = evidence.glob("streams/*/*.seg")
    segment.write_bytes(segment.read_bytes().rstrip(b"\0")[:-30])
    (fault,) = replayed(folder, evidence)["faults"]
    assert "is read up to here only" in fault


# --- drafts -----------------------------------------------------------------------------------------


def test_names_that_an_agent_chose_cannot_widen_or_break_a_draft(writer: Writer, tmp_path: Path) -> None:
    hostile = [
        "public.*",
        "public.a\n    - name: evil",
        "public.a,b",
        'public."',
        "public.[x]",
        "s.t.u",
        "public.\u202e",
    ]
    for name in hostile:
        writer.refuse("SELECT 1", ("read", name))
    writer.refuse("SELECT 1", ("read", "public.fine"), ("destroy", "public.fine"))
    writer.refuse("SELECT 1", ("read", "public.good"), ("read", "public.through", "public.good"))
    done = run("suggest", "--evidence", writer.end())
    draft = yaml.safe_load(done.output)
    assert [one["match"] for one in draft["spec"]["rules"]] == [
        {"effects": ["read"], "objects": ['public."', "public.a,b", "public.good"]}
    ]
    assert "evil" in done.output
    assert "\u202e" not in done.output
    made = compile_namespace("agents", [identity()], [target()], [draft], [], namespace_labels={})
    assert made.is_usable, made.problems


def test_reading_and_writing_are_apart_and_what_rules_denied_is_no_wish(writer: Writer) -> None:
    writer.refuse("x", ("read", "public.a"), ("modify", "public.a"))
    writer.refuse("x", ("read", "public.b"))
    writer.refuse("x", ("session", "setting:application_name"), ("transaction", "transaction:begin"))
    writer.refuse("x", ("read_sensitive", "pg_catalog.pg_authid"))
    writer.intend("x", ("read", "public.c"), decision="Deny", rule="never")
    draft = yaml.safe_load(done := run("suggest", "--evidence", writer.end()).output)
    assert {one["name"]: one["match"] for one in draft["spec"]["rules"]} == {
        "suggested-read-1": {"effects": ["read"], "objects": ["public.a", "public.b"]},
        "suggested-session-1": {"effects": ["session"], "objects": ["setting:application_name"]},
        "suggested-write-1": {"effects": ["modify"], "objects": ["public.a"]},
    }
    assert "# not suggested: read_sensitive pg_catalog.pg_authid (once, " in done
    assert "# transaction of no object (once, " in done


def test_nothing_refused_is_said(writer: Writer) -> None:
    writer.intend(READ)
    done = run("suggest", "--evidence", writer.end())
    assert (done.exit_code, yaml.safe_load(done.output)) == (0, None)
    assert done.output.startswith("# No command was refused")


effects = st.sampled_from(["read", "bulk_read", "modify", "create", "session", "destroy", "unknown", "transaction"])
names = st.sampled_from(["public.a", "public.b", "s.c", "", "setting:x"])
commands = st.lists(st.lists(st.tuples(effects, names), min_size=1, max_size=3, unique=True), min_size=1, max_size=8)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=commands)
def test_a_replayed_draft_allows_a_command_if_and_only_if_all_of_it_is_listed(
    tmp_path_factory: pytest.TempPathFactory, asked: list[list[tuple[str, str]]]
) -> None:
    folder = tmp_path_factory.mktemp("drafted")
    writer = Writer(folder / "evidence")
    for index, accesses in enumerate(asked):
        writer.intend(f"masked {index}", *accesses, decision="Deny", policy="", rule="uncovered", is_masked=True)
    evidence = writer.end()
    draft = yaml.safe_load(run("suggest", "--evidence", evidence).output)
    if draft is None:
        return
    listed = {
        (effect, name) for one in draft["spec"]["rules"] for effect in one["match"]["effects"]
        for name in one["match"]["objects"]
    }  # fmt: skip
    reads = any("read" in one["match"]["effects"] for one in draft["spec"]["rules"])
    nothing = rule("nothing", "Deny", ["tunnel"])
    found = replayed(write_policies(folder / "manifests", draft, rules=[nothing]), evidence)
    allowed = sum(
        all(one in listed or one[0] == "transaction" or (one == ("read", "") and reads) for one in accesses)
        for accesses in asked
    )
    assert found["decisions"].get("Allow", 0) == allowed
    assert found["replayed"] == len(asked)
