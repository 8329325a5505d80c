use super::*;

fn connector(settings: &[(&str, &str)]) -> Connector {
    let own = [("plugin.name", "pgoutput")].iter().chain(settings);
    let config: BTreeMap<_, _> = own.map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned()))).collect();
    Connector {
        name: "shop".to_owned(),
        archived: config.clone(),
        config,
        prefixes: ("old".to_owned(), "new".to_owned()),
        marker: None,
        has_failover: false,
    }
}

fn table(rows: u64, sums: &[(&str, i128)]) -> Table {
    let sums = sums.iter().map(|(column, sum)| ((*column).to_owned(), *sum)).collect();
    Table { schema: "public".to_owned(), name: "acct".to_owned(), rows, sums, ..Table::default() }
}

fn told(table: &Table, (rows, sums): (u64, &[(&str, i128)]), values: bool, may_differ: Option<&str>) -> Proof {
    let sums = sums.iter().map(|(column, sum)| ((*column).to_owned(), *sum)).collect();
    let mut told = Told::default();
    told.tell((table, "new.public.acct"), &Folded { rows, sums, refused: None }, (values, may_differ, TRUNCATES));
    told.close()
}

#[test]
fn what_is_the_same_is_counted_and_what_differs_is_named() {
    let counted = table(2, &[("id", 5), ("n", 7), ("note", 9)]);
    let same = told(&counted, (2, &[("id", 5), ("n", 7)]), true, None);
    assert_eq!(same.words, "1 tables, 2 rows: as many as their topics come to, and 2 columns the same");
    assert!(same.differences.is_empty() && same.notes[0].ends_with("public.acct (1)"), "{same:?}");
    let rows = told(&counted, (3, &[("id", 5)]), true, None);
    assert_eq!(
        rows.differences,
        ["public.acct has 2 rows, and new.public.acct comes to 3 (a TRUNCATE is in no topic, by skipped.operations)"]
    );
    let columns = told(&counted, (2, &[("id", 5), ("n", 8), ("note", 1)]), true, None);
    assert_eq!(
        columns.differences,
        [
            "public.acct and the rows that new.public.acct comes to differ in n, note (what an ALTER TABLE rewrites is in no topic)"
        ]
    );
    let masked = told(&counted, (2, &[("id", 5), ("n", 8), ("note", 1)]), false, None);
    assert!(masked.differences.is_empty(), "{masked:?}");
    let late = told(&counted, (1, &[]), true, Some("the archive does not have its beginning"));
    assert!(late.differences.is_empty() && late.notes[0].contains("its beginning"), "{late:?}");
}

#[test]
fn connectors_that_change_what_they_write_are_not_compared() {
    assert_eq!((why_not(&connector(&[])), has_values(&connector(&[]))), (None, true));
    let transformed = |kind: &str| why_not(&connector(&[("transforms", "a"), ("transforms.a.type", kind)]));
    assert_eq!(transformed("io.debezium.transforms.ExtractNewRecordState"), None);
    assert!(
        transformed("org.apache.kafka.connect.transforms.ReplaceField$Value").expect("not").contains("transform a")
    );
    assert!(why_not(&connector(&[("message.key.columns", "public.acct:n")])).is_some());
    assert!(!has_values(&connector(&[("column.mask.hash.SHA-256.with.salt.x", "public.acct.note")])));
    let may = |settings: &[(&str, &str)]| may_differ(&connector(settings), false).is_some();
    assert!(!may(&[]) && may(&[("snapshot.mode", "no_data")]) && may(&[("snapshot.select.statement.overrides", "t")]));
    assert!(may_differ(&connector(&[]), true).is_some());
    let unwrap = ("transforms.u.type", "io.debezium.transforms.ExtractNewRecordState");
    assert!(may(&[("transforms", "u"), unwrap]) && may(&[("skipped.operations", "t, d")]));
    assert!(!may(&[("transforms", "u"), unwrap, ("transforms.u.delete.tombstone.handling.mode", "rewrite")]));
    assert!(!tells_truncates(&connector(&[])) && tells_truncates(&connector(&[("skipped.operations", "none")])));
    // What is set at the target says nothing of what was archived.
    let mut of = connector(&[]);
    of.config.insert("snapshot.mode".to_owned(), Some("no_data".to_owned()));
    assert!(may_differ(&of, false).is_none());
    assert_eq!(archived_topic(&of, "public", "order items"), "old.public.order_items");
    assert!(why_not(&connector(&[("topic.delimiter", "_")])).is_some());
}

#[test]
fn what_was_counted_is_read_back_from_a_journal() {
    let counted = table(2, &[("id", i128::from(i64::MAX) * 5_000_000), ("n", -3)]);
    let json = serde_json::to_string(&counted).expect("JSON");
    assert_eq!(serde_json::from_str::<Table>(&json).expect("a table"), counted);
}
