#!/bin/sh
# The image lets users of databases in, but nobody for physical replication; the server is started anew after this.
echo "host replication tidelog all scram-sha-256" >>"$PGDATA/pg_hba.conf"
