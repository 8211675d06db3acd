"""Every way to tamper with evidence that is tried, and what both verifiers say of each.

`uv run python tests/support/tampering.py` writes the table into docs/evidence-tampering.md; a test holds it to that.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import tampering_log as log
import tampering_streams as streams
from tampered_scene import Judges, Scene, Try, Verdict

DOCUMENT = Path(__file__).parents[2] / "docs" / "evidence-tampering.md"
BEGIN, END = "<!-- what was found: begin -->\n", "<!-- what was found: end -->\n"


class Case(msgspec.Struct, frozen=True):
    """One way to tamper; `tries` gives each place where it is tried."""

    name: str
    tries: Callable[[Scene], Iterator[Try]]


class Result(msgspec.Struct, frozen=True):
    """What both verifiers said of one try."""

    tried: Try
    verdict: Verdict
    output: str
    companion: Verdict
    companion_output: str


CASES = (
    Case("nothing is changed", streams.nothing),
    Case("a byte of an entry: its length", streams.flips_in_lengths),
    Case("a byte of an entry: version", streams.flips_in_entries("version")),
    Case("a byte of an entry: class", streams.flips_in_entries("class")),
    Case("a byte of an entry: link", streams.flips_in_entries("link")),
    Case("a byte of an entry: what a record says", streams.flips_in_entries("record")),
    Case("a byte of an entry: what a head says, its signature", streams.flips_in_entries("head")),
    Case("a byte of a text: its length", streams.flips_in_texts(0, 4)),
    Case("a byte of a text: its salt", streams.flips_in_texts(4, 36)),
    Case("a byte of a text: the text", streams.flips_in_texts(36, 1 << 20)),
    Case("a byte of a proof, any line", streams.flips_in_proofs),
    Case("a byte of the tar's headers", streams.flips_in_headers),
    Case("an entry deleted", streams.delete),
    Case("an entry inserted", streams.insert),
    Case("an entry twice", streams.duplicate),
    Case("two entries in another order", streams.reorder),
    Case("a stream cut between entries", streams.cut),
    Case("a stream cut within an entry", streams.cut_in_the_middle),
    Case("the beginning of an entry behind an end that the next stream signed (what a crash leaves)", streams.torn),
    Case("an entry of 16 385, 65 535 and 65 536 bytes", streams.too_long),
    Case("the same record in another JSON, chained and signed by the stream's own key", streams.twin),
    Case("heads of another key; of the next process's key over what the one before wrote", streams.other_key),
    Case("a stream chained anew by a namesake of the CA, or under another pod's certificate", streams.other_authority),
    Case("a record changed by who holds the stream's own key", streams.rewritten),
    Case("streams or their proofs exchanged", streams.swap),
    Case("the stream that follows is dropped", streams.drop_follower),
    Case("the entries of a stream are dropped, its texts are not", streams.drop_entries),
    Case("a stream is dropped, the one that follows is here", streams.drop_followed),
    Case("texts are left out", streams.drop_texts),
    Case("a segment under another number", streams.rename),
    Case("a gateway's clock set by an hour, forward and back", streams.clock),
    Case("a proof too long or too short", log.lengths),
    Case("another index, one beyond the tree, one beyond 2^63", log.places),
    Case("a checkpoint of size 0 and 2^63; 2^63 − 1 is possible", log.sizes),
    Case("the log rolled back: an older checkpoint, an older stream's proof", log.rolled_back),
    Case("the log forked: two trees of one size in one bundle", log.forked),
    Case("the log forked: a tree that no witness has seen, where one is asked for", log.unwitnessed),
    Case("the log forked: a tree that nobody else sees, no witness asked for", log.forked_elsewhere),
    Case("a checkpoint without a key of the log, with another's, with a bad signature", log.signed_by_others),
    Case("17 signatures and more", log.too_many_signatures),
    Case("signatures of unknown keys", log.unknown_signatures),
    Case("no proof, or an empty one", log.no_proof),
    Case("a record that lacks a field, from the gateway's own key, in the log", log.lacking),
    Case("the newest records withheld: an older head, truly proved", log.older_end),
    Case("database: an entry changed", log.changed_row),
    Case("database: a row deleted, the rest numbered anew", log.deleted_row),
    Case("database: an entry changed, links made anew; heads kept, or signed by a key of one's own", log.chained_anew),
    Case("database: a stream made anew under a CA of one's own", log.chained_by_a_stranger),
    Case("database: a text changed", log.edited_text),
)


def ask(judges: Judges, scene: Scene, case: Case) -> list[Result]:
    """What both say of each try."""
    found = []
    for tried in case.tries(scene):
        ours, companion = judges.ask(tried)
        found.append(Result(tried, ours[0], ours[1], companion[0], companion[1]))
    return found


def row(case: Case, results: list[Result]) -> str:
    """The case's line of the table."""
    return f"| {case.name} | {len(results)} | {_cell(results, False)} | {_cell(results, True)} |\n"


def _cell(results: list[Result], is_companion: bool) -> str:
    said = set()
    for one in results:
        word, _, seq = one.companion if is_companion else one.verdict
        has_note = one.tried.note and re.search(one.tried.note, one.companion_output if is_companion else one.output)
        said.add(f"{word} at the record" if seq >= 0 else f"{word}, with a note" if has_note else word)
    return "; ".join(sorted(said))


def table(rows: list[str]) -> str:
    """The whole table."""
    return "| what is done | tries | `chaperone verify` | `verify.py` |\n|---|---|---|---|\n" + "".join(rows)


def main() -> None:
    """Write the table into the document."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        judges = Judges(scene)
        made = table([row(case, ask(judges, scene, case)) for case in CASES])
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + made + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
