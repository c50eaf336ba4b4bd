#!/bin/sh
# Run once by the Postgres image on an empty volume, as superuser: two logins, two roles, one database. The service logs
# in as syncbeat_app, which owns nothing and bypasses nothing, so that row-level security holds; migrations run as
# syncbeat_owner. syncbeat_service sees every row, syncbeat_user only those of the user its transaction is for.
# PostgreSQL 15 grants whole roles only, which is harmless: what inherits syncbeat_service sees every row anyway.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
  --set owner_password="$OWNER_PASSWORD" --set app_password="$APP_PASSWORD" <<'SQL'
CREATE ROLE syncbeat_service NOLOGIN;
CREATE ROLE syncbeat_user NOLOGIN;
CREATE ROLE syncbeat_owner LOGIN CREATEROLE PASSWORD :'owner_password';
CREATE ROLE syncbeat_app LOGIN PASSWORD :'app_password';
GRANT syncbeat_service, syncbeat_user TO syncbeat_owner WITH ADMIN OPTION;
GRANT syncbeat_service TO syncbeat_app;
SELECT current_setting('server_version_num')::int >= 160000 AS grants_have_options \gset
\if :grants_have_options
  GRANT syncbeat_user TO syncbeat_app WITH INHERIT FALSE, SET TRUE;
\else
  GRANT syncbeat_user TO syncbeat_app;
\endif
CREATE DATABASE syncbeat OWNER syncbeat_owner;
REVOKE CONNECT, TEMPORARY ON DATABASE syncbeat FROM PUBLIC;
GRANT CONNECT ON DATABASE syncbeat TO syncbeat_app;
SQL
