//! `larder composer`: policies and blocks of PHP packages.

use anyhow::Result;
use larder_composer::policy::{
    Abandoned, Block, Rules,
    rules::{block, set, unblock},
};
use larder_composer::versions::Versions;
use larder_sources::policies::Book;
use serde_json::json;

use super::{Desk, print_policies};
use crate::cli::{ComposerCommand, ComposerPolicy, ComposerPolicySet};

pub async fn run(desk: &Desk, command: ComposerCommand) -> Result<()> {
    let book = Book::<Rules>::new(desk.house.db.clone());
    match command {
        ComposerCommand::Policy(ComposerPolicy::Set(order)) => set_policy(desk, &book, order).await,
        ComposerCommand::Policy(ComposerPolicy::List) => policies(desk, &book).await,
        ComposerCommand::Policy(ComposerPolicy::Remove { pattern }) => {
            let rules = book.remove(&desk.actor, &pattern).await?;
            let document = json!({ "pattern": pattern, "rules": rules, "removed": true });
            Ok(desk.out.either(&document, format!("The policy for {pattern} is gone: {}.", words(&rules)))?)
        }
        ComposerCommand::Block { pattern, versions, reason, url, malware } => {
            let order = Block { versions, reason, url, malware };
            block(&book, &desk.actor, &pattern, &order).await?;
            let document = json!({ "pattern": pattern, "block": order });
            desk.out.either(&document, format!("{pattern} {} is blocked: {}", order.versions, order.reason))?;
            desk.out.hint(format!("`larder composer unblock '{pattern}' '{}'` takes that back.", order.versions));
            Ok(())
        }
        ComposerCommand::Unblock { pattern, versions } => {
            unblock(&book, &desk.actor, &pattern, versions.as_ref()).await?;
            let document = json!({ "pattern": pattern, "versions": versions, "unblocked": true });
            let which = versions.map_or_else(|| "all versions".to_owned(), |versions| format!("versions {versions}"));
            Ok(desk.out.either(&document, format!("The block of {which} of {pattern} is gone."))?)
        }
    }
}

async fn set_policy(desk: &Desk, book: &Book<Rules>, order: ComposerPolicySet) -> Result<()> {
    let rules = Rules {
        block: None,
        min_age: order.min_age,
        exempt: (!order.exempt.is_empty()).then_some(order.exempt),
        block_advisories: order.block_advisories,
        abandoned: order.abandoned,
    };
    set(book, &desk.actor, &order.pattern, &rules).await?;
    let document = json!({ "pattern": order.pattern, "rules": rules });
    desk.out.either(&document, format!("{}: {}", order.pattern, words(&rules)))?;
    desk.out.hint("`larder explain composer NAME` says of each version what holds for it.");
    Ok(())
}

async fn policies(desk: &Desk, book: &Book<Rules>) -> Result<()> {
    print_policies(
        desk,
        book.all().await?.iter(),
        words,
        "There are no policies: every version is offered as soon as it is here. \
         `larder composer policy set PATTERN …` makes one, `larder composer block NAME …` blocks versions.",
    )
}

/// Rules, for people.
fn words(rules: &Rules) -> String {
    let mut words = Vec::new();
    for block in rules.block.iter().flatten() {
        let kind = if block.malware { "blocked as malware" } else { "blocked" };
        words.push(format!("{} {kind}: {}", block.versions, block.reason));
    }
    if let Some(age) = rules.min_age {
        words.push(format!("releases of other registries must be {age} old"));
    }
    if let Some(exempt) = &rules.exempt {
        let exempt: Vec<&str> = exempt.iter().map(Versions::as_str).collect();
        words.push(format!("but not {}", exempt.join(", ")));
    }
    if let Some(floor) = rules.block_advisories {
        words.push(match floor.as_str() {
            "off" => "vulnerable versions are offered".to_owned(),
            floor => format!("versions with advisories from {floor} on are kept back"),
        });
    }
    match &rules.abandoned {
        Some(Abandoned::Is(true)) => words.push("abandoned".to_owned()),
        Some(Abandoned::Is(false)) => words.push("not abandoned".to_owned()),
        Some(Abandoned::For(name)) => words.push(format!("abandoned for {name}")),
        None => {}
    }
    words.join("; ")
}
