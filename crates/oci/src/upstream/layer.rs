//! Blobs of an upstream: handed on while they arrive to all who were there when it began, and stored for everybody else.
//!
//! Nobody is told that bytes are complete before they are proven: the last piece of a download comes to its readers from
//! the store, after the digest was found right. When it is wrong nothing is stored, and the readers' connections break.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Shared},
    stream,
};
use http::{HeaderValue, Method, header};
use larder_blobs::{Blobs, Writer, store::ByteStream};
use larder_core::{Digest, Error, Kind, Result};
use larder_db::{edges, edges::Edge, leases};
use larder_http::{Body, File, Response};

use super::{
    Failure, Origin, Proxy,
    client::Client,
    fan::{Fan, Outlets, Reader},
    key,
};
use crate::{ID, answer::DOCKER_CONTENT_DIGEST, call::Call, error::Refusal, model::Manifest, names::Reference};

/// How often a download that breaks is gone on with.
const MOST_BREAKS: usize = 5;

type Waiting<T> = Shared<BoxFuture<'static, Result<T, Failure>>>;

/// The blobs that are being brought.
#[derive(Clone, Default)]
pub(super) struct Downloads(Arc<Mutex<HashMap<String, Arc<Download>>>>);

/// One of them.
struct Download {
    fan: Fan,
    /// Whether the upstream has it: over when the first byte may come.
    began: Waiting<Began>,
    /// Whether all of it is here, and right.
    ended: Waiting<()>,
}

/// How a download began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Began {
    /// It comes.
    Coming,
    /// It was here already.
    Here,
}

/// What the upstream has for somebody who wants a blob.
pub(crate) enum Cold {
    /// The answer.
    Answer(Response),
    /// It is here now.
    Here,
    /// There is no such blob.
    Unknown,
}

/// What is to be brought.
struct Wanted {
    client: Arc<Client>,
    /// The repository, by its name there and here.
    there: String,
    here: String,
    digest: Digest,
    /// What a manifest says of it.
    size: u64,
}

impl Proxy {
    /// A blob that a repository does not have. Only those that a manifest of the repository refers to are asked for: this
    /// is no way to have anything else fetched.
    pub(crate) async fn blob(&self, call: &Call<'_>, digest: &Digest) -> Result<Cold, Refusal> {
        let Some(origin) = self.origin(call.name).await? else { return Ok(Cold::Unknown) };
        let Some(size) = self.promised(&origin, call.name, digest).await? else { return Ok(Cold::Unknown) };
        let Origin { client, there, .. } = origin;
        let wanted = Wanted { client, there, here: call.name.to_owned(), digest: *digest, size };
        let failed = |failure: Failure| failure.refusal(call.name, || Refusal::no_blob(call.name, digest));
        if call.request.method == Method::HEAD {
            let there = wanted.client.blob_size(&wanted.there, digest).await.map_err(failed)?;
            if there.is_some_and(|there| there != size) {
                return Err(failed(other_size(&wanted, there)));
            }
            let answer = file(digest, size).respond(call.request, async |_| Ok(Body::Empty)).await?;
            return Ok(Cold::Answer(answer));
        }
        let whole = !call.request.headers.contains_key(header::RANGE);
        let (download, reader) = self.download(wanted, whole);
        let began = download.began.clone().await.map_err(failed)?;
        let Some(reader) = reader.filter(|_| began == Began::Coming) else {
            download.ended.clone().await.map_err(failed)?;
            return Ok(Cold::Here);
        };
        let blobs = self.inner.registry.blobs.clone();
        let body = Mutex::new(Some(Body::Stream {
            len: Some(size),
            stream: arriving(blobs, download, reader, *digest, size),
        }));
        let open = async |_| Ok(body.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default());
        Ok(Cold::Answer(file(digest, size).respond(call.request, open).await?))
    }

    /// The size of a blob as a manifest of the repository has it; `None` if none refers to it.
    async fn promised(&self, origin: &Origin, name: &str, digest: &Digest) -> Result<Option<u64>, Refusal> {
        let Some(package) = &origin.package else { return Ok(None) };
        let registry = &self.inner.registry;
        // A blob whose bytes were lost is brought again.
        let seen = leases::seen(self.db(), ID, name, digest).await?;
        if let Some(seen) = seen.filter(|seen| seen.used) {
            return Ok(Some(seen.size));
        }
        let parents = edges::parents(self.db(), package.id, &digest.to_string(), Edge::Blob, 1).await?;
        let Some(parent) = parents.first() else { return Ok(None) };
        let parent: Digest = parent.parse()?;
        let served = registry.manifest(name, &Reference::Digest(parent)).await?;
        let manifest = Manifest::parse(&served.bytes, None)?;
        Ok(manifest.blobs.iter().find(|needed| needed.digest == *digest).map(|needed| needed.size))
    }

    /// The download of a blob, begun now unless it is under way; and, for whoever `reads` all of it, what arrives, if nothing
    /// has arrived yet.
    fn download(&self, wanted: Wanted, reads: bool) -> (Arc<Download>, Option<Reader>) {
        let key = key(&wanted.here, &wanted.digest.to_string());
        let mut downloads = self.inner.downloads.0.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = |download: &Download| if reads { download.fan.join() } else { None };
        if let Some(download) = downloads.get(&key) {
            return (Arc::clone(download), joined(download));
        }
        let (says_began, began) = oneshot::channel();
        let (says_ended, ended) = oneshot::channel();
        let download = Arc::new(Download { fan: Fan::open(), began: waiting(began), ended: waiting(ended) });
        downloads.insert(key.clone(), Arc::clone(&download));
        drop(downloads);
        // Before it runs, so that whoever begins it is among its readers.
        let reader = joined(&download);
        let landing = Landing { proxy: self.clone(), key, download: Arc::clone(&download) };
        let proxy = self.clone();
        let task = async move {
            let mut says_began = Some(says_began);
            let ended = proxy.bring(&wanted, &landing.download.fan, &mut says_began).await;
            // Before anybody hears of it: whoever tries again is not to join what has failed.
            landing.leave();
            if let (Some(says_began), Err(failure)) = (says_began, &ended) {
                // Whoever waits no longer need not be told.
                drop(says_began.send(Err(failure.clone())));
            }
            if let Err(failure) = &ended {
                let (source, digest) = (&wanted.client.upstream.source.name, wanted.digest);
                tracing::warn!(source, repository = wanted.here, %digest, why = failure.text(), "a blob could not be brought");
            }
            drop(says_ended.send(ended));
            drop(landing);
        };
        self.db().host().spawn.background(task.boxed());
        (download, reader)
    }

    async fn bring(
        &self,
        wanted: &Wanted,
        fan: &Fan,
        says_began: &mut Option<oneshot::Sender<Result<Began, Failure>>>,
    ) -> Result<(), Failure> {
        let mut say = |began| {
            if let Some(says_began) = says_began.take() {
                drop(says_began.send(Ok(began)));
            }
        };
        let registry = &self.inner.registry;
        let seen = registry.visible(&wanted.here, &wanted.digest).await;
        if seen.is_ok_and(|seen| seen.is_some()) {
            say(Began::Here);
            return Ok(());
        }
        let _turn = wanted.client.turn().await?;
        let answer = wanted.client.blob(&wanted.there, &wanted.digest, 0, wanted.size).await?;
        if answer.length.is_some_and(|length| length != wanted.size) {
            return Err(other_size(wanted, answer.length));
        }
        let mut writer = registry.blobs.begin_as(wanted.digest.algorithm()).await?;
        say(Began::Coming);
        if let Err(failure) = self.take_in(wanted, answer.body, &mut writer, fan).await {
            writer.abort().await;
            return Err(failure);
        }
        let lease = registry.lease_of(&wanted.here, &wanted.digest);
        match writer.finish_with(Some(wanted.digest), Some(wanted.size), |_| lease).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == Kind::Invalid => Err(Failure::Failed(
                Kind::Upstream,
                format!(
                    "{} sends other bytes than those of {}; nothing of them is kept",
                    wanted.client.host(),
                    wanted.digest
                ),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what comes, and hands it on, all but the last piece.
    async fn take_in(
        &self,
        wanted: &Wanted,
        mut body: stream::BoxStream<'static, Result<Bytes>>,
        writer: &mut Writer,
        fan: &Fan,
    ) -> Result<(), Failure> {
        let host = self.db().host();
        let mut outlets: Option<Outlets> = None;
        let mut last: Option<Bytes> = None;
        let mut breaks = 0;
        while let Some(piece) = body.next().await {
            let piece = match piece {
                Ok(piece) if piece.is_empty() => continue,
                Ok(piece) => piece,
                Err(error) => {
                    breaks += 1;
                    let from = writer.written();
                    if from == wanted.size {
                        break;
                    }
                    if breaks > MOST_BREAKS || from == 0 || !error.is_temporary() {
                        return Err(error.into());
                    }
                    // What came already need not come again, and the digest says in the end whether it all fits.
                    body = wanted.client.blob(&wanted.there, &wanted.digest, from, wanted.size).await?.body;
                    continue;
                }
            };
            if writer.written() + piece.len() as u64 > wanted.size {
                return Err(other_size(wanted, None));
            }
            writer.write(piece.clone()).await?;
            if let Some(before) = last.replace(piece) {
                outlets.get_or_insert_with(|| fan.close()).give(host, &before).await;
            }
        }
        Ok(())
    }
}

/// Lets go of all who wait, and takes the download off the list, however it ended.
struct Landing {
    proxy: Proxy,
    key: String,
    download: Arc<Download>,
}

impl Landing {
    /// Takes the download off the list, if it is not another one of the same blob by now.
    fn leave(&self) {
        let mut downloads = self.proxy.inner.downloads.0.lock().unwrap_or_else(PoisonError::into_inner);
        if downloads.get(&self.key).is_some_and(|download| Arc::ptr_eq(download, &self.download)) {
            downloads.remove(&self.key);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        drop(self.download.fan.close());
        self.leave();
    }
}

fn waiting<T: Clone + Send + Sync + 'static>(receiver: oneshot::Receiver<Result<T, Failure>>) -> Waiting<T> {
    let ended_early = || Failure::Failed(Kind::Internal, "a download ended early; the log says why".to_owned());
    receiver.map(move |said| said.unwrap_or_else(|_| Err(ended_early()))).boxed().shared()
}

/// What one reader gets: pieces as they arrive, and from the store what is missing when no more of them come.
fn arriving(blobs: Blobs, download: Arc<Download>, reader: Reader, digest: Digest, size: u64) -> ByteStream {
    enum State {
        Arriving(Reader),
        Stored(ByteStream),
    }
    let state = (State::Arriving(reader), 0_u64);
    stream::try_unfold(state, move |(mut state, mut taken)| {
        let (blobs, download) = (blobs.clone(), Arc::clone(&download));
        async move {
            loop {
                match &mut state {
                    State::Arriving(reader) => {
                        if let Some(piece) = reader.next().await {
                            taken += piece.len() as u64;
                            return Ok(Some((piece, (state, taken))));
                        }
                        let ended = download.ended.clone().await;
                        ended.map_err(|failure| Error::new(Kind::Upstream, failure.text().to_owned()))?;
                        if taken >= size {
                            return Ok(None);
                        }
                        state = State::Stored(blobs.open(&digest, Some(taken..size)).await?.stream);
                    }
                    State::Stored(stream) => {
                        let Some(piece) = stream.next().await.transpose()? else { return Ok(None) };
                        return Ok(Some((piece, (state, taken))));
                    }
                }
            }
        }
    })
    .boxed()
}

fn file(digest: &Digest, size: u64) -> File {
    let text = HeaderValue::try_from(digest.to_string()).unwrap_or(HeaderValue::from_static(""));
    File::new(*digest, size, "application/octet-stream").with_always(DOCKER_CONTENT_DIGEST, text)
}

fn other_size(wanted: &Wanted, there: Option<u64>) -> Failure {
    let found = there.map_or_else(|| "more".to_owned(), |there| there.to_string());
    Failure::Failed(
        Kind::Upstream,
        format!("{} has {found} bytes for {}, which has {}", wanted.client.host(), wanted.digest, wanted.size),
    )
}
