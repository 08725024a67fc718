//! Clients that build images and unpack them for containers.

use larder_e2e::{
    Ground, Server, not_tested,
    oci::{Client, Program},
    on_every_ground, setting,
};

use crate::registry;

on_every_ground!(
    buildah_builds_an_image_pushes_it_and_another_machine_finds_its_files,
    podman_pulls_what_buildah_built_and_pushes_it_on,
);

const RECIPE: &str = r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "echo built > /built"]
"#;

async fn buildah_builds_an_image_pushes_it_and_another_machine_finds_its_files(ground: Ground) {
    let (server, token) = registry(ground).await;
    let (Some(builder), Some(skopeo), Some(umoci)) = (
        builder(&server, &token).await,
        Client::new(Program::Skopeo, &server.url()),
        Client::new(Program::Umoci, &server.url()),
    ) else {
        return;
    };
    skopeo.log_in(&token).await.ok();
    let pulled = skopeo.pull("team/built:1").await;
    let image = format!("{}:made", pulled.path().display());
    umoci.ok(&["unpack", "--image", &image, "bundle"]).await;
    let unpacked = std::fs::read_to_string(umoci.folder().join("bundle/rootfs/built"));
    assert_eq!(unpacked.expect("the image holds what was built"), "built\n");
    // A machine that has nothing yet.
    let Some(other) = Client::new(Program::Buildah, &server.url()) else { return };
    other.log_in(&token).await.ok();
    let name = other.at("team/built:1");
    other.ok(&["pull", "--tls-verify=false", &name]).await;
    assert_eq!(id(&other, &name).await, id(&builder, "localhost/built").await);
    server.fsck().await;
    server.close().await;
}

async fn podman_pulls_what_buildah_built_and_pushes_it_on(ground: Ground) {
    let (server, token) = registry(ground).await;
    let Some(builder) = builder(&server, &token).await else { return };
    let Some(podman) = Client::new(Program::Podman, &server.url()) else { return };
    podman.log_in(&token).await.ok();
    let (built, onward) = (podman.at("team/built:1"), podman.at("team/onward:2"));
    podman.ok(&["pull", "--tls-verify=false", &built]).await;
    podman.ok(&["push", "--tls-verify=false", &built, &onward]).await;
    podman.ok(&["rmi", "--all", "--force"]).await;
    podman.ok(&["pull", "--tls-verify=false", &onward]).await;
    assert_eq!(id(&podman, &onward).await, id(&builder, "localhost/built").await);
    server.fsck().await;
    server.close().await;
}

/// A buildah that has built the image `localhost/built` and pushed it as `team/built:1`.
async fn builder(server: &Server, token: &str) -> Option<Client> {
    let buildah = Client::new(Program::Buildah, &server.url())?;
    let Some(busybox) = setting("LARDER_TEST_BUSYBOX") else {
        not_tested("images that buildah builds: LARDER_TEST_BUSYBOX is not set");
        return None;
    };
    buildah.log_in(token).await.ok();
    buildah.put("context/Dockerfile", RECIPE.as_bytes());
    std::fs::copy(busybox, buildah.folder().join("context/busybox")).expect("busybox can be copied");
    buildah.ok(&["bud", "--isolation", "chroot", "--tag", "localhost/built", "context"]).await;
    let to = format!("docker://{}", buildah.at("team/built:1"));
    buildah.ok(&["push", "--tls-verify=false", "localhost/built", &to]).await;
    Some(buildah)
}

/// The identity of an image, which is the digest of its configuration.
async fn id(client: &Client, name: &str) -> String {
    let field = if client.program() == Program::Buildah { "{{.FromImageID}}" } else { "{{.Id}}" };
    client.ok(&["inspect", "--type", "image", "--format", field, name]).await
}
