//! One file per family of commands. A command reads its arguments, calls one operation of a crate below, and prints
//! what came of it.

mod add;
mod advisory;
mod audit;
mod composer;
mod credential;
mod doctor;
mod explain;
mod forge;
mod fsck;
mod gc;
mod grant;
mod lock;
mod oci;
mod package;
mod probe;
mod publish;
mod reserve;
mod set;
mod source;
mod sync;
mod token;
mod webhook;

use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _},
    path::Path,
};

use anyhow::{Result, bail};
use larder_audit::Actor;
use larder_core::{grant::Grant, pattern::Pattern};
use serde::Serialize;
use serde_json::json;

use crate::{
    cli::{Cli, Command, Global, Serve},
    config::{Config, Flags},
    environment,
    house::House,
    log,
    output::{Output, Table, complain},
    serve,
};

/// What a command works with.
pub struct Desk {
    /// The open house.
    pub house: House,
    /// How to speak.
    pub out: Output,
    /// Who makes the changes.
    pub actor: Actor,
}

/// Runs one command.
pub async fn run(cli: Cli) -> Result<()> {
    let out = Output::new(cli.global.json);
    let loaded = match &cli.command {
        Command::Serve(serve) => configure(&cli.global, serve),
        _ => configure(&cli.global, &Serve::default()),
    };
    if let Command::Doctor = cli.command {
        return doctor::run(loaded, out).await;
    }
    let config = loaded?;
    if let Command::Serve(_) = cli.command {
        log::begin(&config.log, config.log_format)?;
        return serve::run(config).await;
    }
    if let Some(filter) = environment("LARDER_LOG").filter(|filter| !filter.is_empty()) {
        log::begin(&filter, config.log_format)?;
    }
    let database = config.database_url.expose().strip_prefix("sqlite:").map(str::to_owned);
    let new = database.filter(|path| !Path::new(path.strip_prefix("//").unwrap_or(path)).exists());
    let desk = Desk { house: House::open(config).await?, out, actor: Actor::command_line() };
    if let Some(path) = new {
        complain(format!(
            "There was no registry at {path}: a new one was made there, and it is empty. If you mean another one, name its \
             folder with --data or LARDER_DATA."
        ));
    }
    match cli.command {
        Command::Token(command) => token::run(&desk, command).await,
        Command::Grant(command) => grant::run(&desk, command).await,
        Command::Credential(command) => credential::run(&desk, command).await,
        Command::Source(command) => source::run(&desk, command).await,
        Command::Package(command) => package::run(&desk, command).await,
        Command::Lock(command) => lock::run(&desk, command).await,
        Command::Reserve(command) => reserve::run(&desk, command).await,
        Command::Explain(wanted) => explain::run(&desk, wanted).await,
        Command::Audit(command) => audit::run(&desk, command).await,
        Command::Advisory(command) => advisory::run(&desk, command).await,
        Command::Composer(command) => composer::run(&desk, command).await,
        Command::Oci(command) => oci::run(&desk, command).await,
        Command::Gc { dry_run, explain: None } => gc::run(&desk, dry_run).await,
        Command::Gc { explain: Some(about), .. } => gc::explain(&desk, about).await,
        Command::Fsck => fsck::run(&desk).await,
        Command::Serve(_) | Command::Doctor => Ok(()),
    }
}

/// The configuration in force: what the flags say over everything else.
fn configure(global: &Global, serve: &Serve) -> Result<Config> {
    let data = global.data.as_ref().map(|data| data.to_string_lossy().into_owned());
    let given = [("data", data), ("listen", serve.listen.clone()), ("public_url", serve.public_url.clone())];
    let flags: Flags = given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    Config::load(&flags, global.config.as_deref(), &environment)
}

/// Prints the policies of a format: each pattern with its rules in `words`, or `none`.
fn print_policies<'p, R: Serialize + 'p>(
    desk: &Desk,
    policies: impl Iterator<Item = &'p (Pattern, R)>,
    words: fn(&R) -> String,
    none: &str,
) -> Result<()> {
    if desk.out.wants_json() {
        let all: Vec<_> = policies.map(|(pattern, rules)| json!({ "pattern": pattern, "rules": rules })).collect();
        return Ok(desk.out.document(&all)?);
    }
    let mut table = Table::new(["PATTERN", "RULES"]);
    for (pattern, rules) in policies {
        table.row([pattern.to_string(), words(rules)]);
    }
    if table.is_empty() {
        return Ok(desk.out.line(none)?);
    }
    Ok(table.print(desk.out)?)
}

impl Desk {
    /// The URL under which clients reach the server of this house.
    fn public_url(&self) -> String {
        let Config { public_url, listen, .. } = &self.house.config;
        public_url.clone().unwrap_or_else(|| format!("http://{listen}"))
    }

    /// Has a person at a terminal type `yes`; nobody else does.
    fn confirms(what: &str) -> Result<bool> {
        if !io::stdin().is_terminal() {
            return Ok(false);
        }
        complain(format!("{what} Type yes to go on:"));
        let mut answer = String::new();
        io::stdin().lock().take(100).read_line(&mut answer)?;
        Ok(answer.trim().eq_ignore_ascii_case("yes"))
    }

    /// Refuses a format that this program does not know: whoever mistypes one would wait for packages for ever.
    fn check_format(&self, id: &str) -> Result<()> {
        let known: Vec<_> = self.house.sources.formats().iter().map(|format| format.id()).collect();
        if !known.contains(&id) {
            bail!("there is no format `{id}` in this version: write {}", known.join(" or "));
        }
        Ok(())
    }

    /// [`check_format`](Self::check_format) of what grants are about.
    fn check_grants(&self, grants: &[Grant]) -> Result<()> {
        grants.iter().filter_map(|grant| grant.format.as_deref()).try_for_each(|format| self.check_format(format))
    }
}
