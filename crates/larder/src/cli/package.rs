//! Packages, whatever their format.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
    /// Publish a Composer package that is in a zip, or described in a file
    ///
    ///   larder package publish lib-1.2.0.zip
    ///   larder package publish lib.zip --name acme/lib --version 1.2.0
    ///   larder package publish lib.zip --version dev-main
    ///   larder package publish old.zip --manifest package.json
    ///   larder package publish --manifest package.json
    ///
    /// Name and version are those in the composer.json of the zip, or in the file
    /// that --manifest names. Without a zip it is fetched from the dist.url in that
    /// file, and kept. The same zip again is fine; another one under the same
    /// version is refused, but for development versions (dev-main, 2.x-dev).
    #[command(verbatim_doc_comment)]
    Publish(Publish),
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

/// `larder package publish`.
#[derive(Debug, Args)]
pub struct Publish {
    /// The zip
    #[arg(value_name = "FILE.zip", required_unless_present = "manifest")]
    pub file: Option<PathBuf>,
    /// The name that the package must have
    #[arg(long, value_name = "VENDOR/NAME")]
    pub name: Option<String>,
    /// Its version, if its composer.json says none
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// A file with what stands for its composer.json: JSON with name, version, require and the like
    #[arg(long, value_name = "FILE.json")]
    pub manifest: Option<PathBuf>,
}
