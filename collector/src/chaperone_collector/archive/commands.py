"""`chaperone-collector drill | restore | export-keys`: what people do with an archive by hand."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from chaperone_collector import checkpoint
from chaperone_collector.archive import drill, keyfile, options
from chaperone_collector.archive.bucket import Bucket
from chaperone_collector.archive.restore import restore
from chaperone_collector.database import FAULTS, Connection, begin_read
from chaperone_collector.directory import FILE
from chaperone_collector.errors import CollectorError, RestoreRefused
from chaperone_collector.schema import open_reader
from chaperone_evidence import policyfile
from chaperone_evidence.errors import Malformed
from chaperone_evidence.policy import Policy


def command(arguments: Sequence[str]) -> int:
    """Run one; 0: it is done and what was asked holds, 1: not."""
    parser = argparse.ArgumentParser("chaperone-collector", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    tried = commands.add_parser("drill", help="try to delete and change a probe in the archive", allow_abbrev=False)
    tried.set_defaults(run=_drill)
    back = commands.add_parser("restore", help="build an empty directory's database", allow_abbrev=False)
    back.set_defaults(run=_restore)
    for one in (tried, back):
        one.add_argument("--archive", type=Path, required=True, help="YAML file: the bucket")
    back.add_argument("--data", type=Path, required=True, help="directory of the database to come")
    back.add_argument("--log-policy", type=Path, required=True, help="C2SP tlog-policy: who signs the log")
    back.add_argument("--data-keys", type=Path, help="file of export-keys; without it bodies stay behind")
    keys = commands.add_parser("export-keys", help="write the keys of archived bodies to a file", allow_abbrev=False)
    keys.set_defaults(run=_export_keys)
    place = keys.add_mutually_exclusive_group(required=True)
    place.add_argument("--data", type=Path, help="directory of the database; it may be in use")
    place.add_argument("--database-file", type=Path, help="file with the URL of the PostgreSQL database")
    keys.add_argument("--out", type=Path, required=True, help="file to make; keep it apart from the archive")
    given = parser.parse_args(arguments)
    try:
        code: int = given.run(given)
    except CollectorError as error:
        print(error, file=sys.stderr)
        return 1
    return code


def _drill(given: argparse.Namespace) -> int:
    said = drill.run(Bucket(options.load(given.archive)), time.time_ns() // 1000)
    print(drill.table(said))
    return 0 if said.enforced else 1


def _restore(given: argparse.Namespace) -> int:
    policy = _policy(given.log_policy)
    keys = keyfile.read(given.data_keys, policy.origin) if given.data_keys else None
    done = restore(Bucket(options.load(given.archive)), given.data, policy, keys)
    for remark in done.remarks:
        print(f"note: {remark}")
    print(f"{done.entries} entries are restored, each proved by a signed checkpoint; {done.bodies} bodies.")
    if done.bodies_without_key:
        print(f"{done.bodies_without_key} bodies stay behind: their keys are not given, or were destroyed.")
    if done.populations_without_note:
        print(f"{done.populations_without_note} populations have no note in the archive: coverages lack them.")
    if not (given.data / checkpoint.FILE).exists():
        print(f"Put the log's {checkpoint.FILE} into {given.data} before the collector starts: no archive has it.")
    print("What the log signed beyond these entries is not here. A witness that saw it will refuse what comes now.")
    return 0


def _export_keys(given: argparse.Namespace) -> int:
    try:
        db = _reader(given)
        try:
            begin_read(db)
            found = keyfile.collect(db, checkpoint.read_origin(db))
        finally:
            db.close()
    except FAULTS as error:
        raise RestoreRefused(f"{given.data or given.database_file} cannot be read: {error}.") from error
    keyfile.write(given.out, found)
    print(f"{len(found.keys)} keys are in {given.out}. Whoever has it and the archive reads the bodies.")
    return 0


def _reader(given: argparse.Namespace) -> Connection:
    if given.data is not None:
        return open_reader(given.data / FILE)
    from chaperone_collector import postgresql  # noqa: PLC0415 - its client has a library of its own

    return postgresql.Server(postgresql.read_info(given.database_file), Path()).open_reader()


def _policy(path: Path) -> Policy:
    try:
        return policyfile.parse(path.read_text())
    except (OSError, UnicodeDecodeError, Malformed) as error:
        raise RestoreRefused(f"The policy {path} cannot be read: {error}") from error
