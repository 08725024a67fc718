//! What people see who use Larder with the clients of OCI registries: each case is a sentence, on `SQLite` and disk, and
//! again on `PostgreSQL` and S3. One program, so that everything is linked once.

mod artifacts;
mod conformance;
mod containers;
mod copies;
mod faults;
mod logins;
mod permissions;
mod proxy;
mod refusals;
mod replicas;
mod requests;
mod soak;

use http::StatusCode;
use larder_e2e::{
    Ground, Server,
    oci::{Ask, Registry, code_of},
    wire::Answer,
};

/// A server, and a token that may do everything with images.
async fn registry(ground: Ground) -> (Server, String) {
    let server = Server::start(ground).await;
    let token = server.token("ci", &["*:oci:*"]).await;
    (server, token)
}

/// The same, with a client of our own in place of the token.
async fn spoken(ground: Ground) -> (Server, Registry) {
    let (server, token) = registry(ground).await;
    let registry = Registry::new(&[server.address()], &token);
    (server, registry)
}

/// Sends a request that must be refused with this status, and with this code unless it is empty. Whoever reads the refusal
/// learns what happened and what to do.
async fn refused(registry: &Registry, ask: Ask, status: StatusCode, code: &str) -> Answer {
    let shown = ask.to_string();
    let answer = registry.ask(ask).await;
    assert_eq!(answer.status, status, "{shown}: {}", answer.text());
    if shown.starts_with("HEAD ") {
        assert!(answer.body.is_empty(), "{shown}: no answer to HEAD has a body");
        return answer;
    }
    assert_eq!(answer.header("content-type"), "application/json", "{shown}");
    assert!(code.is_empty() || code_of(&answer) == code, "{shown}: not {code}: {}", answer.text());
    let error = &answer.json()["errors"][0];
    let says = |value: &serde_json::Value| value.as_str().is_some_and(|text| !text.trim().is_empty());
    assert!(says(&error["code"]) && says(&error["message"]), "{shown}: {}", answer.text());
    assert!(says(&error["detail"]["todo"]), "{shown}: it does not say what to do: {}", answer.text());
    answer
}
