//! Where bytes lie on an operating system: a folder ([`Disk`]) or an S3 bucket ([`S3`]), behind the
//! [`Store`](larder_blobs::store::Store) port. Which of the two is decided by one URL, here.

mod disk;
mod key;
mod s3;

use std::sync::Arc;

use larder_blobs::store::Store;
use larder_core::{Error, Result};

pub use disk::Disk;
pub use s3::{S3, S3Options};

/// Opens the store that `url` names: `file:PATH` (a folder, made if it is not there) or `s3://BUCKET` or
/// `s3://BUCKET/PREFIX`. Nothing is asked of an S3 server yet: [`Store::check`] does that.
pub fn open_store(url: &str, options: S3Options) -> Result<Arc<dyn Store>> {
    if let Some(place) = url.strip_prefix("s3://") {
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        return Ok(Arc::new(S3::open(bucket, prefix.trim_end_matches('/'), options)?));
    }
    match url.strip_prefix("file:") {
        Some(path) if !path.is_empty() => {
            // `file:///var/lib/x` is `/var/lib/x`; `file:x` is relative, as the flag for the data folder may be.
            Ok(Arc::new(Disk::open(path.strip_prefix("//").unwrap_or(path))?))
        }
        _ => Err(Error::invalid(format!(
            "`{url}` is not a storage URL: write file:PATH for a folder or s3://BUCKET/PREFIX for an S3 bucket"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        for good in [format!("file:{path}/a"), format!("file://{path}/b"), "s3://bucket".into(), "s3://b/a/b/".into()] {
            assert!(open_store(&good, S3Options::default()).is_ok(), "{good}");
        }
        assert!(folder.path().join("b/blobs").is_dir());
        for wrong in ["", "file:", "/var", "http://bucket", "s3://", "s3:///x", "s3://b/../c", "s3://b//c"] {
            assert!(open_store(wrong, S3Options::default()).is_err(), "{wrong}");
        }
    }
}
