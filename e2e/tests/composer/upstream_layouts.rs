//! Every layout in which registries tell what they have: a client understands it, and through Larder it gets the same.

use larder_e2e::{
    Composer, Ground, Project, Server, Upstream, on_every_ground,
    upstream::{Asked, Catalogue, Layout},
};

use crate::upstream::follow;

on_every_ground!(clients_install_from_every_layout_through_larder);

/// The fixture is what a client understands: without this, all the rest would prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_install_from_every_layout_without_larder() {
    let catalogue = Catalogue::chain("initech", 7);
    for (name, layout) in Layout::each() {
        let upstream = Upstream::start(catalogue.clone(), layout).await;
        for composer in Composer::each() {
            install(&Project::at(&composer, &upstream.url()), "initech", name).await;
        }
        let asked = upstream.asked();
        assert!(asked.iter().any(Asked::is_dist), "{name}: {asked:?}");
    }
}

async fn clients_install_from_every_layout_through_larder(ground: Ground) {
    let server = Server::start(ground).await;
    let token = server.token("ci", &[]).await;
    let mut upstreams = Vec::new();
    for (number, (name, layout)) in Layout::each().into_iter().enumerate() {
        let vendor = format!("vendor{number}");
        let upstream = Upstream::start(Catalogue::chain(&vendor, 7), layout).await;
        follow(&server, &vendor, &upstream, &vendor, &["--only", &format!("{vendor}/*")]).await;
        for composer in Composer::each() {
            install(&Project::new(&composer, &server, &token), &vendor, name).await;
        }
        upstreams.push((name, vendor, upstream));
    }
    for (_, _, upstream) in &mut upstreams {
        upstream.stop().await;
    }
    for (name, vendor, upstream) in &upstreams {
        for composer in Composer::each() {
            install(&Project::new(&composer, &server, &token), vendor, name).await;
        }
        // Everything about a version but where it is passes through.
        for version in server.versions(&token, &format!("{vendor}/part-07"), false).await {
            let release = upstream.catalogue();
            let release = release.get(&format!("{vendor}/part-07"), version["version"].as_str().unwrap_or_default());
            for (key, value) in &release.manifest {
                assert_eq!(version[key], *value, "{name}: {key}");
            }
            assert_eq!(version["version_normalized"], release.normalized(), "{name}");
        }
    }
    server.fsck().await;
    server.close().await;
}

async fn install(project: &Project, vendor: &str, layout: &str) {
    let [one, five, seven] = ["01", "05", "07"].map(|number| format!("{vendor}/part-{number}"));
    let ran = project.composer(&["require", &format!("{seven}:^1.0"), &format!("{five}:dev-main")]).await;
    assert!(ran.status.success(), "{layout}: {}", ran.all());
    assert_eq!(project.locked().len(), 7, "{layout}: {:?}", project.locked());
    let said = project.php(&Catalogue::telling([one.as_str(), &five, &seven])).await;
    assert_eq!(said.ok(), "v1.2.0 dev-main v1.2.0", "{layout}");
}
