#!/usr/bin/env bash
# Runs the Kafka and Postgres fault suites with the archive in a bad S3 store (bad_store.rs).
#
#   bad_store.sh few|all     few: one or two of each suite, for `make test`; all: `make test-bad-store`
set -euo pipefail

few=(
    faults::a_stop_commits_what_is_open_and_a_start_goes_on_behind_it
    faults::records_of_two_generations_do_not_mix_while_nobody_looks
    generations::a_topic_made_again_with_more_partitions_is_archived_whole
    wal::wal_that_the_server_removed_is_a_recorded_gap
    postgres_path::a_promoted_standby_is_restored_from_the_backup_of_the_old_primary
)

suites=(faults:: stalls:: isolation:: generations:: complete:: damaged_segments:: kafka:: wal:: postgres_)

# What is about the archive's disk itself: one that is full, unmounted, moved away, not to be read by a user, or read by other
# programs. Stores have tests of their own in store_faults. Those of the listener and of loops count what a quiet store does.
not_here=(
    http::
    loops::
    store_faults::
    faults::an_archive_disk_that_is_full_is_waited_for
    faults::an_archive_disk_that_turns_read_only_is_waited_for
    faults::directories_that_cannot_be_had_are_said_at_the_start
    faults::an_archive_that_is_not_there_for_a_while_is_not_begun_anew
    generations::what_was_read_of_a_topic_that_is_made_again_while_the_store_is_away_is_archived
    isolation::a_lost_page_and_a_refused_object_are_in_the_way_of_no_other
    kafka::a_million_odd_records_come_back_equal
    kafka::topics_of_every_kind_come_back_equal
    postgres_holds::a_restore_from_an_archive_that_takes_no_hold_goes_on_and_says_so
    postgres_lost::a_server_shuts_down_although_the_archive_is_away_and_nothing_is_lost
    postgres_path::a_backup_from_before_the_archive_is_none_and_another_is_due
    postgres_restore::a_recovery_stops_where_the_archive_lacks_something
    wal::a_base_backup_or_a_restore_without_room_says_so_and_leaves_nothing_that_counts
    wal::an_archive_disk_that_is_full_is_waited_for_while_wal_goes_on_coming
)

export RIG_STORE=bad-s3
test=(cargo test --locked --test main --)
case "${1:-}" in
few) "${test[@]}" --exact "${few[@]}" ;;
all) "${test[@]}" "${suites[@]}" $(printf -- '--skip %s ' "${not_here[@]}") ;;
*) sed -n '2,4s/^# //p' "$0" >&2; exit 2 ;;
esac
