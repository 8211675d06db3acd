#!/bin/sh
# A MariaDB server for tests and the demo, as user mysql: from nothing at each start. Its superuser is mysql on the socket.
#   MARIADB_FIRST  folder with first.sql, one statement a line; `{password}` in it becomes the content of file `password`
#   MARIADB_TLS    folder with tls.crt, tls.key and ca.crt: TLS is required of everyone who comes by network
#   MARIADB_LOGIN  folder with the file `password`
set -eu

mariadb-install-db --datadir=/var/lib/mysql/data --skip-test-db >/dev/null
{
  echo "CREATE USER IF NOT EXISTS 'mysql'@'localhost' IDENTIFIED VIA unix_socket;"
  echo "GRANT ALL ON *.* TO 'mysql'@'localhost';"
  sed "s|{password}|$(cat "$MARIADB_LOGIN/password")|" "$MARIADB_FIRST/first.sql"
} > /tmp/first.sql
exec mariadbd --no-defaults --datadir=/var/lib/mysql/data --socket=/tmp/mysqld.sock --pid-file=/tmp/mysqld.pid \
  --init-file=/tmp/first.sql --ssl-cert="$MARIADB_TLS/tls.crt" --ssl-key="$MARIADB_TLS/tls.key" \
  --ssl-ca="$MARIADB_TLS/ca.crt" --require-secure-transport=ON --character-set-server=utf8mb4
