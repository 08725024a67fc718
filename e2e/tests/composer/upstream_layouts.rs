//! Every layout in which registries tell what they have: a client understands it, and through Larder it gets the same.

use larder_e2e::{
    Composer, Project, Upstream,
    upstream::{Asked, Catalogue, Layout},
};

/// The fixture is what a client understands: without this, all the rest would prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_install_from_every_layout_without_larder() {
    let catalogue = Catalogue::chain("initech", 7);
    for (name, layout) in Layout::each() {
        let upstream = Upstream::start(catalogue.clone(), layout).await;
        for composer in Composer::each() {
            let project = Project::at(&composer, &upstream.url());
            let ran = project.composer(&["require", "initech/part-07:^1.0", "initech/part-05:dev-main"]).await;
            assert!(ran.status.success(), "{name}: {}", ran.all());
            assert_eq!(project.locked().len(), 7, "{name}: {:?}", project.locked());
            let said =
                project.php(&Catalogue::telling(["initech/part-07", "initech/part-01", "initech/part-05"])).await;
            assert_eq!(said.ok(), "v1.2.0 v1.2.0 dev-main", "{name}");
        }
        let asked = upstream.asked();
        assert!(asked.iter().any(Asked::is_dist), "{name}: {asked:?}");
    }
}
