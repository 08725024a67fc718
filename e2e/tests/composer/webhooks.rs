//! What a team sees that has given its forge a webhook: what it pushes is there, long before anybody would have looked.

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{Request, StatusCode, header};
use http_body_util::Full;
use larder_e2e::{Composer, Ground, Project, Server, on_every_ground, packages, wire};
use larder_testkit::Forge;
use serde_json::json;
use sha2::Sha256;

on_every_ground!(a_push_is_installable_at_once_after_its_webhook,);

async fn a_push_is_installable_at_once_after_its_webhook(ground: Ground) {
    let forge = Forge::start().await;
    let repository = packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    let server = Server::start(ground).await;
    server.add("text", &forge.url("text"), &["--every", "30d"]).await;
    let token = server.token("ci", &[]).await;
    let shown = server.json(&["source", "show", "text"]).await["webhook"].clone();
    let (url, secret) = (shown["url"].as_str().unwrap_or_default(), shown["secret"].as_str().unwrap_or_default());
    assert_eq!(url, format!("{}/webhooks/text", server.url()));
    server.guard(secret);

    let commit = packages::release(&repository, "v1.1.0", packages::text("1.1.0"));
    let push = json!({"ref": "refs/tags/v1.1.0", "after": commit, "created": true}).to_string();
    assert_eq!(deliver(&server, "wrong", &push).await, StatusCode::UNAUTHORIZED);
    assert_eq!(deliver(&server, secret, &push).await, StatusCode::ACCEPTED);
    server.until_versions(&token, "acme/text", false, &["v1.1.0", "v1.0.0"]).await;
    assert_eq!(deliver(&server, secret, &push).await, StatusCode::OK, "a replay");
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "acme/text:^1.1"]).await.ok();
        assert_eq!(project.locked(), ["acme/text v1.1.0"]);
    }

    let next = server.ok(&["source", "rotate-webhook", "text"]).await;
    server.guard(next.trim());
    assert_eq!(deliver(&server, secret, &push).await, StatusCode::UNAUTHORIZED, "the secret before");
    assert_eq!(deliver(&server, next.trim(), "{}").await, StatusCode::ACCEPTED);
    let events = server.json(&["audit", "list", "--action", "webhook"]).await.to_string();
    assert!(events.contains("webhook:github") && !events.contains(secret) && !events.contains(next.trim()), "{events}");
    server.close().await;
}

/// Tells the server of a push as GitHub does.
async fn deliver(server: &Server, secret: &str, body: &str) -> StatusCode {
    let mac = <Hmac<Sha256>>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    let mac = mac.chain_update(body).finalize().into_bytes();
    let signature = mac.iter().fold("sha256=".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    let request = Request::post("/webhooks/text")
        .header(header::HOST, "larder.test")
        .header("X-GitHub-Event", "push")
        .header("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
        .header("X-Hub-Signature-256", signature)
        .body(Full::new(Bytes::from(body.to_owned())))
        .expect("the test's request is well-formed");
    wire::send(server.address(), request).await.expect("the server answers").status
}
