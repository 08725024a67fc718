//! What operators ask: who did what, and why bytes are kept.

use std::{str::FromStr, time::Duration};

use clap::{Args, Subcommand};
use larder_core::{Digest, Error, Time, time::parse_duration};

/// What `larder gc --explain` tells of.
#[derive(Clone, Debug)]
pub enum Explain {
    /// Every blob.
    Everything,
    /// This one.
    Blob(Digest),
    /// Those of a package: a format and a name.
    Package(String, String),
}

impl FromStr for Explain {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "*" {
            return Ok(Self::Everything);
        }
        if let Ok(digest) = text.parse() {
            return Ok(Self::Blob(digest));
        }
        match text.split_once(':') {
            Some((format, name)) if !format.starts_with("sha") && !name.is_empty() => {
                Ok(Self::Package(format.to_owned(), name.to_owned()))
            }
            _ => Err(Error::invalid(format!(
                "`{text}` is neither a digest nor a package: write sha256:… with all its digits, or FORMAT:NAME like oci:acme/app"
            ))),
        }
    }
}

/// `larder audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List changes (or with --access who fetched what), the newest first
    ///
    ///   larder audit list --since 7d --action token
    ///   larder audit list --access --subject package:composer:acme/lib
    ///   larder audit list --since 2026-11-01 --limit 100000 --json
    #[command(verbatim_doc_comment)]
    List(AuditList),
}

/// `larder audit list`.
#[derive(Debug, Args)]
pub struct AuditList {
    /// Not before: a date, a time (2026-11-20T08:00:00Z), or how long ago (7d)
    #[arg(long, value_name = "T", value_parser = moment)]
    pub since: Option<Moment>,
    /// Before: written like --since
    #[arg(long, value_name = "T", value_parser = moment)]
    pub until: Option<Moment>,
    /// Only by this one: cli, larder, anonymous, token:NAME
    #[arg(long, value_name = "A")]
    pub actor: Option<String>,
    /// Only this: token.create, or a whole family: token; of accesses: metadata, download, list
    #[arg(long, value_name = "X")]
    pub action: Option<String>,
    /// Only to this: token:NAME, source:NAME, credential:NAME, package:FORMAT:NAME
    #[arg(long, value_name = "S")]
    pub subject: Option<String>,
    /// How many, at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: u32,
    /// Who fetched what, in place of who changed what
    #[arg(long)]
    pub access: bool,
}

/// A time, as people write it.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// A date or a time.
    At(Time),
    /// So long ago.
    Ago(Duration),
}

impl Moment {
    /// The time that it is, seen from `now`.
    pub fn time(self, now: Time) -> Time {
        match self {
            Self::At(time) => time,
            Self::Ago(duration) => now.minus(duration),
        }
    }
}

fn moment(text: &str) -> Result<Moment, Error> {
    parse_duration(text).map(Moment::Ago).or_else(|_| Time::parse(text).map(Moment::At)).map_err(|_| {
        Error::invalid(format!("`{text}` is not a time: write 2026-11-20, 2026-11-20T08:00:00Z, or 7d for a week ago"))
    })
}
