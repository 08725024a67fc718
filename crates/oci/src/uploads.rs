//! Uploads: whole in one request, as a stream, or in chunks; and what becomes of them when a connection breaks.
//!
//! All that is known of one is its row and the bytes behind it, so that any replica goes on with it, also after a restart.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use larder_blobs::{Place, SessionError, SessionWriter, StoredBlob};
use larder_core::{Digest, Id, Kind, digest::Algorithm, grant::Action};
use larder_http::{RequestBody, Response};

use crate::{
    ID, Registry,
    answer::{created, value},
    call::Call,
    error::{Code, Refusal},
    names,
    routes::OciRoom,
    usage::Reserved,
};

/// After so many bytes of a stream whose length nobody said the quota is asked again.
const ASK_AGAIN: u64 = 16 * 1024 * 1024;

const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

impl OciRoom {
    /// `POST name/blobs/uploads/`
    pub(crate) async fn begin_upload(&self, call: &mut Call<'_>) -> Result<Response, Refusal> {
        call.demand(Action::Publish)?;
        self.refuse_push(call.name).await?;
        let (mount, from, digest, algorithm) = {
            let query = call.request.query()?;
            let text = |name| query.get(name).map(std::borrow::Cow::into_owned).filter(|text| !text.is_empty());
            (text("mount"), text("from"), text("digest"), text("digest-algorithm"))
        };
        if let Some(mount) = mount {
            let mount = names::parse_digest(&mount)?;
            if let Some(mounted) = self.mount(call, &mount, from.as_deref()).await? {
                return Ok(mounted);
            }
        } else if let Some(digest) = digest {
            return self.upload_at_once(call, &names::parse_digest(&digest)?).await;
        }
        let algorithm = match algorithm {
            None => Algorithm::Sha256,
            Some(text) => text.parse().map_err(|_| {
                Refusal::new(
                    Code::DigestInvalid,
                    format!("digests made with `{text}` cannot be stored here"),
                    "use sha256 or sha512",
                )
            })?,
        };
        self.registry.check_quota(call.name, None, 1).await?.cancel();
        let id = self.registry.blobs.open_session(&place(call, &call.asker.name.to_string()), algorithm).await?;
        Ok(progress(StatusCode::ACCEPTED, call.name, id, 0))
    }

    /// `POST name/blobs/uploads/?digest=DIGEST` with all bytes.
    async fn upload_at_once(&self, call: &mut Call<'_>, digest: &Digest) -> Result<Response, Refusal> {
        let size = call.request.body.announced();
        let mut room = Room::new(call.name, Some(digest), 0, size.unwrap_or(1));
        room.ask(&self.registry, size.unwrap_or(1)).await?;
        let mut writer = self.registry.blobs.begin_as(digest.algorithm()).await?;
        let taken = async {
            while let Some(bytes) = call.request.body.chunk().await? {
                room.make(&self.registry, writer.written() + bytes.len() as u64).await?;
                writer.write(bytes).await?;
            }
            match size {
                Some(_) => Ok(()),
                None => room.ask(&self.registry, writer.written()).await,
            }
        };
        if let Err(refusal) = taken.await {
            writer.abort().await;
            return Err(refusal);
        }
        let lease = self.registry.lease_of(call.name, digest);
        writer.finish_with(Some(*digest), size, |_| lease).await.map_err(|error| mismatch(error, digest))?;
        Ok(landed(call, digest))
    }

    /// `GET name/blobs/uploads/ID`
    pub(crate) async fn upload_status(&self, call: &mut Call<'_>, id: &str) -> Result<Response, Refusal> {
        call.demand(Action::Publish)?;
        let id = parse_id(id)?;
        let status = self
            .registry
            .blobs
            .session(id, &place(call, &call.asker.name.to_string()))
            .await?
            .ok_or_else(|| unknown(id))?;
        Ok(progress(StatusCode::NO_CONTENT, call.name, id, status.written))
    }

    /// `PATCH name/blobs/uploads/ID`
    pub(crate) async fn continue_upload(&self, call: &mut Call<'_>, id: &str) -> Result<Response, Refusal> {
        call.demand(Action::Publish)?;
        let id = parse_id(id)?;
        let mut writer = self.claim(call, id).await?;
        let taken = self.take(call, None, &mut writer).await;
        // What came is kept, whatever happened: the client goes on from there.
        let written = writer.pause().await;
        self.make_room(call, id, taken).await?;
        Ok(progress(StatusCode::ACCEPTED, call.name, id, written?))
    }

    /// `PUT name/blobs/uploads/ID?digest=DIGEST`, perhaps with the last bytes.
    pub(crate) async fn finish_upload(&self, call: &mut Call<'_>, id: &str) -> Result<Response, Refusal> {
        call.demand(Action::Publish)?;
        let id = parse_id(id)?;
        let digest = {
            let query = call.request.query()?;
            let text = query.get("digest").ok_or_else(|| {
                Refusal::new(
                    Code::DigestInvalid,
                    "the digest of the blob is missing",
                    "end the upload with ?digest=sha256:…",
                )
            })?;
            names::parse_digest(&text)?
        };
        let mut writer = self.claim(call, id).await?;
        let taken = self.take(call, Some(&digest), &mut writer).await;
        let taken = match taken {
            Ok(()) => self.registry.check_quota(call.name, Some(&digest), writer.written()).await,
            Err(error) => Err(error),
        };
        let _reserved = match taken {
            Ok(reserved) => reserved,
            Err(error) => {
                if let Err(error) = writer.pause().await {
                    tracing::warn!(error = error.chain(), %id, "what came of an upload could not be kept");
                }
                return self.make_room(call, id, Err(error)).await;
            }
        };
        let lease = self.registry.lease_of(call.name, &digest);
        let stored = writer.finish(digest, lease).await.map_err(|error| mismatch(error, &digest));
        let stored: StoredBlob = self.make_room(call, id, stored).await?;
        debug_assert_eq!(stored.digest, digest);
        Ok(landed(call, &digest))
    }

    /// Reads the body into an upload, as far as the quota goes.
    async fn take(
        &self,
        call: &mut Call<'_>,
        digest: Option<&Digest>,
        writer: &mut SessionWriter,
    ) -> Result<(), Refusal> {
        let (before, announced) = (writer.written(), call.request.body.announced());
        let mut room = Room::new(call.name, digest, before, announced.unwrap_or(0));
        if announced.is_some_and(|length| length > 0) {
            room.ask(&self.registry, room.allowed).await?;
        }
        while let Some(bytes) = next(&mut call.request.body).await? {
            room.make(&self.registry, writer.written() + bytes.len() as u64).await?;
            writer.write(bytes).await?;
        }
        Ok(())
    }

    /// Where there is no room, an upload that cannot end must not keep what the others need: it is over.
    async fn make_room<T>(&self, call: &Call<'_>, id: Id, done: Result<T, Refusal>) -> Result<T, Refusal> {
        if let Err(Refusal::House(error)) = &done
            && error.kind() == Kind::Full
        {
            let principal = call.asker.name.to_string();
            if let Err(error) = self.registry.blobs.cancel_session(id, &place(call, &principal)).await {
                tracing::warn!(error = error.chain(), %id, "an upload for which there is no room stays for now");
            }
        }
        done
    }

    /// `DELETE name/blobs/uploads/ID`
    pub(crate) async fn cancel_upload(&self, call: &mut Call<'_>, id: &str) -> Result<Response, Refusal> {
        call.demand(Action::Publish)?;
        let id = parse_id(id)?;
        if self.registry.blobs.cancel_session(id, &place(call, &call.asker.name.to_string())).await? {
            Ok(Response::empty(StatusCode::NO_CONTENT))
        } else {
            Err(unknown(id))
        }
    }

    /// Takes the right to write to an upload, where its chunk says that it goes on.
    async fn claim(&self, call: &Call<'_>, id: Id) -> Result<SessionWriter, Refusal> {
        let chunk = chunk_of(call)?;
        let claimed = self
            .registry
            .blobs
            .write_session(id, &place(call, &call.asker.name.to_string()), chunk.map(|(start, _)| start))
            .await;
        claimed.map_err(|error| match error {
            SessionError::Unknown => unknown(id),
            SessionError::Offset { written } => out_of_order(call.name, id, written, "this chunk does not go on there"),
            SessionError::Busy { written } => {
                out_of_order(call.name, id, written, "another request writes to this upload just now")
            }
            SessionError::Other(error) => error.into(),
        })
    }
}

/// 201, once a blob is here.
fn landed(call: &mut Call<'_>, digest: &Digest) -> Response {
    call.access.version = Some(digest.to_string().into());
    created(call.name, "blobs", digest)
}

/// Whose upload this is, and where.
fn place<'a>(call: &'a Call<'_>, principal: &'a str) -> Place<'a> {
    Place { format: ID, package: call.name, principal }
}

/// How far the quota lets bytes come in that nobody may refer to yet: they take room on the disk all the same.
struct Room<'a> {
    name: &'a str,
    digest: Option<&'a Digest>,
    /// So many bytes may be there before it is asked again.
    allowed: u64,
    reserved: Reserved,
}

impl<'a> Room<'a> {
    /// For an upload that has `before` bytes, and gets `announced` more as far as is known.
    fn new(name: &'a str, digest: Option<&'a Digest>, before: u64, announced: u64) -> Self {
        Self { name, digest, allowed: before.saturating_add(announced), reserved: Reserved::default() }
    }

    /// Refuses an upload of `size` bytes that goes over the quota.
    async fn ask(&mut self, registry: &Registry, size: u64) -> Result<(), Refusal> {
        std::mem::take(&mut self.reserved).cancel();
        self.reserved = registry.check_quota(self.name, self.digest, size).await?;
        Ok(())
    }

    /// The same, if nobody has asked yet for so many.
    async fn make(&mut self, registry: &Registry, size: u64) -> Result<(), Refusal> {
        if size > self.allowed {
            self.ask(registry, size).await?;
            self.allowed = size.saturating_add(ASK_AGAIN);
        }
        Ok(())
    }
}

async fn next(body: &mut RequestBody) -> Result<Option<Bytes>, Refusal> {
    body.chunk().await.map_err(|error| {
        if error.kind() == Kind::Invalid {
            Refusal::new(
                Code::BlobUploadInvalid,
                format!("the bytes ended early: {}", error.message()),
                "ask for the state of the upload with GET, and go on from there",
            )
        } else {
            error.into()
        }
    })
}

/// The first and the last byte of a chunk, if the client says which they are. It must send as many as it says.
fn chunk_of(call: &Call<'_>) -> Result<Option<(u64, u64)>, Refusal> {
    let Some(text) = call.request.header(header::CONTENT_RANGE) else { return Ok(None) };
    let wrong =
        |todo: &str| Refusal::new(Code::BlobUploadInvalid, format!("Content-Range: {text} is not a chunk"), todo);
    // The specification has no unit here; some clients write one all the same, and the whole length behind it.
    let plain = text.trim().strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches([' ', '=']));
    let plain = plain.split('/').next().unwrap_or(plain);
    let number = |digits: &str| digits.trim().parse::<u64>().ok();
    let range = plain.split_once('-').and_then(|(first, last)| Some((number(first)?, number(last)?)));
    let (first, last) = range.ok_or_else(|| wrong("write FIRST-LAST, both inclusive"))?;
    let length = last.checked_sub(first).and_then(|length| length.checked_add(1));
    let length = length.ok_or_else(|| wrong("its end is before its beginning"))?;
    match call.request.body.announced() {
        Some(announced) if announced == length => Ok(Some((first, last))),
        Some(announced) => Err(Refusal::new(
            Code::SizeInvalid,
            format!("the chunk {first}-{last} has {length} bytes, but {announced} were sent"),
            "send as many bytes as Content-Range says",
        )),
        None => Err(Refusal::new(
            Code::SizeInvalid,
            "a chunk needs a Content-Length",
            "send one, or leave Content-Range out and send a stream",
        )),
    }
}

/// An answer that says where an upload is and how far.
fn progress(status: StatusCode, name: &str, id: Id, written: u64) -> Response {
    let (location, range) = location(name, id, written);
    Response::empty(status)
        .with(header::LOCATION, location)
        .with(header::RANGE, range)
        .with(DOCKER_UPLOAD_UUID, value(&id.to_string()))
}

fn location(name: &str, id: Id, written: u64) -> (HeaderValue, HeaderValue) {
    // The last byte, inclusive. Nothing at all looks like one byte; clients know that.
    let range = format!("0-{}", written.saturating_sub(1));
    (value(&format!("/v2/{name}/blobs/uploads/{id}")), value(&range))
}

fn out_of_order(name: &str, id: Id, written: u64, what: &str) -> Refusal {
    let (location, range) = location(name, id, written);
    Refusal::new(
        Code::BlobUploadInvalid,
        format!("{what}: {written} bytes are here"),
        format!("go on with the byte {written}"),
    )
    .status(StatusCode::RANGE_NOT_SATISFIABLE)
    .with(header::LOCATION, location)
    .with(header::RANGE, range)
}

fn parse_id(text: &str) -> Result<Id, Refusal> {
    text.parse()
        .map_err(|_| Refusal::new(Code::BlobUploadUnknown, format!("`{text}` is not an upload"), "begin one with POST"))
}

fn unknown(id: Id) -> Refusal {
    Refusal::new(
        Code::BlobUploadUnknown,
        format!("there is no upload {id} of yours in this repository"),
        "it ended, was cancelled, or nothing came for too long: begin again with POST",
    )
}

/// Bytes that are not what was promised.
fn mismatch(error: larder_core::Error, digest: &Digest) -> Refusal {
    if error.kind() == Kind::Invalid {
        return Refusal::new(
            Code::DigestInvalid,
            error.message().to_owned(),
            format!("upload the bytes of {digest} again"),
        );
    }
    error.into()
}
