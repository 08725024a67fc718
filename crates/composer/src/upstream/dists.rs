//! Dists of upstreams: fetched when somebody first wants one, once for all who do, compared with what the upstream says of
//! them, and kept for ever. Bytes that are here are never replaced by others.

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream::BoxStream};
use larder_blobs::{StoredBlob, Writer};
use larder_core::{Digest, Error, Host, Id, Kind, Result, Time};
use larder_db::{
    Statement, changes,
    events::{self, Actor, Event},
    packages::{self, Artifact, Package, Version},
    upstream_documents as documents,
};
use larder_sources::fetch::{FetchResponse, shown};
use serde_json::json;
use url::Url;

use super::{Failure, ORIGIN, Proxy, client::Client, subject};
use crate::{
    DIST, ID,
    entry::{Entry, Raw},
    version::Stability,
};

/// How many bytes say what sort of file it is: a tape archive says so at the end of its first header.
const BEGINNING: usize = 262;

/// How a web page begins, in small letters.
const PAGES: [&[u8]; 3] = [b"<!doctype html", b"<html", b"<?xml"];

/// What is to be brought.
struct Wanted {
    client: Client,
    package: Package,
    /// Normal form.
    version: String,
    /// What stands for its bytes in our addresses.
    key: String,
    entry: Entry,
    /// The validator of the document that tells it.
    document: Option<String>,
    /// What kind of file it is, as the upstream says.
    kind: String,
    /// Its SHA-1 in hex, if the upstream says it.
    sha1: Option<String>,
}

/// What stands for the bytes of a version in our addresses: its reference, if that can stand in one; otherwise a hash of it,
/// or of where the dist is. `None`: it has no dist.
pub fn dist_key(entry: &Entry) -> Option<String> {
    let dist = dist_of(entry)?;
    let url = dist.text("url").filter(|url| !url.is_empty())?;
    let reference = dist.text("reference").filter(|reference| !reference.is_empty());
    match reference {
        Some(reference) if is_plain(&reference) => Some(reference),
        other => Some(Digest::of(other.unwrap_or(url).as_bytes()).hex()[..40].to_owned()),
    }
}

fn dist_of(entry: &Entry) -> Option<Entry> {
    entry.get("dist").and_then(Raw::read)
}

fn is_plain(reference: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    reference.len() <= 100
        && reference.bytes().all(fits)
        && reference.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
}

impl Proxy {
    /// Brings the dist of a version (in normal form) of a package of an upstream, once for all who ask; gives the id of its
    /// row, and its artifact. `key` is [`dist_key`] of `entry`, which is what [`told`](Self::told) gives; `document` is the
    /// validator of the document that it stands in, if it does.
    ///
    /// Errors: [`Kind::NotFound`] if the upstream does not have it, [`Kind::Upstream`] if it is not what the upstream says
    /// that it is, [`Kind::Damaged`] if it was here, is lost, and has other bytes now.
    pub async fn bring(
        &self,
        package: &Package,
        version: &str,
        key: &str,
        entry: &Entry,
        document: Option<&str>,
    ) -> Result<(Id, Artifact)> {
        let client = self.client_of(package).await?.ok_or_else(|| {
            Error::new(Kind::Gone, format!("`{}` does not come from an upstream any more", package.name))
        })?;
        let what = format!("dist of {} {version}", package.name);
        let name = format!("{}\0{version}\0{key}", package.name);
        if let Some(failure) = self.trouble(&name) {
            return Err(failure.error(&what));
        }
        let dist = dist_of(entry).unwrap_or_default();
        let wanted = Wanted {
            client,
            package: package.clone(),
            version: version.to_owned(),
            key: key.to_owned(),
            entry: entry.clone(),
            document: document.map(str::to_owned),
            kind: dist.text("type").unwrap_or_default(),
            sha1: dist.text("shasum").filter(|sha1| !sha1.is_empty()),
        };
        let (proxy, trouble) = (self.clone(), name.clone());
        let flight = self.inner.dists.join(self.db().host(), &name, || async move {
            // A flight before this one may have failed since it was looked for.
            if let Some(failure) = proxy.trouble(&trouble) {
                return Err(failure);
            }
            let brought = proxy.fetch_dist(&wanted).await;
            if let Err(failure) = &brought {
                proxy.note_trouble(&trouble, failure);
                let (package, version, why) = (&wanted.package.name, &wanted.version, failure.text());
                tracing::warn!(
                    source = wanted.client.upstream.source.name,
                    package,
                    version,
                    why,
                    "a dist could not be brought"
                );
            }
            brought
        });
        flight.await.map_err(|failure| failure.error(&what))
    }

    /// What is here of it.
    async fn row(&self, wanted: &Wanted) -> Result<Option<(Id, Option<Artifact>)>> {
        let Wanted { package, version, key, .. } = wanted;
        let rows = packages::by_reference(self.db(), package.id, key, DIST).await?;
        let Some(row) = rows.into_iter().find(|row| row.version == *version) else { return Ok(None) };
        let artifact = match row.sha1 {
            Some(_) => packages::artifact(self.db(), row.id, DIST).await?,
            None => None,
        };
        Ok(Some((row.id, artifact)))
    }

    async fn fetch_dist(&self, wanted: &Wanted) -> Result<(Id, Artifact), Failure> {
        let row = self.row(wanted).await?;
        // A flight before this one may have landed since it was looked for.
        if let Some((id, Some(artifact))) = &row
            && self.inner.blobs.prove(&artifact.digest).await?
        {
            return Ok((*id, artifact.clone()));
        }
        let _turn = wanted.client.turn().await?;
        let mut failed = Failure::Absent;
        for address in self.addresses(wanted).await? {
            match self.fetch_from(wanted, &address, row.as_ref()).await {
                Ok(brought) => return Ok(brought),
                // The next place may have it, or the right one.
                Err(Failure::Absent) => {}
                Err(failure) => failed = failure,
            }
        }
        Err(failed)
    }

    /// Where it can be had, best first.
    async fn addresses(&self, wanted: &Wanted) -> Result<Vec<String>, Failure> {
        match wanted.client.root().await {
            Ok(root) => Ok(root.dist_addresses(&wanted.entry)),
            Err(failure) => {
                // It may well be somewhere else, and there.
                let own = dist_of(&wanted.entry).and_then(|dist| dist.text("url"));
                own.filter(|url| Url::parse(url).is_ok()).map(|url| vec![url]).ok_or(failure)
            }
        }
    }

    /// Fetches and stores it. `row` is what was here of it before: if its bytes are lost, only the same ones will do.
    async fn fetch_from(
        &self,
        wanted: &Wanted,
        address: &str,
        row: Option<&(Id, Option<Artifact>)>,
    ) -> Result<(Id, Artifact), Failure> {
        let most = self.inner.limits.artifact;
        let FetchResponse { url, length, body, .. } = wanted.client.dist(address, most).await?;
        let mut writer = self.inner.blobs.begin().await?;
        let taken = Taking { wanted, url: &url, most, length }.take_in(body, &mut writer).await;
        let complaint = match taken {
            Ok(()) => self.complaint(wanted, writer.sha1().unwrap_or_default(), writer.written(), &url).await?,
            Err(failure) => Some(failure),
        };
        if let Some(failure) = complaint {
            writer.abort().await;
            return Err(failure);
        }
        if let Some((id, Some(lost))) = row {
            return match writer.finish_expecting(Some(lost.digest), None).await {
                Ok(_) => Ok((*id, lost.clone())),
                Err(error) if error.kind() == Kind::Invalid => Err(wanted.lost(&error)),
                Err(error) => Err(error.into()),
            };
        }
        self.record(wanted, writer, row.map(|(id, _)| *id)).await
    }

    /// What is wrong with all bytes together, which have the SHA-1 `found`.
    async fn complaint(&self, wanted: &Wanted, found: String, size: u64, url: &Url) -> Result<Option<Failure>> {
        let Some(told) = wanted.sha1.as_ref().filter(|told| !told.eq_ignore_ascii_case(&found)) else {
            return Ok(None);
        };
        let Wanted { package, version, key, client, .. } = wanted;
        let detail = json!({
            "version": version, "reference": key, "source": client.upstream.source.name, "url": shown(url),
            "expected": told, "found": found, "size": size,
        });
        let event = Event::new(&Actor::house(), "artifact.mismatch", packages::topic(ID, &package.name)).with(detail);
        self.db().commit(events::record(self.db().host(), &event).into()).await?;
        Ok(Some(Failure::Failed(
            Kind::Upstream,
            format!(
                "the dist of {} {} from {} has the SHA-1 {found}, and the registry says {told}: nothing of it is kept; \
                 tell whoever publishes the package",
                package.name,
                wanted.display(),
                shown(url)
            ),
        )))
    }

    /// Stores the bytes, and with them their rows. Another replica may have been faster: what came first stays.
    async fn record(&self, wanted: &Wanted, writer: Writer, row: Option<Id>) -> Result<(Id, Artifact), Failure> {
        let (host, now) = (self.db().host(), self.db().host().now());
        let id = row.unwrap_or_else(|| host.new_id());
        let rows = if row.is_some() { Vec::new() } else { wanted.insert(id, now)? };
        let stored = writer.finish_with(None, None, |stored| {
            let mut batch = rows;
            batch.push(packages::not_built(id, DIST));
            batch.push(packages::insert_artifact(host.new_id(), id, DIST, &artifact(stored), now));
            batch.push(events::record(host, &wanted.event(stored)));
            batch.push(wanted.notify(host));
            batch
        });
        match stored.await {
            Ok(stored) => Ok((id, artifact(&stored))),
            Err(error) if error.kind() == Kind::Conflict => match self.row(wanted).await? {
                Some((id, Some(there))) => Ok((id, there)),
                _ if packages::find(self.db(), ID, &wanted.package.name).await?.is_none() => Err(Failure::Absent),
                _ => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

fn artifact(stored: &StoredBlob) -> Artifact {
    Artifact { digest: stored.digest, size: stored.size, sha1: stored.sha1.clone() }
}

impl Wanted {
    fn display(&self) -> String {
        self.entry.text("version").unwrap_or_else(|| self.version.clone())
    }

    /// The row of its version, in the package that it was looked for in.
    fn insert(&self, id: Id, now: Time) -> Result<Vec<Statement>> {
        let row = Version {
            id,
            version: self.version.clone(),
            display: self.display(),
            reference: self.key.clone(),
            stable: Stability::of(&self.version) == Stability::Stable,
            listed: false,
            origin: ORIGIN.to_owned(),
            released_at: self.entry.released().unwrap_or(now),
            metadata: self.entry.to_json()?,
            folder: String::new(),
            sha1: None,
        };
        Ok(vec![packages::exists(self.package.id), packages::insert_version(self.package.id, &row, now)])
    }

    fn event(&self, stored: &StoredBlob) -> Event {
        let detail = json!({
            "version": self.version, "reference": self.key, "source": self.client.upstream.source.name,
            "digest": stored.digest.to_string(), "size": stored.size,
        });
        Event::new(&Actor::house(), "artifact.fetch", packages::topic(ID, &self.package.name)).with(detail)
    }

    /// That its bytes are here changes no document, unless another one tells it by now, with another hash.
    fn notify(&self, host: &Host) -> Statement {
        let topic = packages::topic(ID, &self.package.name);
        let Some(document) = &self.document else { return changes::notify(host, &topic) };
        let subject = subject(&self.package.name, Stability::of(&self.version) == Stability::Dev);
        documents::notify_unless_same(host, &topic, self.client.upstream.id(), &subject, document)
    }

    fn lost(&self, why: &Error) -> Failure {
        Failure::Failed(
            Kind::Damaged,
            format!(
                "the dist of {} {} was lost here, and the registry has another one now ({why}): restore it from a backup",
                self.package.name,
                self.display(),
            ),
        )
    }
}

/// One download.
struct Taking<'a> {
    wanted: &'a Wanted,
    /// Who answered.
    url: &'a Url,
    most: u64,
    /// How many bytes are announced.
    length: Option<u64>,
}

impl Taking<'_> {
    /// Writes what comes, once its beginning is right.
    async fn take_in(&self, mut body: BoxStream<'static, Result<Bytes>>, writer: &mut Writer) -> Result<(), Failure> {
        let mut beginning = Some(BytesMut::with_capacity(BEGINNING));
        while let Some(piece) = body.next().await {
            let mut piece = piece?;
            if let Some(bytes) = &mut beginning {
                bytes.extend_from_slice(&piece);
                if bytes.len() < BEGINNING {
                    continue;
                }
                piece = bytes.split().freeze();
                self.check_beginning(&piece)?;
                beginning = None;
            }
            self.write(piece, writer).await?;
        }
        if let Some(bytes) = beginning {
            self.check_beginning(&bytes)?;
            self.write(bytes.freeze(), writer).await?;
        }
        match self.length {
            Some(length) if length != writer.written() => {
                Err(self.wrong(&format!("has {} bytes, and {length} were announced", writer.written())))
            }
            _ => Ok(()),
        }
    }

    async fn write(&self, piece: Bytes, writer: &mut Writer) -> Result<(), Failure> {
        if writer.written() + piece.len() as u64 > self.most {
            let most = self.most;
            return Err(self.wrong(&format!("has more than {most} bytes: raise `limits.artifact` in larder.toml")));
        }
        Ok(writer.write(piece).await?)
    }

    fn check_beginning(&self, bytes: &[u8]) -> Result<(), Failure> {
        if is_of_kind(&self.wanted.kind, bytes) {
            return Ok(());
        }
        let what = if is_page(bytes) { "is a web page" } else { "is something else" };
        Err(self.wrong(&format!("{what}, and no {} file", self.wanted.kind)))
    }

    fn wrong(&self, what: &str) -> Failure {
        let (package, version) = (&self.wanted.package.name, self.wanted.display());
        Failure::Failed(
            Kind::Upstream,
            format!("what {} gives for {package} {version} {what}; nothing of it is kept", shown(self.url)),
        )
    }
}

/// Whether a file that begins so can be what a dist says that it is.
fn is_of_kind(kind: &str, beginning: &[u8]) -> bool {
    let begins = |with: &[u8]| beginning.starts_with(with);
    let gzip = || begins(b"\x1f\x8b");
    let xz = || begins(b"\xfd7zXZ\0");
    match kind {
        // The second one is that of an archive without files.
        "zip" => begins(b"PK\x03\x04") || begins(b"PK\x05\x06"),
        "tar" => beginning.get(257..262) == Some(b"ustar") || gzip() || xz() || begins(b"BZh"),
        "gzip" => gzip(),
        "xz" => xz(),
        "rar" => begins(b"Rar!"),
        _ => !beginning.is_empty() && !is_page(beginning),
    }
}

fn is_page(beginning: &[u8]) -> bool {
    let text = beginning.trim_ascii_start();
    PAGES.iter().any(|page| text.get(..page.len()).is_some_and(|start| start.eq_ignore_ascii_case(page)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dist: &serde_json::Value) -> Entry {
        Entry::parse(&json!({ "name": "a/b", "dist": dist }).to_string()).unwrap()
    }

    #[test]
    fn what_stands_for_a_dist() {
        let key = |reference: serde_json::Value| {
            dist_key(&entry(&json!({ "type": "zip", "url": "https://h/a.zip", "reference": reference })))
        };
        assert_eq!(key(json!("abc123")).as_deref(), Some("abc123"));
        let hashed = |text: &str| Some(Digest::of(text.as_bytes()).hex()[..40].to_owned());
        for odd in ["a/b", "..", "a b", "%2e", &"x".repeat(101)] {
            assert_eq!(key(json!(odd)), hashed(odd), "{odd}");
        }
        for none in [json!(null), json!("")] {
            assert_eq!(key(none), hashed("https://h/a.zip"));
        }
        for none in [json!(null), json!([]), json!({ "type": "zip", "url": "" })] {
            assert_eq!(dist_key(&entry(&none)), None);
        }
        assert_eq!(dist_key(&Entry::default()), None);
    }

    #[test]
    fn what_a_file_begins_with() {
        let mut tape = vec![0; 300];
        tape[257..262].copy_from_slice(b"ustar");
        for (kind, bytes, expected) in [
            ("zip", &b"PK\x03\x04rest"[..], true),
            ("zip", b"PK", false),
            ("zip", b"", false),
            ("zip", b"<!DOCTYPE html><title>Log in</title>", false),
            ("tar", &tape, true),
            ("tar", b"\x1f\x8brest", true),
            ("tar", b"PK\x03\x04rest", false),
            ("file", b"#!/bin/sh", true),
            ("file", b" \n<HTML>", false),
            ("file", b"", false),
            ("phar", b"<?php", true),
        ] {
            assert_eq!(is_of_kind(kind, bytes), expected, "{kind} {bytes:?}");
        }
    }
}
