// Answers of /api/status as a busy archiver would give them, the same ones every time.

const HOUR = 3600e3;

/** A small generator of numbers in [0, 1), seeded (mulberry32). */
function numbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const SIX = ["cdc.shop.customers", "cdc.shop.orders", "cdc.shop.order_lines", "payments", "shipments.events", "web.clicks"];
const WORDS = ["orders", "customers", "invoices", "payments", "stock", "prices", "carts", "refunds", "audit", "sessions", "returns", "suppliers"];

function stream(random, at, topic, partitions) {
  const age = (9 + random() * 150) * HOUR;
  const records = Math.floor(10 ** (4 + random() * 3.5));
  const raw = records * Math.floor(300 + random() * 900);
  const rate = random() < 0.25 ? 0 : 10 ** (random() * 3.3);
  const iso = (ms) => new Date(ms).toISOString();
  return {
    stream: `kafka/main/${topic}.0`, topic, generation: 0, partitions, records, bytes: raw, stored_bytes: Math.floor(raw / (4 + random() * 9)),
    segments: Math.ceil(age / 60e3 / 3), gap_count: 0, gaps: [], min_time: iso(at - age), max_time: iso(at - 1500),
    complete_through: iso(at - 800 - random() * 9e3), lag_records: Math.floor(rate * 5), records_per_second: Math.round(rate * 10) / 10,
    bytes_per_second: Math.round(rate * 930), segments_waiting: 0, trouble: null,
  };
}

/** Records that the broker had removed while the archiver was away. */
function lose(stream, at, from, to, offsets) {
  const iso = (ms) => new Date(ms).toISOString();
  stream.min_time = iso(at - 170 * HOUR);
  const start = Math.floor(stream.records / stream.partitions / 2);
  stream.gap_count += 1;
  stream.gaps.push({ partition: stream.gaps.length, start, end: start + offsets, offsets, reason: "broker_retention",
    from: iso(at - from), to: iso(at - to), found: iso(at - to) });
}

function partitions_of(stream) {
  return Array.from({ length: stream.partitions }, (_, partition) => {
    const position = Math.floor(stream.records / stream.partitions) + partition * 17;
    const lag = partition === 0 ? stream.lag_records : 0;
    return { partition, checkpoint_position: position, archived: position, next: position + lag, end: position + lag, lag_records: lag,
      complete_through: stream.complete_through, held: false };
  });
}

/** A Postgres with a window, and a slot that is or is not lost. */
export function postgres(lost = false) {
  const at = Date.parse("2026-11-22T08:05:12.000Z");
  const iso = (ago) => new Date(at - ago).toISOString();
  const slot = (slot, more) => ({ slot, kind: "physical", database: null, active: true, wal_status: "reserved", retained_bytes: 1.2e6,
    safe_bytes: 10e9, seconds_to_loss: null, ...more });
  return { state: "running", since: iso(60 * HOUR), host: "db-1:5432", trouble: null, system_id: "7291843117650028351", timeline: 3,
    server_lsn: "2A/7F3C1A80", received_lsn: "2A/7F3C1A80", durable_lsn: "2A/7F380000", lag_bytes: 268928, complete_through: iso(2100),
    last_commit: iso(2400), bytes: 46.2e9, stored_bytes: 2.31e9, segments: 11804, gaps: lost ? 1 : 0,
    slots: [slot("tidelog"), slot("debezium", { kind: "logical", database: "shop", retained_bytes: 7.9e9, safe_bytes: 2.1e9, seconds_to_loss: 2640, wal_status: "extended" }),
      ...(lost ? [slot("reports", { kind: "logical", database: "shop", active: false, wal_status: "lost", retained_bytes: null, safe_bytes: null })] : [])],
    last_backup: iso(5.2 * HOUR),
    windows: lost ? [{ from: iso(150 * HOUR), to: iso(11 * HOUR) }, { from: iso(9.5 * HOUR), to: iso(2400) }] : [{ from: iso(150 * HOUR), to: iso(2400) }] };
}

/** What the page is told: `count` topics; with a gap, paused, or with a store that does not answer. */
export function fixture({ count = 6, gaps = false, paused = false, trouble = false, database = null } = {}) {
  const at = Date.parse("2026-11-22T08:05:12.000Z");
  const random = numbers(count);
  const name = (n) => (n < SIX.length ? SIX[n]
    : `${["cdc.shop", "cdc.billing", "cdc.warehouse", "events"][n % 4]}.${WORDS[Math.floor(n / 4) % WORDS.length]}_${String(n).padStart(3, "0")}`);
  const streams = Array.from({ length: count }, (_, n) => stream(random, at, name(n), [6, 12, 12, 3, 1, 24][n % 6]));
  if (gaps) {
    lose(streams[1], at, 9.2 * HOUR, 8.1 * HOUR, 1204);
    lose(streams[1], at, 8.4 * HOUR, 8.1 * HOUR, 88);
    if (count > 100) lose(streams[137], at, 15 * HOUR, 14 * HOUR, 70221);
  }
  const reasons = [];
  if (trouble) {
    const text = "a checkpoint cannot be written: cannot create manifest/kafka/main/payments.0/00000000000000000412.json in s3://archive/cdc: Connection refused";
    Object.assign(streams[3], { trouble: { since: new Date(at - 340e3).toISOString(), text }, segments_waiting: 4,
      complete_through: new Date(at - 412e3).toISOString(), lag_records: 20431 });
    reasons.push(`payments: ${text} (since 2026-11-22T07:59:32.000Z)`);
  }
  const notes = [];
  if (paused) {
    notes.push("kafka is paused since 2026-11-22T07:52:40.118Z: PUT /connectors/kafka/resume goes on");
    for (const stream of streams) {
      Object.assign(stream, { records_per_second: 0, bytes_per_second: 0, complete_through: new Date(at - 752e3).toISOString() });
    }
  }
  streams.sort((a, b) => (a.topic < b.topic ? -1 : 1));
  const answer = {
    version: "0.1.0", revision: "50f51b5", worker: "tidelog-0:9095", writer: "a41c5d90e2f7", started: "2026-11-19T21:14:03.552Z",
    ready: reasons.length === 0, reasons, notes, archive: "s3://archive/cdc", memory_budget_bytes: 192 * 2 ** 20,
    kafka: { state: paused ? "paused" : "running", since: "2026-11-22T07:52:40.118Z", member: true, resolving: 0, brokers: null,
      memory_used_bytes: Math.floor((paused ? 0.4 : 37.2) * 2 ** 20), last_checkpoint: new Date(at - 1300).toISOString(), streams,
      cluster: "main", cluster_id: "5L6g3nShT-eMCtK--X86sw", group_id: "tidelog" },
    postgres: database,
  };
  const of = (topic) => {
    const found = streams.find((stream) => stream.topic === topic);
    return { ...found, partitions: partitions_of(found) };
  };
  return { at, answer, stream: of };
}
