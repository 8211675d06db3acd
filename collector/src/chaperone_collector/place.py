"""Where the log is kept: the options that say so."""

from __future__ import annotations

import argparse
from pathlib import Path

from chaperone_collector.database import Database
from chaperone_collector.directory import Directory
from chaperone_collector.errors import StoreUnusable


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a command line."""
    add = parser.add_argument
    add("--data", type=Path, help="directory of the database; on a volume that is not shared")
    add(
        "--database", default="",
        help="in place of --data, a PostgreSQL database, as URL or as libpq's key=value; never with a password",
    )  # fmt: skip
    add("--database-file", type=Path, help="file with such a URL, which may have a password")
    add("--log-key", type=Path, help="file of the log's keys; with a PostgreSQL database it has to be named")


def open_place(options: argparse.Namespace) -> Database:
    """The place that they name.

    Raises:
        StoreUnusable: they name none, or two, or it cannot be used.
    """
    data, text, file = options.data, options.database, options.database_file
    if sum(map(bool, (data, text, file))) != 1:
        raise StoreUnusable("Give one of --data, --database and --database-file.")
    if data:
        return Directory(data, options.log_key)
    # Loaded where it is needed: the client of PostgreSQL has a library of its own.
    from chaperone_collector import postgresql  # noqa: PLC0415

    if options.log_key is None:
        raise StoreUnusable("Give --log-key with a PostgreSQL database: the keys that sign the log are never in it.")
    if text and postgresql.has_password(text):
        raise StoreUnusable("Anybody on this machine can read a password in --database: use --database-file.")
    return postgresql.Server(text or postgresql.read_info(file), options.log_key)
