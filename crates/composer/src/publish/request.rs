//! Publishing over HTTP: `PUT` a zip, or the description of a package, and `DELETE` a version.

use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Method, StatusCode, header};
use larder_auth::{Decision, decide, demand};
use larder_core::{
    Error, Result,
    format::Format as _,
    grant::{Action, Principal},
};
use larder_db::events::Actor;
use larder_http::{AccessNote, Request, Response, error::method_not_allowed};
use serde_json::{Value, json};

use super::{Order, Published, Publisher};
use crate::{Composer, ID, archive::LARGEST_MANIFEST};

/// Where publishing is mounted.
pub const MOUNT: &str = "/api/v1/composer/";

/// `/api/v1/composer/VENDOR/NAME`, or `…/VERSION`, in which there may be slashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endpoint<'a> {
    name: &'a str,
    version: Option<&'a str>,
}

impl<'a> Endpoint<'a> {
    /// Reads a decoded path.
    fn parse(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix(MOUNT)?;
        let (vendor, behind) = rest.split_once('/')?;
        let (package, version) =
            behind.split_once('/').map_or((behind, None), |(package, version)| (package, Some(version)));
        let is_whole = !vendor.is_empty() && !package.is_empty() && version != Some("");
        is_whole.then(|| Self { name: &rest[..vendor.len() + 1 + package.len()], version })
    }
}

impl Publisher {
    /// Answers a request below [`MOUNT`]. What may be done is decided before a byte of the body is read.
    pub async fn handle(&self, request: &mut Request, asker: &Principal, access: &mut AccessNote) -> Result<Response> {
        let path = request.decoded_path().into_owned();
        let endpoint = Endpoint::parse(&path).ok_or_else(|| {
            Error::not_found(format!("publish with PUT {MOUNT}VENDOR/NAME, or {MOUNT}VENDOR/NAME/VERSION"))
        })?;
        let action = match (&request.method, endpoint.version) {
            (&Method::PUT, _) => Action::Publish,
            (&Method::DELETE, Some(_)) => Action::Delete,
            (_, Some(_)) => return Ok(method_not_allowed("PUT, DELETE")),
            (_, None) => return Ok(method_not_allowed("PUT")),
        };
        let name = endpoint.name.to_ascii_lowercase();
        access.action = Some(action);
        access.package = Some(name.as_str().into());
        access.version = endpoint.version.map(Into::into);
        allow(asker, action, &name)?;
        let name = Composer.package_name(&name)?;
        let actor = Actor::from(asker);
        match endpoint.version {
            Some(version) if action == Action::Delete => delete(self, &actor, &name, version).await,
            version => {
                let order = Order { name: Some(name), version: version.map(str::to_owned), ..Order::default() };
                let published = put(self, &actor, request, order).await?;
                access.version = Some(published.normalized.as_str().into());
                answer(&published)
            }
        }
    }
}

/// What the asker may not see is not there.
fn allow(asker: &Principal, action: Action, name: &str) -> Result<()> {
    match decide(asker, action, ID, name) {
        Decision::NotFound => Err(Error::not_found(format!(
            "there is no package {name} here, or your token may not {} it",
            action.as_str()
        ))),
        _ => demand(asker, action, ID, name),
    }
}

async fn put(publisher: &Publisher, actor: &Actor, request: &mut Request, order: Order) -> Result<Published> {
    let kind = request.header(header::CONTENT_TYPE).unwrap_or_default();
    if kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        let limit = usize::try_from(LARGEST_MANIFEST).unwrap_or(usize::MAX);
        let manifest = request.body.read_all(limit).await?;
        return publisher.publish_described(actor, Order { manifest: Some(manifest), ..order }).await;
    }
    let announced = request.body.announced();
    let body = std::mem::take(&mut request.body);
    let zip = stream::try_unfold(body, |mut body| async move { Ok(body.chunk().await?.map(|bytes| (bytes, body))) });
    publisher.publish(actor, order, zip.boxed(), announced).await
}

fn answer(published: &Published) -> Result<Response> {
    let status = if published.is_new { StatusCode::CREATED } else { StatusCode::OK };
    let location = HeaderValue::try_from(&published.url).map_err(|error| Error::internal("answering", error))?;
    Ok(Response::json(status, &published.document()).with(header::LOCATION, location))
}

async fn delete(publisher: &Publisher, actor: &Actor, name: &str, version: &str) -> Result<Response> {
    let gone = publisher.repository.sources.remove_version(actor, ID, name, version).await?;
    let references: Vec<&str> = gone.iter().map(|kept| kept.reference.as_str()).collect();
    let document = json!({ "name": name, "version": version, "references": references, "removed": true });
    Ok(Response::json(StatusCode::OK, &document))
}

impl Published {
    /// As clients and scripts read it.
    pub fn document(&self) -> Value {
        json!({
            "name": self.name,
            "version": self.version,
            "normalized": self.normalized,
            "reference": self.reference,
            "shasum": self.shasum,
            "size": self.size,
            "url": self.url,
            "new": self.is_new,
            "warnings": self.warnings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/api/v1/composer/acme/lib", Some(("acme/lib", None))),
            ("/api/v1/composer/acme/lib/1.0.0", Some(("acme/lib", Some("1.0.0")))),
            ("/api/v1/composer/acme/lib/dev-feature/x", Some(("acme/lib", Some("dev-feature/x")))),
            ("/api/v1/composer/acme/lib/", None),
            ("/api/v1/composer/acme/", None),
            ("/api/v1/composer/acme", None),
            ("/api/v1/composer/", None),
            ("/api/v1/other/acme/lib", None),
        ] {
            let read = Endpoint::parse(path).map(|endpoint| (endpoint.name, endpoint.version));
            assert_eq!(read, expected, "{path}");
        }
    }
}
