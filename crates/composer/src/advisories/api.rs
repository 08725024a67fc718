//! The address that clients and other registries ask for advisories: `composer audit` posts the names of a project
//! (`packages[0]=v/p&packages[1]=…`), and who follows asks for all that changed (`?updatedSince=SECONDS`). Nobody is told
//! of a package that it may not read.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use larder_auth::{Decision, decide};
use larder_core::{
    Error, Kind, Result, Time,
    grant::{Action, Principal},
};
use larder_db::Db;
use larder_http::{Query, Request, Response, error::method_not_allowed};
use serde_json::{Map, Value, json};

use super::{Advisory, board};
use crate::ID;

/// Its path.
pub const API: &str = "/api/security-advisories/";

/// The largest body, in bytes: some ten thousand names.
const LIMIT: usize = 1024 * 1024;

/// About how many packages one question may be: no project has so many.
const PACKAGES: usize = 5_000;

/// How many advisories one answer has.
const ADVISORIES: usize = 100_000;

/// How many packages are read at once.
const PAGE: i64 = 500;

/// Answers a question.
pub async fn answer(db: &Db, request: &mut Request, asker: &Principal) -> Result<Response> {
    let post = request.method == Method::POST;
    if !post && !request.reads() {
        return Ok(method_not_allowed("GET, HEAD, POST"));
    }
    let body = if post { request.body.read_all(LIMIT).await? } else { Vec::new().into() };
    let body = std::str::from_utf8(&body).map_err(|_| Error::invalid("this is not a form: it is not text"))?;
    let mut question = Asked::default();
    question.read(request.query()?)?;
    question.read(Query::parse(body)?)?;
    let found = match question.since {
        Some(since) => changed(db, since, asker).await?,
        None if question.names.is_empty() => {
            return Err(Error::invalid(
                "say which packages: send packages[]=vendor/name for each, or updatedSince=SECONDS",
            ));
        }
        None => told(db, &question.names, asker).await?,
    };
    let found: Map<String, Value> =
        found.into_iter().map(|(name, advisories)| (name, advisories.iter().map(Advisory::full).collect())).collect();
    Ok(Response::json(StatusCode::OK, &json!({ "advisories": found })))
}

/// What a question is about.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    names: Vec<String>,
    since: Option<Time>,
}

impl Asked {
    /// Reads a form.
    fn read(&mut self, form: Query<'_>) -> Result<()> {
        for (field, value) in form.pairs() {
            if field == "updatedSince" {
                let seconds = value.parse::<i64>().ok().filter(|seconds| *seconds >= 0);
                let seconds =
                    seconds.ok_or_else(|| Error::invalid("updatedSince is a number of seconds since 1970"))?;
                self.since = Some(Time::from_seconds(seconds));
            } else if field == "packages" || field.starts_with("packages[") {
                self.names.push(value.to_ascii_lowercase());
            }
            if self.names.len() > PACKAGES {
                return Err(Error::new(Kind::TooLarge, format!("ask for at most {PACKAGES} packages at once")));
            }
        }
        Ok(())
    }
}

fn may_read(asker: &Principal, name: &str) -> bool {
    decide(asker, Action::Read, ID, name) == Decision::Allow
}

async fn told(db: &Db, names: &[String], asker: &Principal) -> Result<BTreeMap<String, Vec<Advisory>>> {
    let mut names: Vec<&str> = names.iter().map(String::as_str).filter(|name| may_read(asker, name)).collect();
    names.sort_unstable();
    names.dedup();
    board::of_packages(db, &names).await
}

async fn changed(db: &Db, since: Time, asker: &Principal) -> Result<BTreeMap<String, Vec<Advisory>>> {
    let (mut all, mut count, mut after) = (BTreeMap::new(), 0, String::new());
    loop {
        let page = board::list(db, &after, since, PAGE).await?;
        let Some(last) = page.keys().next_back() else { return Ok(all) };
        after.clone_from(last);
        for (name, advisories) in page.into_iter().filter(|(name, _)| may_read(asker, name)) {
            count += advisories.len();
            all.insert(name, advisories);
        }
        if count > ADVISORIES {
            let text = format!("more than {ADVISORIES} advisories have changed since then: ask for a later time");
            return Err(Error::new(Kind::TooLarge, text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Asked> {
        let mut asked = Asked::default();
        asked.read(Query::parse(text)?)?;
        Ok(asked)
    }

    #[test]
    fn forms_as_clients_send_them() {
        let names = |text: &str| asked(text).unwrap().names;
        assert_eq!(names("packages%5B0%5D=Acme%2Flib&packages%5B1%5D=acme%2Fapp&x=1"), ["acme/lib", "acme/app"]);
        assert_eq!(names("packages[]=a/b"), ["a/b"]);
        assert_eq!(asked("updatedSince=1700000000").unwrap().since, Some(Time::from_seconds(1_700_000_000)));
        assert!(asked("updatedSince=yesterday").is_err() && asked("updatedSince=-1").is_err());
        assert!(asked(&"packages[]=a/b&".repeat(PACKAGES)).is_ok());
        assert_eq!(asked(&"packages[]=a/b&".repeat(PACKAGES + 1)).unwrap_err().kind(), Kind::TooLarge);
    }
}
