//! `tidelog drill slot`.

use std::path::PathBuf;

use super::ending::{Told, scratch, seed, stopped};
use crate::cli::human;
use crate::config::Config;
use crate::error::Result;
use crate::escape::one_line;
use crate::recover::drill::{self, AskedSlot, Report, Slots};
use crate::store::Store;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory below which the scratch directory is made, on a disk with room for the database [default: $TMPDIR, or /var/tmp].
    #[arg(long, value_name = "DIR")]
    pub(super) scratch: Option<PathBuf>,
    /// Where PostgreSQL's own programs of the database's version are [default: where packages have them, and PATH].
    #[arg(long, value_name = "DIR")]
    pub(super) bin_dir: Option<PathBuf>,
    /// The slots were lost at this moment, and not at a random one: RFC 3339, -90m, -2h, -7d, or an LSN.
    #[arg(long, value_name = "TIME|LSN", allow_hyphen_values = true)]
    pub(super) at: Option<String>,
    /// Choose the same random moment again that an earlier drill has told, as long as the archive is the same.
    #[arg(long, value_name = "N", conflicts_with = "at")]
    pub(super) seed: Option<u64>,
    /// So much of the log behind it is decoded, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(super) wal: u64,
    /// A superuser of the database.
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    pub(super) user: String,
    /// Print the report as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs it.
pub(super) async fn run(args: &Args, config: &Config) -> Result<Told> {
    let asked = AskedSlot {
        at: args.at.clone(),
        seed: seed(args.seed)?,
        wal: args.wal.min(1 << 30) << 20,
        scratch: scratch(args.scratch.as_ref()),
        bin_dir: args.bin_dir.clone(),
        user: args.user.clone(),
    };
    let store = Store::open(&config.archive)?;
    let stop = stopped("its server and its scratch directory are gone");
    let (report, error) = Box::pin(drill::slot((&store, config), &asked, stop)).await?;
    Told::of((&report, error), text)
}

fn text(report: &Report<Slots>) -> String {
    let Slots { at, slots, notes } = &report.about;
    let mut text = format!("slots: lost at {at} (seed {})\n", report.seed);
    for one in slots {
        let begins = one.decodes_from.map_or_else(|| "was not made".to_owned(), |at| format!("decodes from {at}"));
        text += &format!(
            "  {} of {}: {} behind {} up to {}; it {begins} and gives {}, with all {} that the topics have\n",
            one_line(&one.slot),
            one_line(&one.connector),
            human::many(one.commits, "commit"),
            one.from,
            one.to,
            human::many(one.decoded, "transaction"),
            one.in_topics
        );
    }
    notes.iter().for_each(|note| text += &format!("  note     {}\n", one_line(note)));
    text
}
