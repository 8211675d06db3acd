#!/bin/sh
# A PostgreSQL server for tests and the demo. The first start makes the database and runs /docker-entrypoint-initdb.d/*.sql.
#   POSTGRES_PASSWORD_FILE  file with the superuser's password (required at the first start; never a variable)
#   POSTGRES_TLS            folder with tls.crt and tls.key: TLS is on, and required of everyone who comes by network
# Arguments go to the server.
set -eu

say() { printf 'postgres: %s\n' "$*" >&2; }

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  [ -r "${POSTGRES_PASSWORD_FILE:-}" ] || { say "POSTGRES_PASSWORD_FILE must name a readable file"; exit 1; }
  initdb --username=postgres --pwfile="$POSTGRES_PASSWORD_FILE" --auth-local=trust --auth-host=scram-sha-256 \
    --encoding=UTF8 --locale=C.UTF-8 >/dev/null
  kind=host
  [ -z "${POSTGRES_TLS:-}" ] || kind=hostssl
  echo "$kind all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  pg_ctl --silent --wait start --options="-c listen_addresses='' -c unix_socket_directories=/tmp"
  for script in /docker-entrypoint-initdb.d/*.sql; do
    [ -e "$script" ] || continue
    say "running $script"
    psql --quiet --host=/tmp --username=postgres --set=ON_ERROR_STOP=1 --file="$script"
  done
  pg_ctl --silent --wait --mode=fast stop
fi

if [ -n "${POSTGRES_TLS:-}" ]; then
  set -- -c ssl=on -c ssl_cert_file="$POSTGRES_TLS/tls.crt" -c ssl_key_file="$POSTGRES_TLS/tls.key" "$@"
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp "$@"
