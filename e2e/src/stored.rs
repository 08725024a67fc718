//! The bytes of a server behind its back: what really lies on its disk or in its bucket, and what happens when somebody
//! takes it away.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use crate::{Server, oci::Blob, program::run};

/// One stored object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its path below the store's root.
    pub location: String,
    /// In bytes.
    pub size: u64,
}

/// A store, looked at from outside.
#[derive(Clone, Debug)]
pub enum Stored {
    /// A folder.
    Disk(PathBuf),
    /// What begins with a prefix in a bucket.
    Bucket {
        /// `http://HOST/BUCKET`
        url: String,
        /// Without a slash at its end.
        prefix: String,
        /// `KEY:SECRET`
        user: String,
        /// The region that signatures are for.
        region: String,
    },
}

impl Stored {
    /// The store of a server.
    ///
    /// # Panics
    /// If its ground names a store of another kind.
    pub fn of(server: &Server) -> Self {
        let environment = server.ground().environment();
        let of = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let Some(url) = of("LARDER_STORAGE_URL") else { return Self::Disk(server.data().join("store")) };
        let place = url.strip_prefix("s3://").and_then(|place| place.split_once('/'));
        let (bucket, prefix) = place.expect("the store is s3://BUCKET/PREFIX");
        let of = |name| of(name).unwrap_or_default();
        Self::Bucket {
            url: format!("{}/{bucket}", of("LARDER_S3_ENDPOINT")),
            prefix: prefix.to_owned(),
            user: format!("{}:{}", of("LARDER_S3_ACCESS_KEY"), of("LARDER_S3_SECRET_KEY")),
            region: of("LARDER_S3_REGION").to_owned(),
        }
    }

    /// Everything in it, sorted.
    ///
    /// # Panics
    /// If it cannot be listed.
    pub async fn list(&self) -> Vec<Object> {
        let mut found = match self {
            Self::Disk(root) => files(root, root),
            Self::Bucket { prefix, .. } => self.keys(prefix).await,
        };
        found.sort();
        found
    }

    /// How many bytes are in it.
    pub async fn bytes(&self) -> u64 {
        self.list().await.iter().map(|object| object.size).sum()
    }

    /// The object that holds the bytes of a blob: it is named after the digest, or nothing else is as large.
    ///
    /// # Panics
    /// If there is not exactly one.
    pub async fn object_of(&self, blob: &Blob) -> Object {
        let hex = blob.digest.split_once(':').map_or(blob.digest.as_str(), |(_, hex)| hex);
        let (mut found, size) = (self.list().await, blob.bytes.len() as u64);
        let is_named = found.iter().any(|object| object.location.contains(hex));
        found.retain(|object| if is_named { object.location.contains(hex) } else { object.size == size });
        assert_eq!(found.len(), 1, "one object holds {}: {found:?}", blob.digest);
        found.remove(0)
    }

    /// Takes an object away.
    ///
    /// # Panics
    /// If that fails.
    pub async fn remove(&self, location: &str) {
        match self {
            Self::Disk(root) => fs::remove_file(root.join(location)).expect("the file can be removed"),
            Self::Bucket { prefix, .. } => drop(self.curl("DELETE", &format!("/{prefix}/{location}"), b"").await),
        }
    }

    /// Puts other bytes in its place.
    ///
    /// # Panics
    /// If that fails.
    pub async fn replace(&self, location: &str, bytes: &[u8]) {
        match self {
            Self::Disk(root) => fs::write(root.join(location), bytes).expect("the file can be written"),
            Self::Bucket { prefix, .. } => drop(self.curl("PUT", &format!("/{prefix}/{location}"), bytes).await),
        }
    }

    async fn keys(&self, prefix: &str) -> Vec<Object> {
        let mut found: Vec<Object> = Vec::new();
        let encoded = |text: &str| text.replace('/', "%2F");
        loop {
            let after =
                found.last().map(|last| format!("&start-after={}", encoded(&format!("{prefix}/{}", last.location))));
            let query = format!(
                "?list-type=2&max-keys=1000&prefix={}{}",
                encoded(&format!("{prefix}/")),
                after.unwrap_or_default()
            );
            let page = self.curl("GET", &query, b"").await;
            found.extend(page.split("<Contents>").skip(1).map(|entry| {
                let of = |tag: &str| entry.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once('<'));
                let key = of("Key").expect("an object has a key").0;
                Object {
                    location: key.strip_prefix(&format!("{prefix}/")).expect("it has the prefix").to_owned(),
                    size: of("Size").and_then(|(size, _)| size.parse().ok()).expect("an object has a size"),
                }
            }));
            if !page.contains("<IsTruncated>true<") {
                return found;
            }
        }
    }

    async fn curl(&self, method: &str, rest: &str, body: &[u8]) -> String {
        let Self::Bucket { url, user, region, .. } = self else { panic!("this is not a bucket") };
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "30", "--request", method]);
        command.args(["--user", user, "--aws-sigv4", &format!("aws:amz:{region}:s3"), &format!("{url}{rest}")]);
        // From a file: of what comes in by other ways, older curls sign something else than they send.
        let file = tempfile::NamedTempFile::new().expect("a test needs a place for temporary files");
        if method == "PUT" {
            fs::write(file.path(), body).expect("a file can be written");
            command.arg("--upload-file").arg(file.path());
        }
        run(command, b"").await.ok()
    }
}

/// The files below `folder`. What goes away meanwhile is not there.
fn files(root: &Path, folder: &Path) -> Vec<Object> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let entries = entries.filter_map(Result::ok).filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)));
    let found = entries.flat_map(|(path, metadata)| {
        if metadata.is_dir() {
            return files(root, &path);
        }
        let location = path.strip_prefix(root).expect("it is below the root").display().to_string();
        vec![Object { location, size: metadata.len() }]
    });
    found.collect()
}
