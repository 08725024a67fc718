//! A crowd that wants everything at once from a server that has nothing yet: the upstream is asked for each file once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use larder_e2e::{
    Composer, Ground, Project, Server, Upstream, on_every_ground,
    upstream::{Catalogue, Fault, Layout, Protocol},
    wire,
};

use crate::upstream::{dist_path, following};

on_every_ground!(
    fifty_cold_installs_at_once_ask_for_each_file_once,
    fifty_cold_installs_from_a_registry_with_hashes_ask_for_each_file_once,
);

/// Installs that only ask, beside those of real clients.
const WALKERS: usize = 44;

async fn fifty_cold_installs_at_once_ask_for_each_file_once(ground: Ground) {
    crowd(ground, Layout::of(Protocol::Metadata)).await;
}

async fn fifty_cold_installs_from_a_registry_with_hashes_ask_for_each_file_once(ground: Ground) {
    crowd(ground, Layout::shop()).await;
}

async fn crowd(ground: Ground, layout: Layout) {
    let catalogue = Arc::new(Catalogue::chain("initech", 30));
    let upstream = Upstream::start(catalogue.as_ref().clone(), layout).await;
    // So long that the crowd comes while the first one waits.
    upstream.fault("*", Fault::Slow(Duration::from_millis(100)));
    let (server, token) = following(ground, &upstream, &[]).await;
    let server = Arc::new(server);
    let walkers: Vec<_> = (0..WALKERS)
        .map(|number| {
            let (server, token, catalogue) = (Arc::clone(&server), token.clone(), Arc::clone(&catalogue));
            tokio::spawn(async move { walk(&server, &token, &catalogue, number).await })
        })
        .collect();
    let clients: Vec<_> = Composer::each()
        .into_iter()
        .cycle()
        .take(6)
        .map(|composer| {
            let (server, token) = (Arc::clone(&server), token.clone());
            tokio::spawn(async move {
                let project = Project::new(&composer, &server, &token);
                project.composer(&["require", "initech/part-30:^1.0"]).await.ok();
                assert_eq!(project.locked().len(), 30);
            })
        })
        .collect();
    for one in walkers.into_iter().chain(clients) {
        one.await.expect("everybody gets everything");
    }
    let mut counts = BTreeMap::<String, usize>::new();
    for asked in upstream.asked() {
        *counts.entry(format!("{} {} {}", asked.method, asked.path, asked.status)).or_default() += 1;
    }
    let again: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(again.is_empty(), "each file is asked for once: {again:?}");
    assert_eq!(counts.keys().filter(|line| line.contains(".zip")).count(), 30, "{counts:?}");
    server.fsck().await;
    let server = Arc::into_inner(server).expect("everybody is done");
    server.close().await;
}

/// What an install asks for, from another package on for each one, and whether it gets the right bytes.
async fn walk(server: &Server, token: &str, catalogue: &Catalogue, first: usize) {
    let root = server.get("/packages.json", Some(token)).await;
    assert!(root.status.is_success(), "{}", root.text());
    let names = catalogue.names();
    for number in 0..names.len() {
        let name = names[(first + number) % names.len()];
        let path = dist_path(server, token, name, "v1.2.0").await;
        let answer = wire::send(server.address(), wire::get(&path, Some(token))).await.expect("the dist comes whole");
        assert!(answer.status.is_success(), "{name}: {}", answer.text());
        assert!(answer.body == catalogue.get(name, "v1.2.0").zip, "{name} has the right bytes");
    }
}
