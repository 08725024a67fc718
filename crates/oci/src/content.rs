//! Blobs of a repository: served in ranges, mounted from other repositories, taken away.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{HeaderValue, Method, StatusCode, header};
use larder_auth::{Decision, decide};
use larder_core::{
    Digest, Kind,
    grant::{Action, Principal},
};
use larder_db::{
    Batch, changes, events,
    events::{Actor, Event},
    leases::{self, Seen},
    packages,
};
use larder_http::{Body, File, Response};
use serde_json::json;

use crate::{
    ID, Registry,
    answer::{DOCKER_CONTENT_DIGEST, created},
    call::Call,
    error::{Code, Refusal},
    manifests,
    routes::OciRoom,
    shelf::{Kept, Layer},
    upstream::Cold,
};

/// In how many repositories a blob is looked for when the client does not say where it is.
const DISCOVERED: i64 = 100;

impl OciRoom {
    /// `GET` or `HEAD name/blobs/DIGEST`.
    pub(crate) async fn blob(&self, call: &mut Call<'_>, digest: &Digest) -> Result<Response, Refusal> {
        call.demand(Action::Read)?;
        call.access.download = true;
        call.access.version = Some(digest.to_string().into());
        // Whoever may push skips what is here already, and so must be able to rely on it for a while.
        let relies = call.request.method == Method::HEAD
            && decide(call.asker, Action::Publish, ID, call.name) == Decision::Allow;
        let path = call.path();
        if !relies && let Some(Kept::Layer(layer)) = self.shelf.get(&path) {
            return self.send(call, &layer).await;
        }
        let flag = self.shelf.flag(call.name);
        let mut seen = self.registry.visible(call.name, digest).await?;
        if let (None, Some(proxy)) = (&seen, &self.proxy) {
            match proxy.blob(call, digest).await? {
                Cold::Answer(answer) => return Ok(answer),
                Cold::Here => seen = self.registry.visible(call.name, digest).await?,
                Cold::Unknown => {}
            }
        }
        let seen = seen.ok_or_else(|| Refusal::no_blob(call.name, digest))?;
        if relies && !self.registry.rely(call.name, digest, &seen).await? {
            return Err(Refusal::no_blob(call.name, digest));
        }
        let text = HeaderValue::try_from(digest.to_string()).unwrap_or(HeaderValue::from_static(""));
        let file = File::new(*digest, seen.size, "application/octet-stream").with_always(DOCKER_CONTENT_DIGEST, text);
        let layer = Arc::new(Layer { digest: *digest, file });
        // A lease ends by itself, and nobody would tell.
        if seen.used {
            self.shelf.keep(&path, Kept::Layer(Arc::clone(&layer)), flag);
        }
        self.send(call, &layer).await
    }

    async fn send(&self, call: &Call<'_>, layer: &Layer) -> Result<Response, Refusal> {
        let is_first = AtomicBool::new(true);
        let open = async |range: Option<Range<u64>>| {
            if !is_first.swap(false, Ordering::Relaxed)
                && let Some(range) = range
            {
                let len = Some(range.end - range.start);
                return Ok(Body::Stream { len, stream: self.registry.blobs.open_later(layer.digest, range) });
            }
            let blob = self.registry.blobs.open(&layer.digest, range.clone()).await?;
            let len = range.map_or(blob.size, |range| range.end - range.start);
            Ok(match blob.whole {
                Some(bytes) => Body::from(bytes),
                None => Body::Stream { len: Some(len), stream: blob.stream },
            })
        };
        match layer.file.respond(call.request, open).await {
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => {
                self.shelf.drop_path(&call.path());
                Err(Refusal::no_blob(call.name, &layer.digest))
            }
            sent => Ok(sent?),
        }
    }

    /// `DELETE name/blobs/DIGEST`.
    pub(crate) async fn delete_blob(&self, call: &mut Call<'_>, digest: &Digest) -> Result<Response, Refusal> {
        call.demand(Action::Delete)?;
        call.access.version = Some(digest.to_string().into());
        let Some(seen) = self.registry.visible(call.name, digest).await? else {
            return Err(Refusal::no_blob(call.name, digest));
        };
        if seen.used {
            return Err(Refusal::new(
                Code::Denied,
                format!("a manifest of `{}` needs the blob {digest}", call.name),
                "delete the manifest first; its blobs then go by themselves",
            )
            .status(StatusCode::METHOD_NOT_ALLOWED)
            .with(header::ALLOW, HeaderValue::from_static("GET, HEAD")));
        }
        let host = self.registry.host();
        let event = Event::new(&Actor::from(call.asker.as_ref()), "blob.release", manifests::subject(call.name))
            .with(json!({ "digest": digest.to_string() }));
        let batch = Batch::new()
            .with(leases::remove(ID, call.name, digest))
            .with(events::record(host, &event))
            .with(changes::notify(host, &packages::topic(ID, call.name)));
        self.registry.db.commit(batch).await.map_err(Refusal::from)?;
        self.shelf.forget(call.name);
        Ok(Response::empty(StatusCode::ACCEPTED))
    }

    /// `POST name/blobs/uploads/?mount=DIGEST[&from=OTHER]`: the blob of another repository that the asker may read.
    /// `None` if there is none: then the client uploads it.
    pub(crate) async fn mount(
        &self,
        call: &Call<'_>,
        digest: &Digest,
        from: Option<&str>,
    ) -> Result<Option<Response>, Refusal> {
        let registry = &self.registry;
        let mut found = registry.visible(call.name, digest).await?.is_some();
        if !found && let Some(from) = from {
            found = may_read(call.asker, from) && registry.visible(from, digest).await?.is_some();
        }
        if !found {
            let now = registry.host().now();
            let others = leases::packages_with(&registry.db, ID, digest, now, DISCOVERED).await?;
            for other in others.iter().filter(|other| may_read(call.asker, other)) {
                if registry.visible(other, digest).await?.is_some() {
                    found = true;
                    break;
                }
            }
        }
        let size = if found { registry.blobs.stat(digest).await?.map_or(0, |row| row.size) } else { 0 };
        let _reserved = registry.check_quota(call.name, Some(digest), size).await?;
        if !found || !registry.blobs.lease(digest, registry.lease_of(call.name, digest)).await? {
            return Ok(None);
        }
        Ok(Some(created(call.name, "blobs", digest)))
    }
}

/// Whether a blob may be mounted from another repository. A pass names the repository that is written to, and few clients
/// ask for one that names the other as well; so it is the token behind it that must be allowed to read that.
fn may_read(asker: &Principal, name: &str) -> bool {
    decide(asker.behind.as_deref().unwrap_or(asker), Action::Read, ID, name) == Decision::Allow
}

impl Registry {
    /// What a repository knows of a blob, if it may show it now.
    pub(crate) async fn visible(&self, name: &str, digest: &Digest) -> Result<Option<Seen>, Refusal> {
        let now = self.host().now();
        let seen = leases::seen(&self.db, ID, name, digest).await?;
        Ok(seen.filter(|seen| seen.live && (seen.used || seen.leased_until.is_some_and(|until| until > now))))
    }

    /// Sees to it that a blob stays for whoever was told that it is here. `false` if its bytes turn out to be lost.
    pub(crate) async fn rely(&self, name: &str, digest: &Digest, seen: &Seen) -> Result<bool, Refusal> {
        let enough = self.host().now().plus(self.blobs.lease_time() / 2);
        if seen.leased_until.is_some_and(|until| until > enough) {
            return Ok(self.blobs.prove(digest).await?);
        }
        Ok(self.blobs.lease(digest, self.lease_of(name, digest)).await?)
    }
}
