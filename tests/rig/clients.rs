//! Clients of a database of which every committed change is known: each has rows of its own, and a model of what they are after each
//! of its transactions. The table `ledger` says in the database itself which transaction of each client was the last.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;

use super::debezium::Tables;
use super::postgres::Postgres;
use super::process::{Process, spawn};
use super::records::Random;

/// The tables that clients change.
pub(crate) const TABLES: [&str; 4] = ["acct", "item", "pair", "doc"];

/// The tables: a plain one, one with full old rows, one with a key of two columns, one with values that are stored apart, and the
/// ledger and the marks, of which one has none of what is the default.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE acct (id bigint PRIMARY KEY, n bigint NOT NULL, note text);
    CREATE TABLE item (id bigint PRIMARY KEY, n bigint NOT NULL, note text);
    ALTER TABLE item REPLICA IDENTITY FULL;
    CREATE TABLE pair (id bigint, n bigint, note text, owner bigint, PRIMARY KEY (id, owner));
    CREATE TABLE doc (id bigint PRIMARY KEY, n bigint NOT NULL, note text);
    ALTER TABLE doc ALTER note SET STORAGE EXTERNAL;
    CREATE TABLE ledger (client bigint PRIMARY KEY, committed bigint NOT NULL);
    CREATE TABLE marks (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text, kind text DEFAULT 'new');
    INSERT INTO marks (note, kind) VALUES ('without a kind', NULL);";

/// The rows of one client, by table and key.
type Rows = BTreeMap<(&'static str, i64), (i64, String)>;

/// What each transaction of one client did to its rows: what they are now, or that they are gone.
type History = Vec<Vec<((&'static str, i64), Option<(i64, String)>)>>;

/// Running clients. Dropping them lets them end.
pub(crate) struct Clients {
    halt: Arc<AtomicBool>,
    threads: Vec<JoinHandle<History>>,
}

/// What clients have committed.
pub(crate) struct Known {
    clients: Vec<History>,
}

impl Clients {
    /// Starts clients of a server that has [`SCHEMA`], the first of them with this number: no two may share one.
    pub(crate) fn start(postgres: &Postgres, first: i64, count: i64, seed: u64) -> Clients {
        let halt = Arc::new(AtomicBool::new(false));
        let threads = (first..first + count).map(|number| {
            let mut client = Client::new(postgres, number, seed);
            let halt = Arc::clone(&halt);
            std::thread::spawn(move || {
                while !halt.load(Ordering::Relaxed) {
                    client.transaction();
                }
                std::mem::take(&mut client.history)
            })
        });
        Clients { threads: threads.collect(), halt }
    }

    /// Lets each end its transaction, and tells what they did.
    pub(crate) fn stop(mut self) -> Known {
        self.halt.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads);
        Known { clients: threads.into_iter().map(|thread| thread.join().expect("a client")).collect() }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.halt.store(true, Ordering::Relaxed);
    }
}

impl Known {
    /// Returns how many transactions were committed.
    pub(crate) fn commits(&self) -> usize {
        self.clients.iter().map(Vec::len).sum()
    }

    /// The rows of all after the transactions that a server's ledger says, or after none, in the shape of a fold.
    pub(crate) fn rows(&self, postgres: &Postgres, first: i64) -> Tables {
        let ledger = postgres.psql("SELECT client, committed FROM ledger");
        let committed: BTreeMap<i64, usize> = ledger
            .lines()
            .map(|line| {
                let (client, committed) = line.split_once('|').expect("two columns");
                (client.parse().expect("a number"), committed.parse().expect("a number"))
            })
            .collect();
        let mut tables: Tables = TABLES.iter().map(|table| ((*table).to_owned(), BTreeMap::new())).collect();
        for (client, history) in (first..).zip(&self.clients) {
            let mut rows = Rows::new();
            for (row, now) in history[..committed.get(&client).copied().unwrap_or(0)].iter().flatten() {
                match now {
                    Some(now) => rows.insert(*row, now.clone()),
                    None => rows.remove(row),
                };
            }
            for ((table, id), (n, note)) in &rows {
                let (key, row) = match *table {
                    "pair" => {
                        let row = json!({ "id": id, "n": n, "note": note, "owner": client });
                        (json!({ "id": id, "owner": client }), row)
                    }
                    _ => (json!({ "id": id }), json!({ "id": id, "n": n, "note": note })),
                };
                tables.get_mut(*table).expect("a table of the clients").insert(key.to_string(), row);
            }
        }
        tables
    }
}

/// One session, by `psql`.
struct Client {
    /// Ends with this handle.
    _process: Process,
    statements: ChildStdin,
    answers: BufReader<ChildStdout>,
    number: i64,
    random: Random,
    next_id: i64,
    rows: Rows,
    history: History,
}

impl Client {
    fn new(postgres: &Postgres, number: i64, seed: u64) -> Client {
        let mut command = postgres.client("psql");
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = spawn(command).expect("psql starts");
        let statements = process.stdin.take().expect("its input");
        let answers = BufReader::new(process.stdout.take().expect("its output"));
        let random = Random::new(seed.wrapping_mul(1_000).wrapping_add(number.cast_unsigned()));
        let process = Process::of(process, Path::new("/dev/null"));
        Client {
            _process: process,
            statements,
            answers,
            number,
            random,
            next_id: 1,
            rows: Rows::new(),
            history: History::new(),
        }
    }

    /// One transaction of some changes, possibly with a part or the whole rolled back, possibly a long one.
    fn transaction(&mut self) {
        let (mut rows, mut sql) = (self.rows.clone(), String::from("BEGIN;\n"));
        for _ in 0..=self.random.below(6) {
            if self.random.below(8) == 0 {
                let kept = rows.clone();
                sql.push_str("SAVEPOINT s;\n");
                self.change(&mut rows, &mut sql);
                if self.random.below(2) == 0 {
                    sql.push_str("ROLLBACK TO s;\n");
                    rows = kept;
                }
            } else {
                self.change(&mut rows, &mut sql);
            }
            if self.random.below(60) == 0 {
                sql.push_str("SELECT pg_sleep(1.5);\n");
            }
        }
        let commits = self.random.below(8) != 0;
        if commits {
            let (client, number) = (self.number, self.history.len() + 1);
            sql.push_str(&format!(
                "INSERT INTO ledger VALUES ({client}, {number})
                 ON CONFLICT (client) DO UPDATE SET committed = excluded.committed;\nCOMMIT;\n"
            ));
        } else {
            sql.push_str("ROLLBACK;\n");
        }
        sql.push_str("\\echo done\n");
        self.statements.write_all(sql.as_bytes()).expect("psql reads");
        let mut line = String::new();
        while line.trim() != "done" {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).expect("psql answers"), 0, "psql ended; it was sent\n{sql}");
        }
        if commits {
            let gone = self.rows.keys().filter(|row| !rows.contains_key(*row)).map(|row| (*row, None));
            let new = rows.iter().filter(|(row, now)| self.rows.get(*row) != Some(*now));
            let new = new.map(|(row, now)| (*row, Some(now.clone())));
            self.history.push(gone.chain(new).collect());
            self.rows = rows;
        }
        // Six of them make some 500 changes a second, which a connector bears beside other tests.
        std::thread::sleep(Duration::from_millis(self.random.below(150)));
    }

    fn change(&mut self, rows: &mut Rows, sql: &mut String) {
        let table = TABLES[usize::try_from(self.random.below(4)).expect("small")];
        let own: Vec<i64> = rows.keys().filter(|(of, _)| *of == table).map(|(_, id)| *id).collect();
        let owner = if table == "pair" { format!(" AND owner = {}", self.number) } else { String::new() };
        let of = |id: i64| format!("id = {id}{owner}");
        let some = own.get(usize::try_from(self.random.below(own.len().max(1) as u64)).expect("small")).copied();
        match (self.random.below(10), some) {
            (0..=4, _) | (_, None) => {
                let count = [1, 1, 1, 20][usize::try_from(self.random.below(4)).expect("small")];
                for _ in 0..count {
                    self.insert(table, rows, sql);
                }
            }
            (5..=6, Some(id)) => {
                rows.get_mut(&(table, id)).expect("its own row").0 += 1;
                sql.push_str(&format!("UPDATE {table} SET n = n + 1 WHERE {};\n", of(id)));
            }
            (7, Some(id)) if table == "acct" => {
                let new = self.id();
                let row = rows.remove(&(table, id)).expect("its own row");
                rows.insert((table, new), row);
                sql.push_str(&format!("UPDATE {table} SET id = {new} WHERE {};\n", of(id)));
            }
            (_, Some(id)) => {
                rows.remove(&(table, id));
                sql.push_str(&format!("DELETE FROM {table} WHERE {};\n", of(id)));
            }
        }
    }

    fn insert(&mut self, table: &'static str, rows: &mut Rows, sql: &mut String) {
        let (id, n) = (self.id(), i64::try_from(self.random.below(1_000)).expect("small"));
        // Longer than what Postgres keeps within the row.
        let (part, times) =
            if table == "doc" { (format!("{:016x}", self.random.next()), 200) } else { (format!("n{n}"), 1) };
        let owner = if table == "pair" { format!(", {}", self.number) } else { String::new() };
        sql.push_str(&format!("INSERT INTO {table} VALUES ({id}, {n}, repeat('{part}', {times}){owner});\n"));
        rows.insert((table, id), (n, part.repeat(times)));
    }

    /// A key that no other client takes.
    fn id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id * 1_000 + self.number
    }
}
