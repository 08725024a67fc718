//! Packages, whatever their format.

#![expect(clippy::doc_markdown, reason = "these comments are help texts, which are printed as they are")]

use clap::Subcommand;

/// `larder package`.
#[derive(Debug, Subcommand)]
pub enum PackageCommand {
    /// List packages
    List {
        /// Only those of this format, for example composer
        #[arg(long, value_name = "F")]
        format: Option<String>,
    },
    /// Show a package: versions, artifacts, downloads, how to install it
    ///
    ///   larder package show composer acme/lib
    #[command(verbatim_doc_comment)]
    Show {
        /// Its format, for example composer
        format: String,
        /// Its name, for example acme/lib
        name: String,
    },
    /// Take a package, or one version of it, away
    ///
    ///   larder package remove composer acme/lib 1.2.0
    ///
    /// What comes from a Git source comes back when its tag or branch moves: to be
    /// rid of it, delete the tag, or the source with `larder source remove`. Stored
    /// bytes go with a later `larder gc`.
    #[command(verbatim_doc_comment)]
    Remove {
        /// Its format, for example composer
        format: String,
        /// Its name, for example acme/lib
        name: String,
        /// The version, as `larder package show` lists it; all of them without
        version: Option<String>,
    },
}
