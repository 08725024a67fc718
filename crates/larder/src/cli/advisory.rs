//! What is known to be wrong with versions of packages.

#![expect(clippy::doc_markdown, reason = "these comments are help texts, which are printed as they are")]

use std::path::PathBuf;

use clap::{Args, Subcommand};
use larder_composer::{advisories::Severity, versions::Versions};

/// `larder advisory`.
#[derive(Debug, Subcommand)]
pub enum AdvisoryCommand {
    /// Take in advisories from a file or a folder
    ///
    /// Reads OSV documents (https://ossf.github.io/osv-schema/) and what a registry's
    /// security-advisories API answers; of a folder, all .json files in it and below.
    /// What is there already in the same words is left alone. A folder is all that a
    /// feed has to say: what is not in it any more goes.
    ///
    ///   larder advisory import advisories.json
    ///   larder advisory import osv/ --feed osv
    ///
    /// Advisories of registries upstream come by themselves: see `larder advisory refresh`.
    #[command(verbatim_doc_comment)]
    Import {
        /// The file or folder
        path: PathBuf,
        /// What tells them, so that the next import of it can change and remove them [default: the name of the file or folder]
        #[arg(long, value_name = "NAME")]
        feed: Option<String>,
    },
    /// Ask every registry upstream now what it knows
    ///
    /// A running server does that by itself, every hour. No name of a package is sent.
    Refresh,
    /// Write an advisory of your own
    ///
    ///   larder advisory add acme/lib --affected '<1.2.3' --title 'Anybody may log in' --severity high
    ///
    /// `composer audit` reports it, and updates leave such versions alone.
    #[command(verbatim_doc_comment)]
    Add(AdvisoryAdd),
    /// List advisories
    List {
        /// Only those about this package
        package: Option<String>,
        /// Show who told how many instead
        #[arg(long, conflicts_with = "package")]
        feeds: bool,
    },
    /// Take an advisory away, or all that a feed told
    Remove {
        /// Its name, as `larder advisory list` shows it
        #[arg(required_unless_present = "feed", conflicts_with = "feed")]
        id: Option<String>,
        /// All that this feed told
        #[arg(long, value_name = "NAME")]
        feed: Option<String>,
    },
}

/// `larder advisory add`.
#[derive(Debug, Args)]
pub struct AdvisoryAdd {
    /// The package
    pub package: String,
    /// Which versions, as a constraint: '<1.2.3', '>=2.0,<2.1.4'
    #[arg(long, value_name = "CONSTRAINT")]
    pub affected: Versions,
    /// What is wrong, in one line
    #[arg(long, value_name = "TEXT")]
    pub title: String,
    /// Its number in the list of all vulnerabilities: CVE-2026-1234
    #[arg(long, value_name = "CVE")]
    pub cve: Option<String>,
    /// Where more is to be read
    #[arg(long, value_name = "URL")]
    pub link: Option<String>,
    /// How bad it is: low, medium, high, critical
    #[arg(long, value_name = "SEVERITY")]
    pub severity: Option<Severity>,
}
