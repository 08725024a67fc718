//! What only PHP packages have.

#![expect(clippy::doc_markdown, reason = "these comments are help texts, which are printed as they are")]

use clap::{Args, Subcommand};
use larder_composer::{
    policy::{Abandoned, Age, Floor},
    versions::Versions,
};
use larder_core::pattern::Pattern;

/// `larder composer`.
#[derive(Debug, Subcommand)]
pub enum ComposerCommand {
    /// Say how old a release must be, which vulnerable versions are kept back, and what is abandoned
    #[command(subcommand, arg_required_else_help = true)]
    Policy(ComposerPolicy),
    /// Let nobody have some versions, and tell everybody why
    ///
    /// They leave the metadata, and their downloads are refused, also to lock files
    /// that have them. Every client prints the reason.
    ///
    ///   larder composer block acme/lib '<1.4.2' --reason 'loses data when the disk is full'
    ///   larder composer block evil/lib --reason 'steals keys' --malware
    ///   larder composer block 'evil/*' --reason 'this vendor was taken over' --url https://example.org/why
    ///
    /// Blocks of all patterns that name a package hold together.
    #[command(verbatim_doc_comment)]
    Block {
        /// A package, or a pattern over package names
        #[arg(value_name = "NAME|PATTERN")]
        pattern: Pattern,
        /// Which versions
        #[arg(value_name = "CONSTRAINT", default_value = "*")]
        versions: Versions,
        /// Why, in one line
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Where more is to be read
        #[arg(long, value_name = "URL")]
        url: Option<String>,
        /// They do harm: clients from 2.10 on then also warn about copies that they have in their cache
        #[arg(long)]
        malware: bool,
    },
    /// Let everybody have blocked versions again
    ///
    ///   larder composer unblock acme/lib '<1.4.2'
    ///   larder composer unblock acme/lib           every block of exactly this name
    #[command(verbatim_doc_comment)]
    Unblock {
        /// The package or pattern, as `larder composer policy list` shows it
        #[arg(value_name = "NAME|PATTERN")]
        pattern: Pattern,
        /// The versions, written as they were blocked; without them all of the pattern
        #[arg(value_name = "CONSTRAINT")]
        versions: Option<Versions>,
    },
}

/// `larder composer policy`.
#[derive(Debug, Subcommand)]
pub enum ComposerPolicy {
    /// Make a policy, or replace the rules of the one with this pattern
    ///
    ///   larder composer policy set '*' --min-age 7d --block-advisories high
    ///   larder composer policy set 'symfony/*' --min-age 0s
    ///   larder composer policy set acme/old --abandoned acme/new
    ///
    /// Where several patterns name a package, each rule is taken from the longest one
    /// that says something about it; exemptions and blocks of all of them hold
    /// together. Blocks stay as they are: see `larder composer unblock`.
    ///
    /// Next: `larder explain composer NAME` says of each version what holds for it.
    #[command(verbatim_doc_comment)]
    Set(ComposerPolicySet),
    /// List policies and blocks
    List,
    /// Take a policy away, with its blocks
    Remove {
        /// Its pattern, as `larder composer policy list` shows it
        pattern: Pattern,
    },
}

/// `larder composer policy set`.
#[derive(Debug, Args)]
pub struct ComposerPolicySet {
    /// * is every package; inside a pattern * stays within one part of a name, and ** crosses them
    pub pattern: Pattern,
    /// How old a release of another registry must be before it is offered: 12h, 7d, 2w; not branches, and not the first
    /// release that fixes a known vulnerability
    #[arg(long, value_name = "TIME")]
    pub min_age: Option<Age>,
    /// Versions that --min-age does not hold for, as a constraint
    #[arg(long, value_name = "CONSTRAINT")]
    pub exempt: Vec<Versions>,
    /// Keep back versions with a known vulnerability of this severity or a higher one, or of none that is known: off, low,
    /// medium, high, critical
    #[arg(long, value_name = "SEVERITY")]
    pub block_advisories: Option<Floor>,
    /// Say that it is abandoned, whatever its author says: yes, no, or the package to use in its place
    #[arg(long, value_name = "REPLACEMENT", value_parser = abandoned)]
    pub abandoned: Option<Abandoned>,
}

/// Reads `yes`, `no`, or the name of a package, which is checked with the policy.
#[expect(clippy::unnecessary_wraps, reason = "the shape that clap wants of what reads a value")]
fn abandoned(text: &str) -> Result<Abandoned, std::convert::Infallible> {
    Ok(match text {
        "yes" => Abandoned::Is(true),
        "no" => Abandoned::Is(false),
        name => Abandoned::For(name.to_owned()),
    })
}
