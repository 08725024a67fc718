//! Scratch databases: empty, a test's own, and gone when the test ends.

#![expect(clippy::missing_panics_doc, reason = "a test that gets no database has failed")]

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use larder_core::Host;
use larder_db::{Db, Executor, Statement};
use larder_native::database::connect;

/// A database of its own for one test: a file in a temporary folder, or a schema of the PostgreSQL database that
/// `LARDER_TEST_POSTGRES_URL` names. Dropping it removes it.
pub struct Scratch {
    url: String,
    remains: Remains,
}

enum Remains {
    Folder { _folder: tempfile::TempDir },
    Schema { server: String, name: String },
}

impl Scratch {
    /// An empty SQLite file.
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a test needs a place for temporary files");
        let url = format!("sqlite:{}", folder.path().join("larder.db").display());
        Self { url, remains: Remains::Folder { _folder: folder } }
    }

    /// An empty PostgreSQL schema, if `LARDER_TEST_POSTGRES_URL` is set.
    pub async fn postgres() -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let server = postgres_url()?;
        let name = format!("larder_test_{}_{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        define(&server, format!("create schema {name}")).await;
        let joint = if server.contains('?') { '&' } else { '?' };
        let url = format!("{server}{joint}options[search_path]={name}");
        Some(Self { url, remains: Remains::Schema { server, name } })
    }

    /// One of each kind that there is: SQLite always, PostgreSQL if `LARDER_TEST_POSTGRES_URL` is set.
    pub async fn each() -> Vec<Self> {
        [Some(Self::sqlite()), Self::postgres().await].into_iter().flatten().collect()
    }

    /// For [`connect`] and for `LARDER_DATABASE_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Another executor on it, as another process would have it. Its tables may not be there yet.
    pub async fn executor(&self) -> Arc<dyn Executor> {
        connect(&self.url).await.expect("the scratch database can be opened")
    }

    /// Another [`Db`] on it, as another process would have it, with all tables.
    pub async fn db(&self, host: &Host) -> Db {
        Db::open(self.executor().await, host.clone()).await.expect("migrations apply to the scratch database")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Remains::Schema { server, name } = &self.remains else { return };
        let (server, sql) = (server.clone(), format!("drop schema {name} cascade"));
        let gone = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime for removing the schema").block_on(define(&server, sql));
        });
        // While a test panics already, a second panic would hide why.
        let gone = gone.join().is_ok();
        assert!(gone || thread::panicking(), "the schema {name} could not be removed");
    }
}

async fn define(server: &str, sql: String) {
    let server = connect(server).await.expect("LARDER_TEST_POSTGRES_URL is a usable URL");
    // A few bytes per test, once: a statement's text lives as long as the program.
    let statement = Statement::write(sql.leak(), []);
    server.batch(vec![statement]).await.expect("the test may make and remove schemas");
}

#[expect(clippy::disallowed_methods, reason = "the one place where tests learn of PostgreSQL")]
fn postgres_url() -> Option<String> {
    std::env::var("LARDER_TEST_POSTGRES_URL").ok().filter(|url| !url.is_empty())
}
