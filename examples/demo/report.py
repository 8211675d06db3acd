"""What an agent's own program looks like: psycopg, the database's name, no password."""

import psycopg

with psycopg.connect("host=orders-db.data.svc dbname=orders sslmode=verify-full") as connection:
    rows = connection.execute(
        "SELECT c.name, sum(o.cents) FROM orders o JOIN customers c ON c.id = o.customer WHERE o.cents > %s"
        " GROUP BY c.name ORDER BY c.name",
        [1000],
    )
    for name, cents in rows:
        print(f"{name}: {cents / 100:.2f}")

    connection.execute("SAVEPOINT before")
    try:
        connection.execute("UPDATE orders SET cents = 0 WHERE id = %s", [1])
    except psycopg.errors.InsufficientPrivilege as error:
        print("not allowed:", error.diag.message_primary)
        connection.execute("ROLLBACK TO SAVEPOINT before")
    print("still in step:", connection.execute("SELECT count(*) FROM customers").fetchone()[0], "customers")
