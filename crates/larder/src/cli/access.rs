//! Who comes in, what they may do, and the secrets with which Larder goes out.

#![expect(clippy::doc_markdown, reason = "these comments are help texts, which are printed as they are")]

use std::time::Duration;

use clap::{Args, Subcommand};
use larder_core::{
    grant::{Grant, PrincipalName},
    time::parse_duration,
};

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
    ///   larder token create builder --allow 'read,publish:oci:acme/**'
    ///   SECRET=$(larder token create deploy)
    ///
    /// A grant is ACTIONS:FORMAT:PATTERN.
    ///   ACTIONS  read, publish, delete with commas between, or *
    ///   FORMAT   composer, oci, or *
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
        #[arg(long, value_parser = ["basic", "bearer", "github", "gitlab", "bitbucket", "gitea", "ssh", "header"])]
        kind: String,
        /// The user name that goes with it, or the name of the header; the kinds of forges know their own
        #[arg(long, value_name = "U")]
        username: Option<String>,
        /// The one host (HOST or HOST:PORT) that it may be sent to
        #[arg(long)]
        host: Option<String>,
    },
    /// List credentials, never their secrets
    List,
    /// Give a credential another secret, read from standard input; sources keep using it
    ///
    ///   larder credential rotate forge < token.txt
    ///
    /// The old secret is forgotten. Its kind stays, and the one host that it is sent to.
    ///
    /// Next: `larder credential test NAME`.
    #[command(verbatim_doc_comment)]
    Rotate {
        /// Its name or its id
        name: String,
        /// The user name that goes with it from now on, or the name of the header [default: the one before]
        #[arg(long, value_name = "U")]
        username: Option<String>,
    },
    /// Ask a forge what its credential may do and until when, and reach every source that uses it
    ///
    /// Ends with 1 if one of them cannot be reached with it, or does not take it.
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
