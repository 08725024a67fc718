//! A registry behind another one: two servers, of which one asks the other, and real clients that know only the first.

use larder_e2e::{
    Ground, Server,
    oci::{Client, Image, Layout, Program},
    on_every_ground, until,
};

on_every_ground!(
    what_another_registry_has_is_pulled_through_and_stays_when_that_is_gone,
    a_private_registry_opens_for_the_credential_of_its_source,
    a_name_of_another_registry_is_not_pushed_and_one_of_ours_is_not_asked_for_there,
);

/// Another registry with a repository that is open to all, and a token that may do everything there.
async fn upstream() -> (Server, String) {
    let server = Server::start(Ground::local()).await;
    server.ok(&["grant", "add", "anonymous", "read:oci:open/**"]).await;
    let token = server.token("ci", &["*:oci:*"]).await;
    (server, token)
}

/// Has a client that is logged in there push an image there. `false` if this machine does not have the client.
async fn push(upstream: &Server, token: &str, layout: &Layout, reference: &str) -> bool {
    let Some(client) = Client::new(Program::Skopeo, &upstream.url()) else { return false };
    client.log_in(token).await.ok();
    client.push(layout, reference).await.ok();
    true
}

async fn what_another_registry_has_is_pulled_through_and_stays_when_that_is_gone(ground: Ground) {
    let (mut there, there_token) = upstream().await;
    let here = Server::start(ground).await;
    let reader = here.token("reader", &["read:oci:*"]).await;
    let image = |number: u64| Image::new(number, 3, 300_000);
    let made = Layout::of_index(&[image(1), image(2).for_architecture("arm64")]);
    if !push(&there, &there_token, &made, "open/app:1").await {
        return;
    }
    here.ok(&["source", "add", "oci", &there.url(), "--name", "there", "--only", "open/**", "--fresh", "0s"]).await;
    let clients = Client::each(&Program::COPIERS, &here.url());
    for client in &clients {
        client.log_in(&reader).await.ok();
        assert!(client.pull("open/app:1").await.bytes() == made.bytes(), "{client:?}");
        assert_eq!(client.tags("open/app").await, ["1"], "{client:?}");
    }
    let moved = Layout::of_image(&image(3));
    push(&there, &there_token, &moved, "open/app:1").await;
    for client in &clients {
        assert_eq!(client.digest("open/app:1").await, moved.digest(), "{client:?} sees where the tag is now");
        assert!(client.pull("open/app:1").await.bytes() == moved.bytes(), "{client:?}");
    }
    here.ok(&["source", "sync", "there"]).await;
    there.stop().await;
    for program in Program::COPIERS {
        // One that has nothing of it yet.
        let Some(client) = Client::new(program, &here.url()) else { continue };
        client.log_in(&reader).await.ok();
        assert!(client.pull("open/app:1").await.bytes() == moved.bytes(), "{client:?}");
        let old = client.pull(&format!("open/app@{}", made.digest())).await;
        assert!(old.bytes() == made.bytes(), "{client:?}");
    }
    let shown = here.ok(&["source", "show", "there"]).await;
    assert!(shown.contains("oci open/app: ") && shown.contains("only        open/**"), "{shown}");
    here.fsck().await;
    here.close().await;
}

async fn a_private_registry_opens_for_the_credential_of_its_source(ground: Ground) {
    let (there, there_token) = upstream().await;
    let here = Server::start(ground).await;
    let reader = here.token("reader", &["read:oci:*"]).await;
    let made = Layout::of_image(&Image::new(7, 2, 10_000));
    if !push(&there, &there_token, &made, "private/app:1").await {
        return;
    }
    here.guard(&there_token);
    here.ok(&["source", "add", "oci", &there.url(), "--name", "stranger", "--prefix", "stranger"]).await;
    here.larder_with(&["credential", "add", "there", "--kind", "basic", "--username", "ci"], &there_token).await.ok();
    here.ok(&["source", "add", "oci", &there.url(), "--name", "known", "--prefix", "known", "--credential", "there"])
        .await;
    let Some(client) = Client::new(Program::Skopeo, &here.url()) else { return };
    client.log_in(&reader).await.ok();
    let refused = client
        .run(&["inspect", "--tls-verify=false", &format!("docker://{}", client.at("stranger/private/app:1"))])
        .await;
    assert!(!refused.status.success(), "{}", refused.all());
    assert!(client.pull("known/private/app:1").await.bytes() == made.bytes());
    assert!(!refused.all().contains(&there_token));
    there.close().await;
    here.fsck().await;
    here.close().await;
}

async fn a_name_of_another_registry_is_not_pushed_and_one_of_ours_is_not_asked_for_there(ground: Ground) {
    let (there, there_token) = upstream().await;
    let here = Server::start(ground).await;
    let token = here.token("ci", &["*:oci:*"]).await;
    let [ours, theirs] = [1, 2].map(|seed| Layout::of_image(&Image::new(seed, 1, 1_000)));
    if !push(&there, &there_token, &theirs, "open/mine:1").await {
        return;
    }
    push(&there, &there_token, &theirs, "open/theirs:1").await;
    let Some(client) = Client::new(Program::Skopeo, &here.url()) else { return };
    client.log_in(&token).await.ok();
    client.push(&ours, "open/mine:1").await.ok();
    here.ok(&["source", "add", "oci", &there.url(), "--name", "there"]).await;
    until("the running server has heard of the source", || async {
        let answer = here.get("/v2/open/theirs/manifests/1", Some(&token)).await;
        answer.status.is_success().then_some(())
    })
    .await;
    assert!(client.pull("open/mine:1").await.bytes() == ours.bytes(), "what is pushed here stays ours");
    let refused = client.push(&ours, "open/other:1").await;
    assert!(!refused.status.success() && refused.all().contains("comes from the source `there`"), "{}", refused.all());
    there.close().await;
    here.close().await;
}
