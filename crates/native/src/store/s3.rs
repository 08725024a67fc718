//! Bytes in an S3 bucket: AWS, or any server that speaks its protocol.
//!
//! S3 cannot rename, and a blob's name is known only after its last byte. So an object up to [`upload::SMALL`] is gathered in memory
//! and put straight at its key; a larger one goes as a multipart upload to `large/ID`, and the database keeps that location.
//! A note under `uploads/` says which multipart upload belongs to it until it is complete, so that one whose server died
//! can be found and aborted; a lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`) is a good second net.
//! How that goes is `upload.rs`; here is all the rest.

mod upload;

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use larder_blobs::store::{Object, Store, Stored, Upload};
use larder_core::{Error, Kind, Result, Time, digest::hex, host::Random};
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
};

use self::upload::S3Upload;
use super::key;
use crate::host::SystemRandom;

/// How to reach a bucket.
#[derive(Clone, Default)]
pub struct S3Options {
    /// `https://s3.example.org`; `None` for AWS itself. With `http:` nothing is encrypted on the way.
    pub endpoint: Option<String>,
    /// `None` is `us-east-1`, which most other servers do not look at.
    pub region: Option<String>,
    /// `None` takes the credentials that the machine has (environment, instance role).
    pub access_key: Option<String>,
    /// Belongs to the access key.
    pub secret_key: Option<String>,
    /// `endpoint/bucket/key`, as most servers beside AWS want it, instead of `bucket.endpoint/key`.
    pub path_style: bool,
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key", &self.access_key)
            .field("secret_key", &self.secret_key.as_ref().map(|_| "redacted"))
            .field("path_style", &self.path_style)
            .finish()
    }
}

/// A bucket, or what lies below a prefix in it, as a store.
#[derive(Clone)]
pub struct S3 {
    shared: Arc<Shared>,
}

struct Shared {
    client: AmazonS3,
    /// Empty, or ends with a slash.
    prefix: String,
    /// For messages: `s3://bucket/prefix`.
    place: String,
}

impl S3 {
    /// Opens `bucket`, everything below `prefix` (which may be empty). Nothing is asked of the server yet.
    pub fn open(bucket: &str, prefix: &str, options: S3Options) -> Result<Self> {
        let place = if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") };
        if bucket.is_empty() || !(prefix.is_empty() || key::is_sound(prefix)) {
            return Err(Error::invalid(format!(
                "`{place}` does not name a bucket: write s3://BUCKET or s3://BUCKET/PREFIX, the prefix with letters, \
                 digits, `-`, `.` and `/`"
            )));
        }
        if options.access_key.is_some() != options.secret_key.is_some() {
            return Err(Error::invalid("an S3 access key and its secret key go together: give both or neither"));
        }
        let client = client(bucket, options).map_err(|error| {
            Error::invalid(format!("the S3 settings for {place} do not work: {error}")).caused_by(error)
        })?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { shared: Arc::new(Shared { client, prefix, place }) })
    }
}

fn client(bucket: &str, options: S3Options) -> object_store::Result<AmazonS3> {
    // Whoever comes first installs it for the whole program; to come second is fine.
    drop(rustls::crypto::ring::default_provider().install_default());
    let plain = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(options.region.as_deref().unwrap_or("us-east-1"))
        .with_virtual_hosted_style_request(!options.path_style)
        .with_allow_http(plain)
        .with_disable_bulk_delete(true)
        .with_client_options(
            ClientOptions::new()
                // No limit on the whole of a request, which may be a large download: on each step of it.
                .with_timeout_disabled()
                .with_read_timeout(Duration::from_secs(60))
                .with_connect_timeout(Duration::from_secs(5))
                .with_allow_http(plain),
        )
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(5),
                base: 2.0,
            },
            max_retries: 5,
            retry_timeout: Duration::from_secs(30),
        });
    if let Some(endpoint) = options.endpoint {
        // For the other style the client wants the bucket within the endpoint.
        let endpoint = match endpoint.split_once("://") {
            Some((scheme, host)) if !options.path_style => format!("{scheme}://{bucket}.{host}"),
            _ => endpoint,
        };
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    if let (Some(access), Some(secret)) = (options.access_key, options.secret_key) {
        builder = builder.with_access_key_id(access).with_secret_access_key(secret);
    }
    builder.build()
}

impl Shared {
    fn path(&self, location: &str) -> Result<Path> {
        key::check(location, &["blobs/", "large/", "uploads/"])?;
        Ok(self.raw(location))
    }

    fn raw(&self, location: &str) -> Path {
        Path::from(format!("{}{location}", self.prefix))
    }

    fn stored(&self, meta: &ObjectMeta) -> Option<Stored> {
        let location = meta.location.as_ref().strip_prefix(&self.prefix)?.to_owned();
        let modified = Time::from_micros(meta.last_modified.timestamp_micros());
        key::is_sound(&location).then_some(Stored { location, size: meta.size, modified })
    }

    async fn size(&self, path: &Path) -> Result<Option<u64>> {
        match self.client.head(path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.explain("looking", error)),
        }
    }

    async fn delete(&self, path: &Path) -> Result<()> {
        match self.client.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.explain("deleting", error)),
        }
    }

    /// Objects below one folder, in order.
    async fn list(&self, folder: &str, after: Option<&str>, limit: usize) -> Result<Vec<Stored>> {
        let folder = self.raw(folder);
        let listing = match after {
            Some(after) => self.client.list_with_offset(Some(&folder), &self.raw(after)),
            None => self.client.list(Some(&folder)),
        };
        listing
            .try_filter_map(|meta| async move { Ok(self.stored(&meta)) })
            .take(limit)
            .try_collect()
            .await
            .map_err(|error| self.explain("listing", error))
    }

    /// Tells an operator what can be done; the asker learns only where it failed.
    fn explain(&self, doing: &str, error: object_store::Error) -> Error {
        use object_store::Error as Cause;
        let place = &self.place;
        match &error {
            Cause::NotFound { .. } => {
                Error::not_found(format!("{place} does not have it ({doing}); does the bucket exist?"))
            }
            Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. } => Error::new(
                Kind::Upstream,
                format!(
                    "{place} refuses Larder ({doing}): check the access key, and that it may list, get, put and delete"
                ),
            ),
            _ => Error::new(Kind::Upstream, format!("{place} failed ({doing}); trying again may help")),
        }
        .caused_by(error)
    }
}

#[async_trait]
impl Store for S3 {
    async fn begin(&self) -> Result<Box<dyn Upload>> {
        Ok(Box::new(S3Upload::new(self.shared.clone())))
    }

    async fn resume(&self, state: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(S3Upload::resume(self.shared.clone(), state).await?))
    }

    async fn get(&self, location: &str, range: Range<u64>) -> Result<Object> {
        let shared = self.shared.clone();
        let path = shared.path(location)?;
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        if !range.is_empty() {
            match shared.client.get_opts(&path, options).await {
                Ok(found) => {
                    let size = found.meta.size;
                    let stream = found.into_stream().map_err(move |error| shared.explain("reading", error));
                    return Ok(Object { size, stream: stream.boxed() });
                }
                Err(object_store::Error::NotFound { source, .. }) => return Err(absent(location).caused_by(source)),
                Err(error) => tracing::debug!(%error, location, "a range could not be read; asking for the size"),
            }
        }
        // An empty range, or one that begins after the end, which the server refuses: then the size says it all.
        match self.size(location).await? {
            Some(size) if range.is_empty() || size <= range.start => {
                Ok(Object { size, stream: stream::empty().boxed() })
            }
            Some(_) => Err(Error::new(Kind::Upstream, format!("{} failed (reading); try again", shared.place))),
            None => Err(absent(location)),
        }
    }

    async fn size(&self, location: &str) -> Result<Option<u64>> {
        self.shared.size(&self.shared.path(location)?).await
    }

    async fn delete(&self, location: &str) -> Result<()> {
        let path = self.shared.path(location)?;
        if location.starts_with("uploads/") {
            return self.shared.abort_noted(&path).await;
        }
        self.shared.delete(&path).await
    }

    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Stored>> {
        let mut listed = Vec::new();
        for folder in ["blobs/", "large/"] {
            // A folder that comes before `after` has nothing to add, one that comes later has all of it.
            let after = after.filter(|after| *after > folder);
            if after.is_none_or(|after| after.starts_with(folder)) && listed.len() < limit {
                listed.extend(self.shared.list(folder.trim_end_matches('/'), after, limit - listed.len()).await?);
            }
        }
        Ok(listed)
    }

    async fn abandoned(&self, before: Time, after: Option<&str>, limit: usize) -> Result<Vec<Stored>> {
        let mut uploads = self.shared.list("uploads", after, usize::MAX).await?;
        uploads.retain(|upload| upload.modified < before);
        uploads.truncate(limit);
        Ok(uploads)
    }

    async fn check(&self) -> Result<()> {
        const PROOF: &[u8] = b"written, read back, and gone again";
        let shared = &self.shared;
        let path = shared.raw(&format!("uploads/check-{}", fresh_name()));
        let proof = async {
            shared.client.put(&path, PROOF.into()).await?;
            let read = shared.client.get(&path).await?.bytes().await?;
            shared.client.delete(&path).await?;
            Ok(read == PROOF)
        };
        match proof.await {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(Error::new(Kind::Damaged, format!("{} gives back other bytes than were put", shared.place)))
            }
            Err(error) => Err(shared.explain("checking that objects can be put, read and deleted", error)),
        }
    }
}

fn absent(location: &str) -> Error {
    Error::not_found(format!("the bucket does not have {location}"))
}

/// A name that nobody else has taken. Only the bucket ever sees it.
fn fresh_name() -> String {
    let mut random = [0; 16];
    SystemRandom::default().fill(&mut random);
    hex(&random)
}
