//! Who may pull, push and delete, as the clients see it.

use larder_e2e::{
    Ground,
    oci::{Client, Image, Layout, Program},
    on_every_ground,
};

use crate::registry;

on_every_ground!(
    a_token_that_only_reads_pulls_and_neither_pushes_nor_deletes,
    a_repository_that_a_token_may_not_see_is_not_there_for_it,
    people_without_a_token_pull_what_is_open_to_them,
    a_wrong_token_logs_nobody_in,
);

async fn a_token_that_only_reads_pulls_and_neither_pushes_nor_deletes(ground: Ground) {
    let (server, token) = registry(ground).await;
    let reader = server.token("reader", &["read:oci:*"]).await;
    let made = Layout::of_image(&Image::new(1, 2, 1_000));
    let other = Layout::of_image(&Image::new(2, 2, 1_000));
    for client in Client::each(&Program::COPIERS, &server.url()) {
        client.log_in(&token).await.ok();
        client.push(&made, "team/app:1").await.ok();
        client.log_in(&reader).await.ok();
        assert!(client.pull("team/app:1").await.bytes() == made.bytes(), "{client:?}");
        let (pushed, deleted) = (client.push(&other, "team/app:2").await, client.delete("team/app:1").await);
        assert!(!pushed.status.success() && !deleted.status.success(), "{}{}", pushed.all(), deleted.all());
        assert_eq!(client.tags("team/app").await, ["1"], "{client:?}");
    }
    server.close().await;
}

async fn a_repository_that_a_token_may_not_see_is_not_there_for_it(ground: Ground) {
    let (server, token) = registry(ground).await;
    let ours = server.token("ours", &["*:oci:ours/**"]).await;
    let made = Layout::of_image(&Image::new(1, 2, 1_000));
    for client in Client::each(&Program::COPIERS, &server.url()) {
        client.log_in(&token).await.ok();
        client.push(&made, "theirs/app:1").await.ok();
        client.log_in(&ours).await.ok();
        // Its layers are stored already, under a name that this token may not read: that must help nobody.
        client.push(&made, "ours/app:1").await.ok();
        assert!(client.pull("ours/app:1").await.bytes() == made.bytes(), "{client:?}");
        let refused = client.push(&made, "theirs/app:2").await;
        assert!(!refused.status.success(), "{}", refused.all());
    }
    if let Some(crane) = Client::new(Program::Crane, &server.url()) {
        crane.log_in(&ours).await.ok();
        let [hidden, absent] = ["theirs/app:1", "theirs/none:1"].map(|reference| crane.at(reference));
        let [hidden, absent] = [crane.run(&["digest", &hidden]).await, crane.run(&["digest", &absent]).await];
        assert!(!hidden.status.success());
        let said =
            |ran: &larder_e2e::Ran, name: &str| ran.stderr.replace(name, "").replace(|c: char| c.is_ascii_digit(), "");
        assert_eq!(said(&hidden, "theirs/app"), said(&absent, "theirs/none"), "one is as absent as the other");
        let at = crane.at("");
        assert_eq!(crane.ok(&["catalog", at.trim_end_matches('/')]).await, "ours/app");
    }
    server.close().await;
}

async fn people_without_a_token_pull_what_is_open_to_them(ground: Ground) {
    let (server, token) = registry(ground).await;
    server.ok(&["grant", "add", "anonymous", "read:oci:open/*"]).await;
    let made = Layout::of_image(&Image::new(1, 2, 1_000));
    for client in Client::each(&Program::COPIERS, &server.url()) {
        client.log_in(&token).await.ok();
        client.push(&made, "open/app:1").await.ok();
        client.push(&made, "closed/app:1").await.ok();
        let Some(anybody) = Client::new(client.program(), &server.url()) else { continue };
        assert!(anybody.pull("open/app:1").await.bytes() == made.bytes(), "{anybody:?}");
        assert_eq!(anybody.tags("open/app").await, ["1"], "{anybody:?}");
        for refused in [anybody.push(&made, "open/app:2").await, anybody.delete("open/app:1").await] {
            assert!(!refused.status.success(), "{}", refused.all());
        }
    }
    if let Some(anybody) = Client::new(Program::Crane, &server.url()) {
        let refused = anybody.run(&["digest", &anybody.at("closed/app:1")]).await;
        assert!(!refused.status.success(), "{}", refused.all());
    }
    server.close().await;
}

async fn a_wrong_token_logs_nobody_in(ground: Ground) {
    let (server, _) = registry(ground).await;
    let wrong = "lrd_0000000000000000000000000000000000000000000000";
    // Crane and cosign write down what they are told, and ask nobody.
    let asking = [Program::Buildah, Program::Helm, Program::Oras, Program::Podman, Program::Regctl, Program::Skopeo];
    for client in Client::each(&asking, &server.url()) {
        let ran = client.log_in(wrong).await;
        assert!(!ran.status.success(), "{client:?} is logged in: {}", ran.all());
    }
    server.close().await;
}
