//! What a server stands on: a folder with `SQLite` and files, or a `PostgreSQL` schema and a prefix of an S3 bucket, which
//! several servers can share.

use std::{
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use larder_testkit::Scratch;

use crate::{not_tested, setting};

/// What one test's servers stand on. It is gone when the test ends.
pub struct Ground {
    _shared: Option<Scratch>,
    environment: Vec<(String, String)>,
}

impl Ground {
    /// `SQLite` and files in the server's own folder.
    pub fn local() -> Self {
        Self { _shared: None, environment: Vec::new() }
    }

    /// `PostgreSQL` and S3, if both are configured. Says so if not.
    pub async fn shared() -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (Some(endpoint), Some(bucket)) = (setting("LARDER_TEST_S3_ENDPOINT"), setting("LARDER_TEST_S3_BUCKET"))
        else {
            not_tested(
                "the program on PostgreSQL and S3: LARDER_TEST_S3_ENDPOINT and LARDER_TEST_S3_BUCKET are not set",
            );
            return None;
        };
        let Some(scratch) = Scratch::postgres().await else {
            not_tested("the program on PostgreSQL and S3: LARDER_TEST_POSTGRES_URL is not set");
            return None;
        };
        let prefix = format!("e2e-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let of = |name: &str| setting(name).unwrap_or_default();
        let environment = [
            ("LARDER_DATABASE_URL", scratch.url().to_owned()),
            ("LARDER_STORAGE_URL", format!("s3://{bucket}/{prefix}")),
            ("LARDER_S3_ENDPOINT", endpoint),
            ("LARDER_S3_REGION", of("LARDER_TEST_S3_REGION")),
            ("LARDER_S3_ACCESS_KEY", of("LARDER_TEST_S3_ACCESS_KEY")),
            ("LARDER_S3_SECRET_KEY", of("LARDER_TEST_S3_SECRET_KEY")),
            ("LARDER_S3_PATH_STYLE", "true".to_owned()),
            // Replicas have no folder in common, so that the key comes from outside.
            ("LARDER_SECRET_KEY", "2b7e151628aed2a6abf7158809cf4f3c762e7160f38b4da56a784d9045190cfe".to_owned()),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
        Some(Self { _shared: Some(scratch), environment })
    }

    /// What a server and its commands find in their environment.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }
}
