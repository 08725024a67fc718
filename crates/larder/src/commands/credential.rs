//! `larder credential`: add, list, test, remove.

use std::io::{self, IsTerminal as _, Read as _};

use anyhow::{Context as _, Result, bail};
use larder_core::Time;
use larder_db::{
    credentials::{self as rows, Credential},
    sources::{self, Source},
};
use larder_sources::{
    credentials::{self, NewCredential},
    forges::ForgeKind,
    manage::GIT,
};
use serde_json::{Value, json};

use super::Desk;
use crate::{
    cli::CredentialCommand,
    formats,
    output::{Table, complain, counted, when},
};

/// More than a secret can have; what comes after it is not read.
const MOST: u64 = 128 * 1024;

pub async fn run(desk: &Desk, command: CredentialCommand) -> Result<()> {
    let (house, actor) = (&desk.house, &desk.actor);
    match command {
        CredentialCommand::Add { name, kind, username, host } => {
            let secret = read_secret()?;
            let new = NewCredential { name: &name, kind: &kind, username: username.as_deref(), host: host.as_deref() };
            let credential = credentials::add(&house.db, &house.vault, actor, new, &secret).await?;
            desk.out.either(&describe(&credential, &[]), format!("The credential `{name}` is kept, sealed."))?;
            desk.out.hint(format!("Next: larder source add git URL --credential {name}"));
        }
        CredentialCommand::Rotate { name, username } => {
            let secret = read_secret()?;
            let rotated =
                credentials::rotate(&house.db, &house.vault, actor, &name, username.as_deref(), &secret).await?;
            let users = users(&rotated, &sources::list(&house.db).await?);
            let of = if users.is_empty() { String::new() } else { format!("; it opens {}", users.join(", ")) };
            desk.out.either(
                &describe(&rotated, &users),
                format!("The credential `{}` has another secret, sealed{of}.", rotated.name),
            )?;
            desk.out.hint(format!("Next: larder credential test {}", rotated.name));
        }
        CredentialCommand::List => list(desk).await?,
        CredentialCommand::Test { name } => test(desk, &name).await?,
        CredentialCommand::Remove { name } => {
            let credential = credentials::remove(&house.db, actor, &name).await?;
            let document = json!({ "id": credential.id, "name": credential.name, "removed": true });
            desk.out.either(&document, format!("The credential `{}` is forgotten.", credential.name))?;
        }
    }
    Ok(())
}

/// The secret on standard input. A terminal is asked for it, on standard error.
fn read_secret() -> Result<String> {
    if io::stdin().is_terminal() {
        complain("Type or paste the secret, then press Enter and Ctrl-D (it is visible; `< FILE` is not):");
    }
    let mut secret = String::new();
    io::stdin()
        .lock()
        .take(MOST)
        .read_to_string(&mut secret)
        .context("the secret on standard input cannot be read: it must be text")?;
    Ok(secret)
}

async fn list(desk: &Desk) -> Result<()> {
    let all = rows::list(&desk.house.db).await?;
    let sources = sources::list(&desk.house.db).await?;
    if desk.out.wants_json() {
        let documents: Vec<_> = all.iter().map(|one| describe(one, &users(one, &sources))).collect();
        return Ok(desk.out.document(&documents)?);
    }
    if all.is_empty() {
        return Ok(desk
            .out
            .line("There are no credentials: public sources need none, and `larder credential add` keeps one.")?);
    }
    let mut table = Table::new(["NAME", "KIND", "USER NAME", "ONLY FOR HOST", "ADDED", "USED BY"]);
    for credential in &all {
        table.row([
            credential.name.clone(),
            credential.kind.clone(),
            credential.username.clone().unwrap_or_default(),
            credential.host.clone().unwrap_or_else(|| "(of its first source)".to_owned()),
            when(credential.created_at),
            users(credential, &sources).join(" "),
        ]);
    }
    Ok(table.print(desk.out)?)
}

/// What a forge says of its credential, and whether it takes it, if it could be asked; nothing for others.
async fn standing(desk: &Desk, credential: &Credential) -> Result<(Value, Option<bool>)> {
    let standing = match desk.house.forges.standing(credential).await {
        Ok(Some(standing)) => standing,
        Ok(None) => return Ok((Value::Null, Some(true))),
        Err(error) => {
            if !desk.out.wants_json() {
                desk.out.line(format!(
                    "its scopes and its end are not known, because the forge's API cannot be asked: {error}"
                ))?;
            }
            return Ok((json!({ "problem": error.message() }), None));
        }
    };
    if !desk.out.wants_json() {
        let whom = standing.account.as_deref().unwrap_or("not told");
        desk.out.line(format!("{}: stands for {whom}", standing.api))?;
        let scopes = standing.scopes.as_ref().map(|scopes| scopes.join(", "));
        desk.out.line(format!("  scopes      {}", scopes.as_deref().unwrap_or("the forge does not say")))?;
        let ends = standing.expires_at.map(Time::rfc3339);
        desk.out.line(format!("  expires     {}", ends.as_deref().unwrap_or("the forge does not say, or never")))?;
        if let Some(rate) = standing.rate {
            desk.out.line(format!("  rate limit  {} of {} questions left", rate.remaining, rate.limit))?;
        }
        for warning in &standing.warnings {
            desk.out.line(format!("  warning     {warning}"))?;
        }
    }
    let document = json!({
        "api": standing.api,
        "account": standing.account,
        "scopes": standing.scopes,
        "expires_at": standing.expires_at.map(Time::rfc3339),
        "rate_limit": standing.rate.map(|rate| json!({
            "limit": rate.limit, "remaining": rate.remaining, "reset_at": rate.reset().map(Time::rfc3339),
        })),
        "warnings": standing.warnings,
        "accepted": standing.accepted,
    });
    Ok((document, Some(standing.accepted)))
}

/// Asks the forge of a credential what it thinks of it, and reaches every source that uses it.
async fn test(desk: &Desk, name: &str) -> Result<()> {
    let house = &desk.house;
    let credential = credentials::find(&house.db, name).await?;
    credentials::check_seal(&house.vault, &credential)?;
    let sources = sources::list(&house.db).await?;
    let users: Vec<_> = sources.iter().filter(|source| source.credential_id == Some(credential.id)).collect();
    let (forge, accepted) = standing(desk, &credential).await?;
    let registries = formats::registries(house)?;
    let mut results = Vec::new();
    let (mut failed, mut is_reached) = (0, false);
    for source in &users {
        if ForgeKind::of(source).is_some() {
            // Asked above.
            continue;
        }
        if source.kind != GIT {
            let probed = registries.probe(source).await;
            if !desk.out.wants_json() {
                desk.out.line(format!("{}: {}", source.name, probed.sentence()))?;
            }
            failed += u64::from(probed.problem().is_some());
            is_reached |= probed.problem().is_none();
            let mut document = probed.document();
            document["source"] = source.name.as_str().into();
            document["url"] = source.url.as_str().into();
            results.push(document);
            continue;
        }
        let probed = house.sources.probe(source).await;
        let line = match &probed {
            Ok(refs) => format!("{}: reached, {refs} branches and tags", source.name),
            Err(error) => format!("{}: {error}", source.name),
        };
        if !desk.out.wants_json() {
            desk.out.line(line)?;
        }
        failed += u64::from(probed.is_err());
        is_reached |= probed.is_ok();
        results.push(json!({
            "source": source.name,
            "url": source.url,
            "refs": probed.as_ref().ok(),
            "problem": probed.as_ref().err().map(ToString::to_string),
        }));
    }
    if desk.out.wants_json() {
        desk.out.document(&json!({ "name": credential.name, "forge": forge, "sources": results }))?;
    } else if users.is_empty() && forge.is_null() {
        desk.out
            .line(format!("The credential `{name}` can be opened, but no source uses it yet: nothing was reached."))?;
    }
    if failed > 0 {
        bail!("{} cannot be reached with the credential `{name}`", counted(failed, "source"));
    }
    // Whoever was reached with it has taken it.
    match accepted {
        Some(false) => bail!("the forge does not take the credential `{name}`"),
        None if !is_reached => bail!("nobody was reached with the credential `{name}`"),
        _ => {}
    }
    Ok(())
}

fn users(credential: &Credential, sources: &[Source]) -> Vec<String> {
    let uses = |source: &&Source| source.credential_id == Some(credential.id);
    sources.iter().filter(uses).map(|source| source.name.clone()).collect()
}

fn describe(credential: &Credential, users: &[String]) -> Value {
    json!({
        "id": credential.id,
        "name": credential.name,
        "kind": credential.kind,
        "username": credential.username,
        "host": credential.host,
        "created_at": credential.created_at.rfc3339(),
        "sources": users,
    })
}
