#!/bin/sh
# The least rights of an archiver, by Kafka's own tool:
#
#   BOOTSTRAP=kafka:9092 PRINCIPAL=User:tidelog GROUP=tidelog ./kafka-acls.sh orders payments
#   PATTERN=prefixed BOOTSTRAP=… PRINCIPAL=… GROUP=… ./kafka-acls.sh cdc.
#
# READ (which implies DESCRIBE) on what is archived, and on the group. DESCRIBE_CONFIGS lets `tidelog check --connect` compare limits of topics
# (session.timeout.ms it holds against the brokers' limits only for whoever has DESCRIBE_CONFIGS on the cluster, which is not granted here);
# `tidelog run` goes without it, unless it keeps the state of the cluster ([state]): STATE=1 grants what that needs besides, DESCRIBE and
# DESCRIBE_CONFIGS on all topics, DESCRIBE on all groups and on the cluster. Nothing is created, written or deleted in this cluster. ADMIN is a properties file for the tool.
set -eu
: "${BOOTSTRAP:?}" "${PRINCIPAL:?}" "${GROUP:?}"
grant() {
  "${KAFKA_ACLS:-kafka-acls.sh}" --bootstrap-server "$BOOTSTRAP" ${ADMIN:+--command-config "$ADMIN"} \
    --add --allow-principal "$PRINCIPAL" "$@"
}
for topic; do
  grant --operation Read --operation Describe --operation DescribeConfigs \
    --resource-pattern-type "${PATTERN:-literal}" --topic "$topic"
done
grant --operation Read --operation Describe --group "$GROUP"
if [ -n "${STATE:-}" ]; then
  grant --operation Describe --operation DescribeConfigs --topic '*'
  grant --operation Describe --group '*'
  grant --operation Describe --cluster
fi
