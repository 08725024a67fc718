//! `downloads`: a client tells which packages it installed. Counted apart from downloads, because a client's own cache
//! hides those from us.

use std::collections::HashSet;

use http::StatusCode;
use larder_audit::{Download, Recorder};
use larder_auth::{Decision, decide};
use larder_core::{
    Error, Kind, Result,
    grant::{Action, Principal},
};
use larder_db::{Db, packages};
use larder_http::{Request, Response};
use serde::Deserialize;

use crate::ID;

/// The largest body, in bytes: some ten thousand packages.
const LIMIT: usize = 1024 * 1024;

/// How many packages one body may tell of: no project has so many, and each costs a question to the database.
const PACKAGES: usize = 5_000;

#[derive(Deserialize)]
struct Batch {
    downloads: Vec<Installed>,
}

#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Installed {
    name: String,
    version: String,
}

/// Counts what the asker may see and what is here; the rest comes from other repositories.
pub(crate) async fn notify(db: &Db, recorder: &Recorder, request: &mut Request, asker: &Principal) -> Result<Response> {
    let body = request.body.read_all(LIMIT).await?;
    let batch: Batch = serde_json::from_slice(&body)
        .map_err(|error| Error::invalid(format!("this is not a list of installed packages: {error}")))?;
    if batch.downloads.len() > PACKAGES {
        return Err(Error::new(
            Kind::TooLarge,
            format!("at most {PACKAGES} installed packages can be told of at once"),
        ));
    }
    let now = db.host().now();
    // One install is one install, however often a body says so.
    let told: HashSet<Installed> = batch.downloads.into_iter().collect();
    for Installed { name, version } in told {
        let name = name.to_ascii_lowercase();
        if decide(asker, Action::Read, ID, &name) == Decision::Allow
            && packages::has_version(db, ID, &name, &version).await?
        {
            recorder.count(&Download { format: ID, package: &name, version: &version, kind: "install" }, now);
        }
    }
    Ok(Response::json(StatusCode::OK, &serde_json::json!({"status": "success"})))
}
