//! The command line: the tree of commands, and the help that teaches it, one file per family. What each command does is
//! in [`crate::commands`].

#![expect(clippy::doc_markdown, reason = "these comments are help texts, which are printed as they are")]

mod access;
mod advisory;
mod composer;
mod explain;
mod lock;
mod oci;
mod package;
mod reserve;
mod source;
mod upkeep;

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, error::ErrorKind};

pub use self::{
    access::*, advisory::*, composer::*, explain::*, lock::*, oci::*, package::*, reserve::*, source::*, upkeep::*,
};

/// One self-hosted registry for your packages, from Git repositories straight to your package manager.
#[derive(Debug, Parser)]
#[command(
    name = "larder",
    version,
    disable_help_subcommand = true,
    long_about = "One self-hosted registry for your packages, from Git repositories straight to your package manager.\n\n\
        Start with three commands:\n\n  \
        larder serve\n  \
        larder source add git https://git.example.org/acme/lib.git\n  \
        larder token create ci\n\n\
        All commands work on the same data folder (or database), whether or not a server runs on it. A running server \
        acts on a change within a second.",
    after_long_help = "Every option can also be set in the environment (LARDER_DATA, LARDER_LISTEN, LARDER_PUBLIC_URL, \
        LARDER_DATABASE_URL, LARDER_STORAGE_URL, LARDER_LOG, …) or in larder.toml in the data folder. Flags win over the \
        environment, the environment over the file. `larder doctor` shows what is in force."
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Debug, Args)]
pub struct Global {
    /// The data folder [environment: LARDER_DATA; default: ./larder-data]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    pub data: Option<PathBuf>,
    /// The configuration file; without it larder.toml in the data folder, if there is one
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub config: Option<PathBuf>,
    /// Print one JSON document in place of text
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// Tell the causes of an error as well
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub verbose: bool,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the registry
    ///
    /// Makes what is missing (database, secret key), says where it listens, and
    /// serves until SIGTERM or SIGINT.
    ///
    ///   larder serve
    ///   larder serve --listen 0.0.0.0:8080 --public-url https://packages.example.org
    ///
    /// Next: `larder source add git URL`, then `larder token create NAME`.
    #[command(verbatim_doc_comment)]
    Serve(Serve),
    /// Make, list and end the secrets with which clients come in
    #[command(subcommand, arg_required_else_help = true)]
    Token(TokenCommand),
    /// Say who may do what
    #[command(subcommand, arg_required_else_help = true)]
    Grant(GrantCommand),
    /// Keep the secrets with which Larder reaches sources
    #[command(subcommand, arg_required_else_help = true)]
    Credential(CredentialCommand),
    /// Say where packages come from, and bring them in
    #[command(subcommand, arg_required_else_help = true)]
    Source(SourceCommand),
    /// Look at packages, and take them away
    #[command(subcommand, arg_required_else_help = true)]
    Package(PackageCommand),
    /// Check lock files of projects: is all that they need here?
    #[command(subcommand, arg_required_else_help = true)]
    Lock(LockCommand),
    /// Keep names for your own packages
    #[command(subcommand, arg_required_else_help = true)]
    Reserve(ReserveCommand),
    /// Say of each version of a package whether clients get it, and why not
    ///
    ///   larder explain composer acme/lib
    ///   larder explain composer acme/lib 1.2.0 --token ci
    ///
    /// Next: `larder composer policy list` shows the rules.
    #[command(verbatim_doc_comment)]
    Explain(ExplainPackage),
    /// Read who changed and who fetched what
    #[command(subcommand, arg_required_else_help = true)]
    Audit(AuditCommand),
    /// Know what is wrong with versions of PHP packages, and let clients know
    #[command(subcommand, arg_required_else_help = true)]
    Advisory(AdvisoryCommand),
    /// Look after PHP packages: policies and blocks
    #[command(subcommand, arg_required_else_help = true)]
    Composer(ComposerCommand),
    /// Look after image repositories: policies, retention, usage, tag history
    #[command(subcommand, arg_required_else_help = true)]
    Oci(OciCommand),
    /// Take away stored bytes that nothing needs
    ///
    /// Blobs that no version needs any more, uploads that never ended, bytes that
    /// nobody knows. A running server does this all the time by itself (`gc.every`);
    /// nothing that is being written is touched.
    ///
    ///   larder gc --dry-run
    ///   larder gc --explain                        every blob, and why it is kept
    ///   larder gc --explain sha256:9f86d08188…
    ///   larder gc --explain oci:acme/app
    #[command(verbatim_doc_comment)]
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Take nothing away, but say of every blob, of one, or of those of a package why it is kept
        #[arg(long, value_name = "DIGEST|FORMAT:NAME", num_args = 0..=1, default_missing_value = "*", conflicts_with = "dry_run")]
        explain: Option<Explain>,
    },
    /// Prove that all stored bytes are there and right
    ///
    /// Reads and hashes every blob, and explains each difference. Ends with 1 if
    /// somebody may miss bytes. What can be built again from its Git repository is
    /// built again when it is next downloaded.
    #[command(verbatim_doc_comment)]
    Fsck,
    /// Look for trouble, and say what to do about it
    ///
    /// Checks configuration, database, store, disk, git, ssh, secret key, clock,
    /// queue and sources. Ends with 1 if there is a problem.
    #[command(verbatim_doc_comment)]
    Doctor,
}

/// `larder serve`.
#[derive(Debug, Default, Args)]
pub struct Serve {
    /// The address and port to listen on [environment: LARDER_LISTEN; default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// The URL under which clients reach it, if that is another one [environment: LARDER_PUBLIC_URL]
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
}

/// Ends the program with 2 and the usage, for what only the whole of the arguments shows to be wrong.
pub fn wrong_usage(what: &str) -> ! {
    Cli::command().error(ErrorKind::ArgumentConflict, what).exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
