//! `larder token`: create, list, revoke, rotate.

use std::{
    collections::HashMap,
    io::{self, Write as _},
};

use anyhow::Result;
use larder_auth::{Secret, grants, tokens};
use larder_core::{
    Time,
    grant::{Grant, PrincipalName},
};
use larder_db::tokens::Token;
use serde_json::json;

use super::{Desk, grant::every_grant};
use crate::{
    cli::TokenCommand,
    output::{Table, when_or},
};

/// How many tokens are read at once.
const PAGE: u32 = 500;

pub async fn run(desk: &Desk, command: TokenCommand) -> Result<()> {
    let (db, actor) = (&desk.house.db, &desk.actor);
    match command {
        TokenCommand::Create { name, allow, expires } => {
            desk.check_grants(&allow)?;
            let allow = if allow.is_empty() { vec![Grant::read_everything()] } else { allow };
            let (token, secret) = tokens::create(db, actor, &name, &allow, expires).await?;
            print_secret(desk, &token, &secret, &allow)?;
            hint_use(desk);
        }
        TokenCommand::List => list(desk).await?,
        TokenCommand::Revoke { token } => {
            let token = tokens::revoke(db, actor, &token).await?;
            let document =
                json!({ "id": token.id, "name": token.name, "revoked_at": token.revoked_at.map(Time::rfc3339) });
            desk.out.either(
                &document,
                format!("The token `{}` is revoked; nobody gets in with it any more.", token.name),
            )?;
        }
        TokenCommand::Rotate { token } => {
            let (token, secret) = tokens::rotate(db, actor, &token).await?;
            let allow = grants::of(db, &PrincipalName::Token(token.name.clone())).await?;
            print_secret(desk, &token, &secret, &allow)?;
            desk.out
                .hint("The old secret is dead. The new one is shown only now: give it to whoever used the old one.");
        }
    }
    Ok(())
}

/// The secret alone, so that a script can take standard output as it is.
fn print_secret(desk: &Desk, token: &Token, secret: &Secret, allow: &[Grant]) -> Result<()> {
    if desk.out.wants_json() {
        let mut document = describe(token, allow, desk.house.host.now());
        document["secret"] = secret.reveal().into();
        return Ok(desk.out.document(&document)?);
    }
    Ok(writeln!(io::stdout().lock(), "{}", secret.reveal())?)
}

fn hint_use(desk: &Desk) {
    desk.out.hint("\nThis is shown only now. Clients send it as password, with any user name, or as bearer token.");
    let url = desk.public_url();
    for format in desk.house.sources.formats() {
        let snippet = format.install_snippet(&url, "NAME");
        desk.out.hint(format!("\n{}:\n  {}", format.title(), snippet.replace('\n', "\n  ")));
    }
}

async fn list(desk: &Desk) -> Result<()> {
    let now = desk.house.host.now();
    let mut allowed: HashMap<String, Vec<Grant>> = HashMap::new();
    for (principal, grant) in every_grant(desk).await? {
        if let PrincipalName::Token(name) = principal {
            allowed.entry(name).or_default().push(grant);
        }
    }
    let mut all: Vec<Token> = Vec::new();
    loop {
        let after = all.last().map_or("", |token| token.name.as_str());
        let page = tokens::list(&desk.house.db, after, PAGE).await?;
        let is_last = page.len() < PAGE as usize;
        all.extend(page);
        if is_last {
            break;
        }
    }
    let grants_of = |token: &Token| allowed.get(&token.name).map(Vec::as_slice).unwrap_or_default();
    if desk.out.wants_json() {
        let documents: Vec<_> = all.iter().map(|token| describe(token, grants_of(token), now)).collect();
        return Ok(desk.out.document(&documents)?);
    }
    if all.is_empty() {
        return Ok(desk.out.line("There are no tokens yet: `larder token create NAME` makes one.")?);
    }
    let mut table = Table::new(["NAME", "STATE", "EXPIRES", "LAST USED", "GRANTS", "ID"]);
    for token in &all {
        table.row([
            token.name.clone(),
            state(token, now).to_owned(),
            when_or(token.expires_at, "never"),
            when_or(token.used_at, "never"),
            texts(grants_of(token)).join(" "),
            token.id.to_string(),
        ]);
    }
    Ok(table.print(desk.out)?)
}

fn describe(token: &Token, allow: &[Grant], now: Time) -> serde_json::Value {
    json!({
        "id": token.id,
        "name": token.name,
        "state": state(token, now),
        "created_at": token.created_at.rfc3339(),
        "expires_at": token.expires_at.map(Time::rfc3339),
        "used_at": token.used_at.map(Time::rfc3339),
        "grants": texts(allow),
    })
}

fn state(token: &Token, now: Time) -> &'static str {
    match token {
        Token { revoked_at: Some(_), .. } => "revoked",
        Token { expires_at: Some(expires_at), .. } if *expires_at <= now => "expired",
        _ => "active",
    }
}

fn texts(grants: &[Grant]) -> Vec<String> {
    grants.iter().map(ToString::to_string).collect()
}
