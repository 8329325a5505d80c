-- The least rights of an archiver: psql -v ON_ERROR_STOP=1 -f postgres.sql, as a superuser, in the database that postgres.url names.
-- REPLICATION reads the whole log and every file of the server, whatever other rights say: this role sees all data, and changes none.
-- It is also a right over all replication slots: this role can drop one that nobody uses, and make some. Set max_slot_wal_keep_size.
create role tidelog with login replication nosuperuser nocreatedb nocreaterole noinherit connection limit 8;
-- How far back the server still has its log, after some of it was removed before it was archived. (pg_monitor has this, and much more.)
grant execute on function pg_catalog.pg_ls_waldir() to tidelog;
-- Give it a way in that fits the place: a password (\password tidelog), or a certificate; and in pg_hba.conf
--   hostssl  replication  tidelog  10.0.0.0/8  scram-sha-256
--   hostssl  postgres     tidelog  10.0.0.0/8  scram-sha-256
