//! What people see who use Larder with the clients of OCI registries: each case is a sentence, on `SQLite` and disk, and
//! again on `PostgreSQL` and S3. One program, so that everything is linked once.

mod artifacts;
mod conformance;
mod containers;
mod copies;
mod permissions;

use larder_e2e::{Ground, Server};

/// A server, and a token that may do everything with images.
async fn registry(ground: Ground) -> (Server, String) {
    let server = Server::start(ground).await;
    let token = server.token("ci", &["*:oci:*"]).await;
    (server, token)
}
