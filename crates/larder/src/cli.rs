//! The command line: the tree of commands, and the help that teaches it. What each command does is in
//! [`crate::commands`].

#![expect(clippy::doc_markdown, reason = "these comments are help texts, which are printed as they are")]

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, error::ErrorKind};
use larder_core::{
    Digest, Error, Time,
    grant::{Grant, PrincipalName},
    pattern::Pattern,
    time::parse_duration,
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
    /// Read who changed and who fetched what
    #[command(subcommand, arg_required_else_help = true)]
    Audit(AuditCommand),
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

/// `larder token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, and print its secret alone on standard output
    ///
    /// The secret is shown this once; only its hash is kept. Without --allow the
    /// token may read everything.
    ///
    ///   larder token create ci
    ///   larder token create agency --allow 'read:composer:acme/*' --expires 90d
    ///   SECRET=$(larder token create deploy)
    ///
    /// A grant is ACTIONS:FORMAT:PATTERN.
    ///   ACTIONS  read, publish, delete with commas between, or *
    ///   FORMAT   composer, or *
    ///   PATTERN  * is every package; inside a pattern * stays within one part of a
    ///            name, and ** crosses them: acme/*, acme/**
    ///
    /// Next: give clients the secret as password (any user name) or bearer token.
    #[command(verbatim_doc_comment)]
    Create {
        /// What people call it
        name: String,
        /// What it may do; several times for several grants [default: read:*:*]
        #[arg(long, value_name = "GRANT")]
        allow: Vec<Grant>,
        /// How long it lives: 12h, 90d, 2w; for ever without
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        expires: Option<Duration>,
    },
    /// List tokens: what they may do, until when, when they were last used
    List,
    /// End a token: within a second nobody gets in with it any more
    Revoke {
        /// Its name or its id
        #[arg(value_name = "NAME|ID")]
        token: String,
    },
    /// Give a token another secret; the old one is dead at once
    ///
    /// Grants stay, and it lives as long again as it was made for. Prints the new secret alone on standard output.
    Rotate {
        /// Its name or its id
        #[arg(value_name = "NAME|ID")]
        token: String,
    },
}

/// `larder grant`.
#[derive(Debug, Subcommand)]
pub enum GrantCommand {
    /// Allow a principal more
    ///
    ///   larder grant add token:ci 'read:composer:acme/*'
    ///   larder grant add anonymous 'read:*:open/**'      whoever shows no token
    #[command(verbatim_doc_comment)]
    Add(GrantArgs),
    /// List who may do what
    List,
    /// Take a grant away, written as `larder grant list` shows it
    Remove(GrantArgs),
}

/// Who, and what.
#[derive(Debug, Args)]
pub struct GrantArgs {
    /// anonymous, or token:NAME
    pub principal: PrincipalName,
    /// ACTIONS:FORMAT:PATTERN, for example 'read:composer:acme/*'
    pub grant: Grant,
}

/// `larder credential`.
#[derive(Debug, Subcommand)]
pub enum CredentialCommand {
    /// Keep a secret, read from standard input, sealed
    ///
    ///   larder credential add forge --kind gitlab < token.txt
    ///   larder credential add deploy --kind ssh < ~/.ssh/deploy_key
    ///   larder credential add robot --kind basic --username robot < password.txt
    ///
    /// It is only ever sent to one host: the one of --host, or of the first source
    /// that uses it.
    ///
    /// Next: `larder source add git URL --credential NAME`.
    #[command(verbatim_doc_comment)]
    Add {
        /// What people call it
        name: String,
        /// How it is shown to the host
        #[arg(long, value_parser = ["basic", "bearer", "github", "gitlab", "bitbucket", "gitea", "ssh"])]
        kind: String,
        /// The user name that goes with it; the kinds of forges know their own
        #[arg(long, value_name = "U")]
        username: Option<String>,
        /// The one host (HOST or HOST:PORT) that it may be sent to
        #[arg(long)]
        host: Option<String>,
    },
    /// List credentials, never their secrets
    List,
    /// Reach every source that uses a credential
    Test {
        /// Its name or its id
        name: String,
    },
    /// Forget a credential that no source uses
    Remove {
        /// Its name or its id
        name: String,
    },
}

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

/// `larder source`.
#[derive(Debug, Subcommand)]
pub enum SourceCommand {
    /// Add a source: a Git repository, or another registry
    ///
    ///   larder source add git https://git.example.org/acme/lib.git
    ///   larder source add git git@git.example.org:acme/lib.git --credential deploy
    ///   larder source add oci https://registry-1.docker.io --only 'library/*'
    ///   larder source add oci https://ghcr.io --prefix ghcr
    ///
    /// The tags and branches of a Git repository become versions. What another
    /// registry has is fetched when a client first asks for it, and kept.
    ///
    /// Next: `larder source sync NAME` for a Git repository, unless a server runs: it
    /// begins at once. Another registry needs no sync.
    #[command(verbatim_doc_comment, arg_required_else_help = true)]
    Add(AddSource),
    /// List sources and how they are
    List,
    /// Show a source: state, packages, webhook, and why branches and tags were skipped
    Show {
        /// Its name or its id
        name: String,
    },
    /// Bring in what is new, and wait for it
    ///
    ///   larder source sync lib
    ///   larder source sync --all
    ///
    /// A running server does it, or else this command. Ends with 1 if it failed.
    #[command(verbatim_doc_comment)]
    Sync {
        /// Its name or its id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// Every source
        #[arg(long)]
        all: bool,
        /// Let a source that is held drop the versions that vanished
        #[arg(long, conflicts_with = "all")]
        accept_removals: bool,
    },
    /// Give the webhook of a Git source another secret; the old one is refused at once
    ///
    ///   larder source rotate-webhook lib
    ///
    /// Prints the new secret alone on standard output. `larder source show lib` shows
    /// it again, and the address that the forge is to call.
    #[command(verbatim_doc_comment)]
    RotateWebhook {
        /// Its name or its id
        name: String,
    },
    /// Take a source away with all its packages
    Remove {
        /// Its name or its id
        name: String,
    },
}

/// `larder source add`.
#[derive(Debug, Args)]
pub struct AddSource {
    /// git, or the format of another registry: oci
    #[arg(value_name = "git|FORMAT")]
    pub kind: String,
    /// https://host/path.git, ssh://git@host/path.git or git@host:path.git; of a registry https://host
    pub url: Option<String>,
    /// What people call it [default: the last part of the URL, or its host]
    #[arg(long, value_name = "N")]
    pub name: Option<String>,
    /// The credential that opens it; see `larder credential add`
    #[arg(long, value_name = "C")]
    pub credential: Option<String>,
    /// How often to look for changes: 5m, 4h, 1d [default: 4h]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = GIT)]
    pub every: Option<Duration>,
    /// How much of the repository to keep [default: light]
    #[arg(long, value_enum, help_heading = GIT)]
    pub keep: Option<Keep>,
    /// What to do when the tag of a stable release moves [default: freeze]
    #[arg(long, value_enum, help_heading = GIT)]
    pub moved_tags: Option<MovedTags>,
    /// Do not tell clients where the repository is
    #[arg(long, help_heading = GIT)]
    pub hide_source: bool,
    /// Only packages whose names there match, such as 'library/*'; several times for several patterns
    #[arg(long, value_name = "PATTERN", help_heading = REGISTRY)]
    pub only: Vec<Pattern>,
    /// How long an answer is good before it is asked for again [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = REGISTRY)]
    pub fresh: Option<Duration>,
    /// Have its packages under P/NAME here
    #[arg(long, value_name = "P", help_heading = REGISTRY)]
    pub prefix: Option<String>,
}

/// Ends the program with 2 and the usage, for what only the whole of the arguments shows to be wrong.
pub fn wrong_usage(what: &str) -> ! {
    Cli::command().error(ErrorKind::ArgumentConflict, what).exit()
}

/// The headings of options that only one kind of source knows.
const GIT: &str = "Of Git repositories";
const REGISTRY: &str = "Of other registries";

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

/// How much of a Git repository is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Keep {
    /// The files of every version, fetched when first needed
    Light,
    /// Everything, so that old versions can be built when the Git host is gone
    Full,
}

/// What happens when a tag of a stable release moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MovedTags {
    /// The release stays what it was
    Freeze,
    /// The release follows its tag
    Follow,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

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
