//! Why a version is, or is not, what somebody gets.

use clap::Args;

/// `larder explain`.
#[derive(Debug, Args)]
pub struct ExplainPackage {
    /// The format of the package: composer
    #[arg(value_name = "FORMAT")]
    pub format: String,
    /// The package
    pub name: String,
    /// Only this version, as its author wrote it or as a lock file has it
    pub version: Option<String>,
    /// As somebody sees it who shows this token
    #[arg(long, value_name = "NAME|ID")]
    pub token: Option<String>,
    /// Ask nobody: only tell what is here
    #[arg(long)]
    pub offline: bool,
}
