//! Lock files of projects.

#![expect(clippy::doc_markdown, reason = "these comments are help texts, which are printed as they are")]

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `larder lock`.
#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// Say of each package of a composer.lock whether it could be installed from here
    ///
    ///   larder lock check composer.lock
    ///   larder lock check composer.lock --warm           bring what is missing, once and for ever
    ///   larder lock check composer.lock --offline        what if everything else were gone?
    ///   larder lock check composer.lock --rewrite        install it from this server from now on
    ///
    /// Says also which packages have known vulnerabilities, are abandoned, or may not
    /// be what the project means: names of yours that come from elsewhere. Ends with
    /// 1 if something could not be installed.
    ///
    /// With --warm the registries that are configured as upstreams hear the names of
    /// packages that are not known here, unless they are reserved (`larder reserve`).
    /// Without it they are asked only for packages of theirs that are here already.
    #[command(verbatim_doc_comment)]
    Check(LockCheck),
}

/// `larder lock check`.
#[derive(Debug, Args)]
pub struct LockCheck {
    /// The lock file
    pub file: PathBuf,
    /// Bring or build what is not stored here yet; sends names of unknown packages to the configured registries
    #[arg(long, conflicts_with = "offline")]
    pub warm: bool,
    /// Ask nobody outside: only what is stored counts
    #[arg(long)]
    pub offline: bool,
    /// Point its packages at this server (needs LARDER_PUBLIC_URL); everything else of the file stays as it is
    #[arg(long)]
    pub rewrite: bool,
    /// Write the rewritten file here, in place of over the lock file
    #[arg(long, value_name = "FILE", requires = "rewrite")]
    pub output: Option<PathBuf>,
}
