//! What is about a manifest: signatures, attestations, lists of what it consists of.

use http::{HeaderName, HeaderValue, StatusCode, header};
use larder_core::{Digest, Result, grant::Action};
use larder_db::{
    edges::{self, About},
    packages::{self, Package},
};
use larder_http::Response;
use serde_json::{Value, json};

use crate::{
    ID, Registry,
    answer::link,
    call::Call,
    error::Refusal,
    model::{self, INDEX, Listing},
    names::{self, Reference},
    routes::OciRoom,
    upstream::{Listed, Stale},
};

/// Says which filters the answer went through.
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// How many rows are read at once: a row has as many bytes as annotations may have.
const PAGE: i64 = 32;

/// The most that one answer has, in bytes of descriptors: clients refuse manifests that are larger than 4 MiB.
const BYTES: usize = 3 * 1024 * 1024;

/// The most descriptors of one answer.
const MOST: usize = 1_000;

impl OciRoom {
    /// `GET name/referrers/DIGEST[?artifactType=…]`. A digest that nobody knows has no referrers, which is no error.
    pub(crate) async fn referrers(&self, call: &mut Call<'_>, digest: &Digest) -> Result<Response, Refusal> {
        call.demand(Action::Read)?;
        let (wanted, after) = {
            let query = call.request.query()?;
            let text = |name| query.get(name).map(std::borrow::Cow::into_owned).filter(|text| !text.is_empty());
            (text("artifactType"), text("last").unwrap_or_default())
        };
        let (stale, there) = match &self.proxy {
            None => (None, None),
            Some(proxy) => match proxy.referrers(call.name, digest).await? {
                Listed::Own => (None, None),
                Listed::OnlyHere(stale) => (Some(stale), None),
                Listed::There(there, stale) => (stale, Some(there)),
            },
        };
        let (found, next) = match there {
            Some(there) => part(&there, wanted.as_deref(), &after),
            None => match packages::find(&self.registry.db, ID, call.name).await? {
                Some(package) => self.registry.about(&package, call.name, digest, wanted.as_deref(), after).await?,
                None => (Vec::new(), None),
            },
        };
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": found });
        let mut response = Response::bytes(StatusCode::OK, INDEX, index.to_string());
        if let Some(wanted) = &wanted {
            response.headers.insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
            if let Some(next) = &next {
                let rest = format!("artifactType={}&last={next}", link::encoded(wanted));
                response.headers.insert(header::LINK, link::next(&call.path(), &rest));
            }
        } else if let Some(next) = &next {
            response.headers.insert(header::LINK, link::next(&call.path(), &format!("last={next}")));
        }
        Ok(Stale::dressed(stale.as_ref(), self.registry.host().now(), response))
    }
}

/// One page of a list that is in memory, and where the next one begins: `after` is how many come before it.
fn part(all: &[Value], wanted: Option<&str>, after: &str) -> (Vec<Value>, Option<String>) {
    let is_wanted = |descriptor: &Value| {
        wanted.is_none_or(|wanted| descriptor.get("artifactType").and_then(Value::as_str) == Some(wanted))
    };
    let (mut found, mut size) = (Vec::new(), 0);
    for (at, descriptor) in all.iter().enumerate().skip(after.parse().unwrap_or(0)) {
        if !is_wanted(descriptor) {
            continue;
        }
        if found.len() >= MOST || size >= BYTES {
            return (found, Some(at.to_string()));
        }
        size += descriptor.to_string().len();
        found.push(descriptor.clone());
    }
    (found, None)
}

impl Registry {
    /// One page of descriptors, and where the next one begins.
    async fn about(
        &self,
        package: &Package,
        name: &str,
        digest: &Digest,
        wanted: Option<&str>,
        mut after: String,
    ) -> Result<(Vec<Value>, Option<String>)> {
        let mut found = Vec::new();
        let mut size = 0;
        let is_wanted = |descriptor: &Value| {
            wanted.is_none_or(|wanted| descriptor.get("artifactType").and_then(Value::as_str) == Some(wanted))
        };
        if after.is_empty() {
            found = self.listed_by_tag(name, digest).await?;
            found.retain(is_wanted);
            size = found.iter().map(|descriptor| descriptor.to_string().len()).sum();
        }
        let from_tag: Vec<Value> = found.iter().filter_map(|descriptor| descriptor.get("digest").cloned()).collect();
        loop {
            let page = edges::about(&self.db, package.id, &digest.to_string(), &after, PAGE).await?;
            let is_last = i64::try_from(page.len()).is_ok_and(|count| count < PAGE);
            for About { id, reference, metadata } in page {
                after = id.to_string();
                let descriptor: Value = serde_json::from_str(&metadata)
                    .map_err(|error| larder_core::Error::internal("reading a manifest's row", error))?;
                if !is_wanted(&descriptor) || from_tag.iter().any(|listed| listed.as_str() == Some(&reference)) {
                    continue;
                }
                size += metadata.len();
                found.push(descriptor);
                if found.len() >= MOST || size >= BYTES {
                    return Ok((found, Some(after)));
                }
            }
            if is_last {
                return Ok((found, None));
            }
        }
    }

    /// The descriptors that a client of a registry without this list put under a tag made from the digest: they count
    /// here as well, as the specification demands of a registry that once had no such list.
    async fn listed_by_tag(&self, name: &str, digest: &Digest) -> Result<Vec<Value>> {
        let tag = names::fallback_tag(digest);
        let served = match self.manifest(name, &Reference::Tag(&tag)).await {
            Ok(served) => served,
            Err(Refusal::Said(_)) => return Ok(Vec::new()),
            Err(Refusal::House(error)) => return Err(error),
        };
        if served.bytes.len() > BYTES {
            return Ok(Vec::new());
        }
        let listing: Listing = serde_json::from_slice(&served.bytes).unwrap_or(Listing { manifests: Vec::new() });
        let mut listed = listing.manifests;
        listed.truncate(MOST);
        listed.retain(|descriptor| descriptor.get("digest").is_some_and(Value::is_string));
        Ok(listed)
    }
}

const _: () = assert!(BYTES < model::LARGEST);
