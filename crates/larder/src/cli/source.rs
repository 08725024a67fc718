//! Where packages come from.

#![expect(clippy::doc_markdown, reason = "these comments are help texts, which are printed as they are")]

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use larder_core::{pattern::Pattern, time::parse_duration};
use larder_sources::{
    folders::FolderPattern,
    registry,
    settings::{KeepWord, MovedTagsWord},
};

/// `larder source`.
#[derive(Debug, Subcommand)]
pub enum SourceCommand {
    /// Add a source: a Git repository, or another registry
    ///
    ///   larder source add git https://git.example.org/acme/lib.git
    ///   larder source add git git@git.example.org:acme/lib.git --credential deploy
    ///   larder source add git https://git.example.org/acme/all.git --packages 'packages/*'
    ///   larder source add oci https://registry-1.docker.io --only 'library/*'
    ///   larder source add oci https://ghcr.io --prefix ghcr
    ///   larder source add composer https://packages.example.org --credential shop --only 'shop/*'
    ///
    ///   larder source add github 'acme/*' --credential forge
    ///   larder source add gitlab 'acme/**' --api https://git.example.org/api/v4
    ///
    /// The tags and branches of a Git repository become versions. Of a forge (github,
    /// gitlab, bitbucket, gitea) every repository that holds packages becomes a source
    /// of its own; new ones, archived ones and renamed ones are noticed. What another
    /// registry has is fetched when a client first asks for it, and kept.
    ///
    /// Next: `larder source sync NAME` for a Git repository, unless a server runs: it
    /// begins at once; for a forge it is the same. Another registry needs no sync; it is
    /// asked whether it answers, and if not, you are warned.
    #[command(verbatim_doc_comment, arg_required_else_help = true)]
    Add(AddSource),
    /// List sources and how they are; other registries in the order in which they are asked
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
    /// A running server does it, or else this command. Another registry is asked whether
    /// it answers, and everything of it again when a client next wants it. Ends with 1 if
    /// it failed.
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
    /// Give another registry its place in the order in which they are asked for a package
    ///
    ///   larder source move shop --first
    ///   larder source move shop --before public
    ///
    /// The first one that has a package is where it comes from, from then on: what came
    /// before stays where it came from.
    #[command(verbatim_doc_comment)]
    Move(MoveSource),
    /// Change a source that is there, without losing what it has brought
    ///
    ///   larder source set lib --every 5m
    ///   larder source set shop --credential shop-2027
    ///   larder source set lib --url https://git.example.org/acme/library.git
    ///
    /// What is not named stays. A credential goes to one host: whoever changes the host
    /// names a credential again, or --no-credential. What packages are called here
    /// (--name, --prefix, --packages) cannot be changed: remove the source, and add it
    /// again. A running server acts on it within a second.
    #[command(verbatim_doc_comment)]
    Set(SetSource),
    /// Take a source away with all its packages
    ///
    /// A forge goes with the repositories that it found, or without them, as you say.
    /// Another registry of which files are kept goes with --yes alone, because lock
    /// files may depend on them.
    #[command(verbatim_doc_comment)]
    Remove {
        /// Its name or its id
        name: String,
        /// Of a forge: the repositories that it found as well, with all their packages
        #[arg(long)]
        with_repositories: bool,
        /// Of a forge: keep them, as sources of their own
        #[arg(long, conflicts_with = "with_repositories")]
        keep_repositories: bool,
        /// Of another registry: the files that are kept as well
        #[arg(long)]
        yes: bool,
    },
}

/// `larder source add`.
#[derive(Debug, Args)]
pub struct AddSource {
    /// git; a forge: github, gitlab, bitbucket, gitea; or the format of another registry: composer, oci
    #[arg(value_name = "git|FORGE|FORMAT")]
    pub kind: String,
    /// https://host/path.git, ssh://git@host/path.git or git@host:path.git; of a registry https://host; of a forge
    /// OWNER/PATTERN: 'acme/*', 'acme/lib-*', with groups in groups 'acme/**'
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
    /// The folders that are packages, such as 'packages/*' or 'src/**/*-bundle', and . for the root; several times for
    /// several patterns. * stands for one folder, ** for any number of them, 8 deep at most [default: .]
    #[arg(long, value_name = "FOLDERS", help_heading = GIT)]
    pub packages: Vec<FolderPattern>,
    /// Do not tell clients where the repositories are that packages are made from
    #[arg(long)]
    pub hide_source: bool,
    /// Where the API of the forge is, such as https://git.example.org/api/v3 [default: that of the forge's own site]
    #[arg(long, value_name = "URL", help_heading = FORGE)]
    pub api: Option<String>,
    /// How often to ask the forge for its repositories [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = FORGE)]
    pub list_every: Option<Duration>,
    /// Tell them [default: unless another registry needs a credential]
    #[arg(long, conflicts_with = "hide_source")]
    pub show_source: bool,
    /// Only packages whose names there match, such as 'library/*'; several times for several patterns
    #[arg(long, value_name = "PATTERN", help_heading = REGISTRY)]
    pub only: Vec<Pattern>,
    /// How long an answer is good before it is asked for again [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = REGISTRY)]
    pub fresh: Option<Duration>,
    /// Have its packages under P/NAME here
    #[arg(long, value_name = "P", help_heading = REGISTRY)]
    pub prefix: Option<String>,
    /// Where clients fetch the files of its packages [default: here]
    #[arg(long, value_enum, help_heading = REGISTRY)]
    pub dists: Option<Dists>,
}

/// `larder source set`.
#[derive(Debug, Args)]
#[command(override_usage = "larder source set <NAME> <OPTIONS>")]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args([
    "url", "credential", "no_credential", "hide_source", "show_source", "every", "keep", "moved_tags", "list_every", "only",
    "every_name", "fresh", "dists",
])))]
#[expect(clippy::struct_excessive_bools, reason = "each one is a flag that people know")]
pub struct SetSource {
    /// Its name or its id
    pub name: String,
    /// Where it is from now on, if it has moved
    #[arg(long)]
    pub url: Option<String>,
    /// The credential that opens it
    #[arg(long, value_name = "C", conflicts_with = "no_credential")]
    pub credential: Option<String>,
    /// It opens without a credential
    #[arg(long)]
    pub no_credential: bool,
    /// Do not tell clients where the sources of its packages are
    #[arg(long, conflicts_with = "show_source")]
    pub hide_source: bool,
    /// Tell them
    #[arg(long)]
    pub show_source: bool,
    /// How often to look for changes
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = GIT)]
    pub every: Option<Duration>,
    /// How much of the repository to keep
    #[arg(long, value_enum, help_heading = GIT)]
    pub keep: Option<Keep>,
    /// What to do when the tag of a stable release moves
    #[arg(long, value_enum, help_heading = GIT)]
    pub moved_tags: Option<MovedTags>,
    /// How often to ask the forge for its repositories
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = FORGE)]
    pub list_every: Option<Duration>,
    /// Only packages whose names there match, in place of the patterns before; several times for several patterns
    #[arg(long, value_name = "PATTERN", conflicts_with = "every_name", help_heading = REGISTRY)]
    pub only: Vec<Pattern>,
    /// All packages, whatever they are called
    #[arg(long, help_heading = REGISTRY)]
    pub every_name: bool,
    /// How long an answer is good before it is asked for again
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = REGISTRY)]
    pub fresh: Option<Duration>,
    /// Where clients fetch the files of its packages
    #[arg(long, value_enum, help_heading = REGISTRY)]
    pub dists: Option<Dists>,
    /// With --url: packages that came from the other address come from this one
    #[arg(long, help_heading = REGISTRY)]
    pub yes: bool,
}

/// `larder source move`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("place").required(true).args(["before", "first", "last"])))]
pub struct MoveSource {
    /// Its name or its id
    pub name: String,
    /// Right before this one, by its name or its id
    #[arg(long, value_name = "OTHER")]
    pub before: Option<String>,
    /// Before all others
    #[arg(long)]
    pub first: bool,
    /// After all others
    #[arg(long)]
    pub last: bool,
}

/// The headings of options that only one kind of source knows.
const GIT: &str = "Of Git repositories, and of those of a forge";
const FORGE: &str = "Of forges";
const REGISTRY: &str = "Of other registries";

/// Where clients fetch files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dists {
    /// From here, where they are kept once somebody fetched them
    Here,
    /// Where the other registry says that they are; nothing is kept
    Upstream,
}

impl Dists {
    /// Its word in the settings of a source.
    pub fn word(self) -> registry::Dists {
        match self {
            Self::Here => registry::Dists::Here,
            Self::Upstream => registry::Dists::Upstream,
        }
    }
}

/// How much of a Git repository is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Keep {
    /// The files of every version, fetched when first needed
    Light,
    /// Everything, so that old versions can be built when the Git host is gone
    Full,
}

impl Keep {
    /// Its word in the settings of a source.
    pub fn word(self) -> KeepWord {
        match self {
            Self::Light => KeepWord::Light,
            Self::Full => KeepWord::Full,
        }
    }
}

/// What happens when a tag of a stable release moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MovedTags {
    /// The release stays what it was
    Freeze,
    /// The release follows its tag
    Follow,
}

impl MovedTags {
    /// Its word in the settings of a source.
    pub fn word(self) -> MovedTagsWord {
        match self {
            Self::Freeze => MovedTagsWord::Freeze,
            Self::Follow => MovedTagsWord::Follow,
        }
    }
}
