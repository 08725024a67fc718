//! `larder explain`: where a package comes from, and for each of its versions whether clients get it, and why not. The
//! verdicts are those that metadata and downloads go by.

use anyhow::{Result, bail};
use larder_auth::{Decision, decide, grants, tokens};
use larder_composer::{
    ID,
    offers::{Offer, Offers, Part},
    policy::Verdict,
    upstream::Looked,
};
use larder_core::{
    Time,
    grant::{Action, Principal, PrincipalName},
};
use larder_db::sources;
use larder_sources::reservations::Reservations;
use serde_json::{Value, json};

use super::Desk;
use crate::{
    cli::ExplainPackage,
    formats,
    output::{Table, when_or},
};

/// How many tokens are looked through at once.
const PAGE: u32 = 500;

pub async fn run(desk: &Desk, wanted: ExplainPackage) -> Result<()> {
    desk.check_format(&wanted.format)?;
    if wanted.format != ID {
        bail!("packages of the format `{}` cannot be explained in this version: write {ID}", wanted.format);
    }
    let house = &desk.house;
    let name = house.sources.format(ID).map_or(Ok(wanted.name.clone()), |format| format.package_name(&wanted.name))?;
    let sight = match &wanted.token {
        Some(token) => Some(sight(desk, token, &name).await?),
        None => None,
    };
    let (repository, _) = formats::repository(house, formats::fetch(house)?, &desk.public_url());
    let mut troubles = Vec::new();
    for dev in [false, true] {
        if wanted.offline {
            break;
        }
        match repository.proxy.look(&name, dev).await {
            Ok(Looked::Stale { why }) => troubles.push(why),
            Ok(_) => {}
            Err(error) => troubles.push(error.message().to_owned()),
        }
    }
    troubles.dedup();
    let reserved = Reservations::new(house.db.clone()).is_reserved(ID, &name).await?;
    let Some(package) = repository.find(&name).await? else {
        return nothing(desk, &name, reserved, &troubles, sight.as_ref());
    };
    let source = match package.source_id {
        Some(id) => sources::find(&house.db, &id.to_string()).await?,
        None => None,
    };
    let origin = source.map_or_else(
        || "was published here".to_owned(),
        |source| format!("comes from the source `{}` ({}, {})", source.name, source.kind, source.url),
    );
    let mut offers = repository.offers(package, Part::All).await?;
    if let Some(version) = &wanted.version {
        offers.versions.retain(|offer| is_called(offer, version));
    }
    if desk.out.wants_json() {
        let versions: Vec<Value> = offers.versions.iter().map(document).collect();
        let document = json!({
            "format": ID, "name": name, "origin": origin, "reserved": reserved, "troubles": troubles,
            "token": sight.map(|sight| json!({"name": sight.name.to_string(), "reads": sight.reads})),
            "advisories": offers.advisories.len(), "versions": versions,
        });
        return Ok(desk.out.document(&document)?);
    }
    desk.out.line(format!("{name} {origin}."))?;
    if reserved {
        desk.out.line("Its name is reserved: no other registry is asked for it.")?;
    }
    for why in &troubles {
        desk.out.line(format!("What follows may be outdated ({why})."))?;
    }
    if let Some(sight) = &sight {
        desk.out.line(sight.sentence(&name))?;
    }
    table(desk, &offers, wanted.version.as_deref())
}

/// What a token lets somebody see of the package.
struct Sight {
    name: PrincipalName,
    reads: bool,
    grants: Vec<String>,
}

impl Sight {
    fn sentence(&self, package: &str) -> String {
        if self.reads {
            return format!("{} may read it.", self.name);
        }
        let grants = if self.grants.is_empty() { "nothing".to_owned() } else { self.grants.join(", ") };
        format!(
            "{} may not read it, and is answered as if none of it were there. It may: {grants}. To change that: larder grant add {} 'read:{ID}:{package}'",
            self.name, self.name
        )
    }
}

async fn sight(desk: &Desk, token: &str, package: &str) -> Result<Sight> {
    let db = &desk.house.db;
    let mut after = String::new();
    let found = loop {
        let page = tokens::list(db, &after, PAGE).await?;
        let Some(last) = page.last() else {
            bail!("there is no token `{token}`: `larder token list` shows all");
        };
        after.clone_from(&last.name);
        if let Some(found) = page.into_iter().find(|known| known.name == token || known.id.to_string() == token) {
            break found;
        }
    };
    let id = found.id;
    let name = PrincipalName::Token(found.name);
    let grants = grants::of(db, &name).await?;
    let texts = grants.iter().map(ToString::to_string).collect();
    let principal =
        Principal { name: name.clone(), token: Some(id), token_made_at: None, grants, limited: false, behind: None };
    let reads = decide(&principal, Action::Read, ID, package) == Decision::Allow;
    Ok(Sight { name, reads, grants: texts })
}

fn nothing(desk: &Desk, name: &str, reserved: bool, troubles: &[String], sight: Option<&Sight>) -> Result<()> {
    let why = match (reserved, troubles.first()) {
        (true, _) => "its name is reserved, and nobody has brought it yet".to_owned(),
        (_, Some(trouble)) => trouble.clone(),
        _ => "no source has brought it, and no other registry that was asked has it".to_owned(),
    };
    let document = json!({
        "format": ID, "name": name, "reserved": reserved, "troubles": troubles, "versions": [],
        "token": sight.map(|sight| json!({"name": sight.name.to_string(), "reads": sight.reads})),
    });
    desk.out.document(&document)?;
    if reserved {
        desk.out.line("Its name is reserved: no other registry is asked for it.")?;
    }
    if let Some(sight) = sight {
        desk.out.line(sight.sentence(name))?;
    }
    bail!("there is no package {name} here: {why}")
}

fn is_called(offer: &Offer, version: &str) -> bool {
    let bare = |text: &str| text.strip_prefix('v').unwrap_or(text).to_owned();
    offer.version.normalized() == version || bare(offer.version.pretty()) == bare(version)
}

fn document(offer: &Offer) -> Value {
    let (by, until) = match &offer.verdict {
        Verdict::Visible => (None, None),
        Verdict::Blocked { by, .. } => (Some(by), None),
        Verdict::TooYoung { until, by } => (Some(by), Some(until.rfc3339())),
    };
    json!({
        "version": offer.version.pretty(), "normalized": offer.version.normalized(), "reference": offer.reference,
        "released_at": offer.released.map(Time::rfc3339), "visible": offer.verdict.is_visible(),
        "why": offer.verdict.because(), "by": by, "until": until, "stored": offer.sha1.is_some(),
    })
}

fn table(desk: &Desk, offers: &Offers, wanted: Option<&str>) -> Result<()> {
    if offers.versions.is_empty() {
        let what = wanted.map_or_else(|| "no version".to_owned(), |version| format!("no version `{version}`"));
        return Ok(desk.out.line(format!("It has {what} that anybody tells of."))?);
    }
    let mut table = Table::new(["VERSION", "RELEASED", "STORED", "VISIBLE", "WHY"]);
    for offer in &offers.versions {
        let (visible, why) = match &offer.verdict {
            Verdict::Visible => ("yes", String::new()),
            Verdict::Blocked { by, .. } | Verdict::TooYoung { by, .. } => {
                ("no", format!("it {} [{by}]", offer.verdict.because().unwrap_or_default()))
            }
        };
        table.row([
            offer.version.pretty().to_owned(),
            when_or(offer.released, "unknown"),
            if offer.sha1.is_some() { "yes" } else { "no" }.to_owned(),
            visible.to_owned(),
            why,
        ]);
    }
    Ok(table.print(desk.out)?)
}
