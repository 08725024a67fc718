//! What only image repositories have.

use clap::{Args, Subcommand};
use larder_core::{Digest, Error, pattern::Pattern};

/// `larder oci`.
#[derive(Debug, Subcommand)]
pub enum OciCommand {
    /// Say what is kept, what never moves, and how much there may be
    #[command(subcommand, arg_required_else_help = true)]
    Policy(PolicyCommand),
    /// Take away the tags and manifests that the policies do not keep
    ///
    /// A running server does this all the time by itself (`gc.every`). Manifests that
    /// nothing refers to go after 7 days (`oci.untagged`, or the policy's days), with
    /// what they alone consist of and what is about them.
    ///
    ///   larder oci retention --dry-run
    #[command(verbatim_doc_comment)]
    Retention {
        /// Only say what would go and what is kept, each with the reason
        #[arg(long)]
        dry_run: bool,
    },
    /// Show how many bytes repositories need, alone and shared, and that the sum is what is stored
    ///
    ///   larder oci usage
    ///   larder oci usage 'acme/**'
    ///   larder oci usage acme/app --tag 1.0        what would be free without this tag
    #[command(verbatim_doc_comment)]
    Usage {
        /// A repository, or a pattern over their names
        #[arg(value_name = "NAME|PATTERN", default_value = "*")]
        pattern: Pattern,
        /// What would be free without this tag
        #[arg(long, value_name = "T", requires = "pattern")]
        tag: Option<String>,
    },
    /// Show what happened to a tag: when, who, from which digest to which
    History {
        /// The repository
        name: String,
        /// The tag
        tag: String,
    },
    /// Put a tag back to where it was before its last move
    ///
    ///   larder oci rollback acme/app latest
    ///   larder oci rollback acme/app latest --to sha256:9f86d08188…
    #[command(verbatim_doc_comment)]
    Rollback {
        /// The repository
        name: String,
        /// The tag
        tag: String,
        /// The digest of a manifest that the repository has
        #[arg(long, value_name = "DIGEST")]
        to: Option<Digest>,
    },
}

/// `larder oci policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Make a policy, or replace all rules of the one with this pattern
    ///
    ///   larder oci policy set 'acme/**' --immutable 'v*' --quota 50GiB
    ///   larder oci policy set 'acme/nightly-*' --keep-last 10 --keep-tag latest
    ///   larder oci policy set '*' --untagged-days 30
    ///
    /// Where several patterns name a repository, each rule is taken from the longest
    /// one that says something about it.
    ///
    /// Next: `larder oci retention --dry-run` shows what the rules would take away.
    #[command(verbatim_doc_comment)]
    Set(PolicySet),
    /// List policies
    List,
    /// Take a policy away
    Remove {
        /// Its pattern, as `larder oci policy list` shows it
        pattern: Pattern,
    },
}

/// `larder oci policy set`.
#[derive(Debug, Args)]
pub struct PolicySet {
    /// * is every repository; inside a pattern * stays within one part of a name, and ** crosses them
    pub pattern: Pattern,
    /// Tags that never move and are never deleted, as a pattern
    #[arg(long, value_name = "TAGS")]
    pub immutable: Vec<Pattern>,
    /// Keep only the N tags that moved last
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep tags that moved within N days; with --keep-last also those
    #[arg(long, value_name = "N")]
    pub keep_days: Option<u32>,
    /// Tags that are kept for ever and not counted, as a pattern
    #[arg(long, value_name = "TAGS")]
    pub keep_tag: Vec<Pattern>,
    /// For how many days manifests are kept that nothing refers to [default: 7]
    #[arg(long, value_name = "N")]
    pub untagged_days: Option<u32>,
    /// How much all repositories of the pattern may have together: 500MiB, 50GiB, 2TiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub quota: Option<u64>,
    /// Accept manifests that refer to blobs and manifests that are not here
    #[arg(long)]
    pub sparse: bool,
}

/// Reads a number of bytes as people write it: `500MiB`, `50GiB`.
fn size(text: &str) -> Result<u64, Error> {
    let wrong =
        || Error::invalid(format!("`{text}` is not a size: write a number and a unit, like 500MiB, 50GiB or 2TiB"));
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "tib" | "t" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        assert_eq!(size("50GiB").unwrap(), 50 << 30);
        assert_eq!(size("1MB").unwrap(), 1_000_000);
        assert_eq!(size("12").unwrap(), 12);
        for wrong in ["", "GiB", "1.5GiB", "-1", "9999999TiB", "5 apples"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
