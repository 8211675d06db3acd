"""The agent at its database: what policy allows, masks and refuses, statement by statement, and in a program."""

from __future__ import annotations

from collections.abc import Sequence

from chaperone_tools.demo.staging import AGENT, CONNECTION, DENIED
from chaperone_tools.demo.story import Story, with_stdin


def work(story: Story) -> None:
    """Show it."""
    story.chapter("The agent works: root in its container, psql, no password")
    story.run(*AGENT, "--", "id", shows=("uid=0(root)",))
    psql(story, "SELECT id, item, cents FROM orders ORDER BY id", shows=("engine", "(4 rows)"))
    psql(story, "SELECT * FROM secrets", shows=(DENIED, 'rule "uncovered"'), hides=("not for agents",), status=1)
    psql(story, "SELECT name, email FROM customers ORDER BY id", shows=("a***@example.org",), hides=("ada.king",))
    psql(story, "SELECT name, upper(email) AS x FROM customers", shows=("[Email]",), hides=("ADA.KING",))
    psql(story, "SELECT name FROM customers WHERE email LIKE 'a%'", shows=(DENIED, "read_sensitive"), status=1)
    psql(story, "DROP TABLE orders", shows=(DENIED, "Ask the DBA on call."), status=1)
    psql(story, "UPDATE invoices SET paid = true WHERE id = 1", shows=("UPDATE 1",))
    story.chapter("A program of the agent: psycopg, in a transaction, refused in between and still in step")
    story.run(
        *with_stdin(AGENT), "--", "python3", "-", script="report.py",
        shows=("Ada: 1299.00", f"not allowed: {DENIED}", "still in step: 3 customers"), hides=("Traceback",),
    )  # fmt: skip


def psql(story: Story, statement: str, *, shows: Sequence[str], hides: Sequence[str] = (), status: int = 0) -> None:
    """One statement, as one types it: no user, no password, and the server's certificate checked."""
    story.run(*AGENT, "--", "psql", CONNECTION, "-c", statement, shows=shows, hides=hides, status=status)
