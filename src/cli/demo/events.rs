//! Change events in the shape that the Debezium connector for PostgreSQL gives them: the envelope of a row before and
//! after, its source, and a tombstone after each deletion.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

/// A captured table and its topic.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) topic: &'static str,
    pub(super) partitions: i32,
}

/// The tables of the demo's shop.
pub(super) const TABLES: [Table; 2] = [
    Table { name: "customers", topic: "cdc.shop.customers", partitions: 3 },
    Table { name: "orders", topic: "cdc.shop.orders", partitions: 6 },
];

const CITIES: [&str; 4] = ["Malmö", "Gdańsk", "São Paulo", "東京"];

const STATES: [&str; 4] = ["new", "paid", "packed", "sent"];

/// One record to produce.
pub(super) struct Event {
    pub(super) table: &'static Table,
    pub(super) partition: i32,
    pub(super) key: String,
    pub(super) value: Option<String>,
    pub(super) timestamp: i64,
}

/// Event `number` of `events`, which are spread over the hour after `first`, a little out of order. The same number
/// always gives the same event.
pub(super) fn event(number: u64, events: u64, first: DateTime<Utc>) -> Event {
    let dice = scramble(number);
    let table = &TABLES[usize::from(!dice.is_multiple_of(4))];
    let id = 1 + (dice >> 8) % 5_000;
    let disorder = ((dice >> 24) % 4_000) as i64 - 2_000;
    let timestamp = first.timestamp_millis() + (number * 3_600_000 / events) as i64 + disorder;
    let value = match (dice >> 40) % 10 {
        // A tombstone lets compaction forget the key.
        0 => None,
        1 => Some(envelope("d", Some(row(table, id, dice)), None, table, number, timestamp)),
        2..=4 => Some(envelope("c", None, Some(row(table, id, dice)), table, number, timestamp)),
        _ => Some(envelope("u", Some(row(table, id, dice / 3)), Some(row(table, id, dice)), table, number, timestamp)),
    };
    let partition = (scramble(id) % table.partitions.unsigned_abs() as u64) as i32;
    Event { table, partition, key: json!({ "id": id }).to_string(), value, timestamp }
}

fn row(table: &Table, id: u64, dice: u64) -> Value {
    match table.name {
        "customers" => json!({
            "id": id,
            "name": format!("Zoë Öst {}", dice % 997),
            "email": format!("customer.{id}@example.org"),
            "city": CITIES[(dice % 4) as usize],
            "credit": format!("{}.{:02}", dice % 10_000, dice % 100),
        }),
        _ => json!({
            "id": id,
            "customer_id": 1 + dice % 5_000,
            "status": STATES[(dice % 4) as usize],
            "total": format!("{}.{:02}", dice % 700, dice % 100),
            "items": [{ "sku": format!("SKU-{}", dice % 300), "quantity": 1 + dice % 5 }],
            "note": "leave it with the neighbours",
        }),
    }
}

fn envelope(
    op: &str,
    before: Option<Value>,
    after: Option<Value>,
    table: &Table,
    number: u64,
    timestamp: i64,
) -> String {
    json!({
        "before": before,
        "after": after,
        "source": {
            "connector": "postgresql",
            "name": "shop",
            "ts_ms": timestamp,
            "snapshot": "false",
            "db": "shop",
            "schema": "public",
            "table": table.name,
            "txId": 700 + number / 3,
            "lsn": 24_000_000 + number * 184,
        },
        "op": op,
        "ts_ms": timestamp + 3,
    })
    .to_string()
}

/// The finaliser of SplitMix64: numbers that look like dice and are the same in every run.
fn scramble(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
