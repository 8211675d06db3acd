"""What programs do with mysql-connector-python, one line a step: `python my_connector.py PORT pure|c`.

A process of its own: the C extension brings a libssl, which is not the one that Python's `ssl` has loaded elsewhere.
"""

from __future__ import annotations

import sys
from typing import Any

import _mysql_connector  # noqa: F401 - before `ssl`
import mysql.connector


def steps(port: int, *, is_pure: bool) -> None:
    connection: Any = mysql.connector.connect(
        host="127.0.0.1", port=port, user="agent", password="any", database="orders", use_pure=is_pure
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, customer FROM orders WHERE id = %s", (4,))
        print("rows:", cursor.fetchall())
    with connection.cursor(prepared=True) as cursor:
        cursor.execute("SELECT id, total, made FROM orders WHERE id < %s", (900,))
        print("prepared:", len(cursor.fetchall()))
    with connection.cursor(buffered=True) as cursor:
        cursor.execute("SELECT * FROM orders")
        print("buffered:", len(cursor.fetchall()))
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO invoices (id, note) VALUES (%s, %s)", [(number, "x") for number in range(6000, 6050)]
        )
        print("batch:", cursor.rowcount)
    connection.rollback()
    connection.cmd_reset_connection()
    for prepared in (False, True):
        try:
            with connection.cursor(prepared=prepared) as cursor:
                cursor.execute("SELECT * FROM secrets WHERE id = %s", (1,))
                print("refused: no")
        except mysql.connector.Error as error:
            print("refused:", error.errno, error.msg)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        print("afterwards:", cursor.fetchall())
    connection.close()


if __name__ == "__main__":
    steps(int(sys.argv[1]), is_pure=sys.argv[2] == "pure")
