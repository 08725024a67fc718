//! `downloads`: a client tells which packages it installed. Counted apart from downloads, because a client's own cache
//! hides those from us.

use http::StatusCode;
use larder_audit::{Download, Recorder};
use larder_auth::{Decision, decide};
use larder_core::{
    Error, Result,
    grant::{Action, Principal},
};
use larder_db::{Db, packages};
use larder_http::{Request, Response};
use serde::Deserialize;

use crate::ID;

/// The largest body, in bytes: some ten thousand packages.
const LIMIT: usize = 1024 * 1024;

#[derive(Deserialize)]
struct Batch {
    downloads: Vec<Installed>,
}

#[derive(Deserialize)]
struct Installed {
    name: String,
    version: String,
}

/// Counts what the asker may see and what is here; the rest comes from other repositories.
pub(crate) async fn notify(db: &Db, recorder: &Recorder, request: &mut Request, asker: &Principal) -> Result<Response> {
    let body = request.body.read_all(LIMIT).await?;
    let batch: Batch = serde_json::from_slice(&body)
        .map_err(|error| Error::invalid(format!("this is not a list of installed packages: {error}")))?;
    let now = db.host().now();
    for Installed { name, version } in batch.downloads {
        let name = name.to_ascii_lowercase();
        if decide(asker, Action::Read, ID, &name) == Decision::Allow
            && packages::has_version(db, ID, &name, &version).await?
        {
            recorder.count(&Download { format: ID, package: &name, version: &version, kind: "install" }, now);
        }
    }
    Ok(Response::json(StatusCode::OK, &serde_json::json!({"status": "success"})))
}
