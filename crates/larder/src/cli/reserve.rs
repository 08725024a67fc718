//! Names that never leave the house.

use clap::{Args, Subcommand};
use larder_core::pattern::Pattern;

/// `larder reserve`.
#[derive(Debug, Subcommand)]
pub enum ReserveCommand {
    /// Keep names for your own packages: no upstream is ever asked for them
    ///
    ///   larder reserve add 'acme/*'
    ///   larder reserve add 'acme-*/**' --format composer
    ///
    /// Git sources, uploads and pushes may still bring packages with such names. A
    /// package that you have is safe without: its name has an origin already. If an
    /// upstream starts to offer a name that is yours, there is an event
    /// (`larder audit list --action name.offered`), and `larder doctor` warns.
    #[command(verbatim_doc_comment)]
    Add {
        /// What it is about
        #[command(flatten)]
        names: Names,
        /// Take away packages of upstreams that have such names already
        #[arg(long)]
        take_over: bool,
    },
    /// List the names that are reserved
    List,
    /// Let upstreams be asked for names again
    Remove(Names),
}

/// Which names of which packages.
#[derive(Debug, Args)]
pub struct Names {
    /// * is every package; inside a pattern * stays within one part of a name, and ** crosses them; capitals do not count
    pub pattern: Pattern,
    /// Only packages of this format, for example composer; without it those of every one
    #[arg(long, value_name = "F")]
    pub format: Option<String>,
}
