//! Clients that copy images, and change no byte of them.

use larder_e2e::{
    Ground,
    oci::{Client, Image, Layout, Program},
    on_every_ground,
};

use crate::registry;

on_every_ground!(
    what_one_client_pushes_every_client_pulls_byte_for_byte,
    an_index_of_several_architectures_comes_back_whole,
    an_image_of_a_hundred_layers_comes_back_whole,
    every_client_pushes_the_same_image_at_once_and_all_succeed,
    a_tag_moves_and_what_it_named_stays,
    tags_are_listed_and_deleted_by_every_client,
    crane_copies_within_the_registry_and_lists_repositories,
);

async fn what_one_client_pushes_every_client_pulls_byte_for_byte(ground: Ground) {
    let (server, token) = registry(ground).await;
    let clients = logged_in(&server.url(), &token).await;
    for (seed, client) in (1..).zip(&clients) {
        let made = Layout::of_image(&Image::new(seed, 3, 100_000));
        let reference = format!("team/copy:{:?}", client.program());
        client.push(&made, &reference).await.ok();
        for other in &clients {
            assert_eq!(other.digest(&reference).await, made.digest(), "{other:?} sees {reference}");
            assert!(other.pull(&reference).await.bytes() == made.bytes(), "{other:?} pulls {reference}");
        }
    }
    server.fsck().await;
    server.close().await;
}

async fn an_index_of_several_architectures_comes_back_whole(ground: Ground) {
    let (server, token) = registry(ground).await;
    for (seed, client) in (1..).zip(logged_in(&server.url(), &token).await) {
        let image = |number: u64| Image::new(10 * seed + number, 2, 5_000);
        let made =
            Layout::of_index(&[image(0), image(1).for_architecture("arm64"), image(2).for_architecture("riscv64")]);
        let reference = format!("team/every/machine:{seed}");
        client.push(&made, &reference).await.ok();
        let pulled = client.pull(&reference).await;
        assert_eq!(pulled.digest(), made.digest(), "{client:?}");
        assert_eq!(pulled.bytes().len(), 1 + 3 * 4);
        assert!(pulled.bytes() == made.bytes(), "{client:?}");
    }
    server.fsck().await;
    server.close().await;
}

async fn an_image_of_a_hundred_layers_comes_back_whole(ground: Ground) {
    let (server, token) = registry(ground).await;
    for (seed, client) in (1..).zip(logged_in(&server.url(), &token).await) {
        let made = Layout::of_image(&Image::new(seed, 100, 300));
        let reference = format!("team/layers:{seed}");
        client.push(&made, &reference).await.ok();
        let pulled = client.pull(&reference).await;
        assert_eq!(pulled.bytes().len(), 102);
        assert!(pulled.bytes() == made.bytes(), "{client:?}");
    }
    server.fsck().await;
    server.close().await;
}

async fn every_client_pushes_the_same_image_at_once_and_all_succeed(ground: Ground) {
    let (server, token) = registry(ground).await;
    let clients = logged_in(&server.url(), &token).await;
    let [one, two, three, four] = clients.as_slice() else { return };
    for seed in 1..=3 {
        let made = Layout::of_image(&Image::new(seed, 5, 50_000));
        let reference = format!("team/crowd:{seed}");
        let (one, two, three, four) = tokio::join!(
            one.push(&made, &reference),
            two.push(&made, &reference),
            three.push(&made, &reference),
            four.push(&made, &reference)
        );
        for ran in [one, two, three, four] {
            ran.ok();
        }
        assert!(clients[0].pull(&reference).await.bytes() == made.bytes());
    }
    server.fsck().await;
    server.close().await;
}

async fn a_tag_moves_and_what_it_named_stays(ground: Ground) {
    let (server, token) = registry(ground).await;
    for (seed, client) in (1..).zip(logged_in(&server.url(), &token).await) {
        let [before, after] = [0, 1].map(|number| Layout::of_image(&Image::new(10 * seed + number, 2, 1_000)));
        let repository = format!("team/moves{seed}");
        let latest = format!("{repository}:latest");
        client.push(&before, &latest).await.ok();
        client.push(&after, &latest).await.ok();
        assert_eq!(client.digest(&latest).await, after.digest());
        let old = client.pull(&format!("{repository}@{}", before.digest())).await;
        assert!(old.bytes() == before.bytes(), "{client:?}");
    }
    server.close().await;
}

async fn tags_are_listed_and_deleted_by_every_client(ground: Ground) {
    let (server, token) = registry(ground).await;
    for (seed, client) in (1..).zip(logged_in(&server.url(), &token).await) {
        let [kept, gone] = [0, 1].map(|number| Layout::of_image(&Image::new(10 * seed + number, 1, 1_000)));
        let repository = format!("team/tags{seed}");
        for (layout, tag) in [(&kept, "1.0"), (&gone, "1.1"), (&kept, "latest")] {
            client.push(layout, &format!("{repository}:{tag}")).await.ok();
        }
        assert_eq!(client.tags(&repository).await, ["1.0", "1.1", "latest"], "{client:?}");
        client.delete(&format!("{repository}:1.1")).await.ok();
        assert_eq!(client.tags(&repository).await, ["1.0", "latest"], "{client:?}");
        assert!(client.pull(&format!("{repository}:latest")).await.bytes() == kept.bytes(), "{client:?}");
    }
    server.fsck().await;
    server.close().await;
}

async fn crane_copies_within_the_registry_and_lists_repositories(ground: Ground) {
    let (server, token) = registry(ground).await;
    let Some(crane) = Client::new(Program::Crane, &server.url()) else { return };
    crane.log_in(&token).await.ok();
    let made = Layout::of_image(&Image::new(1, 3, 50_000));
    crane.push(&made, "team/from:1").await.ok();
    crane.ok(&["copy", &crane.at("team/from:1"), &crane.at("other/to:2")]).await;
    crane.ok(&["tag", &crane.at("other/to:2"), "stable"]).await;
    assert!(crane.pull("other/to:stable").await.bytes() == made.bytes());
    let at = crane.at("");
    let repositories = crane.ok(&["catalog", at.trim_end_matches('/')]).await;
    assert_eq!(repositories.lines().collect::<Vec<_>>(), ["other/to", "team/from"]);
    crane.ok(&["validate", "--remote", &crane.at("other/to:2")]).await;
    server.fsck().await;
    server.close().await;
}

/// Every copier that this machine has, logged in.
async fn logged_in(url: &str, token: &str) -> Vec<Client> {
    let clients = Client::each(&Program::COPIERS, url);
    for client in &clients {
        client.log_in(token).await.ok();
    }
    clients
}
