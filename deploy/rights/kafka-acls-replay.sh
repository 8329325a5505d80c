#!/bin/sh
# The least rights of who replays, by Kafka's own tool; topics are those of the target:
#
#   BOOTSTRAP=kafka:9092 PRINCIPAL=User:replayer ./kafka-acls-replay.sh orders payments
#   PATTERN=prefixed BOOTSTRAP=… PRINCIPAL=… ./kafka-acls-replay.sh restored.
#
# READ and WRITE on the topics (READ, for what was sent is read back, and positions are committed for them), READ on the group of the replay and WRITE on
# its transactional id. CREATE=1 where topics are missing; SETTINGS=1 for --settings archived; PUT='billing search' for the groups that
# --groups puts. ADMIN is a properties file for the tool.
set -eu
: "${BOOTSTRAP:?}" "${PRINCIPAL:?}"
grant() {
  "${KAFKA_ACLS:-kafka-acls.sh}" --bootstrap-server "$BOOTSTRAP" ${ADMIN:+--command-config "$ADMIN"} \
    --add --allow-principal "$PRINCIPAL" "$@"
}
for topic; do
  grant --operation Read --operation Write ${CREATE:+--operation Create} \
    ${SETTINGS:+--operation DescribeConfigs --operation AlterConfigs} \
    --resource-pattern-type "${PATTERN:-literal}" --topic "$topic"
done
grant --operation Read --resource-pattern-type prefixed --group tidelog-replay-
grant --operation Write --resource-pattern-type prefixed --transactional-id tidelog-replay-
for group in ${PUT:-}; do
  grant --operation Read --group "$group"
done
