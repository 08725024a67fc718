//! What is no image: files, what refers to images (signatures, bills of materials), charts.

use larder_e2e::{
    Ground,
    oci::{Client, Image, Layout, Program},
    on_every_ground,
};
use serde_json::Value;

use crate::registry;

on_every_ground!(
    oras_pushes_files_and_finds_what_is_attached_to_them,
    regctl_finds_what_refers_to_an_image_and_copies_it_along,
    cosign_signs_images_and_verifies_them_by_what_refers_to_them,
    helm_pushes_a_chart_and_pulls_the_same_one,
);

async fn oras_pushes_files_and_finds_what_is_attached_to_them(ground: Ground) {
    let (server, token) = registry(ground).await;
    let Some(oras) = Client::new(Program::Oras, &server.url()) else { return };
    oras.log_in(&token).await.ok();
    oras.put("model.bin", &vec![7; 100_000]);
    oras.put("bill.json", b"{\"parts\":[]}");
    oras.put("scan.txt", b"clean\n");
    let at = oras.at("team/model:1");
    let push = ["push", "--plain-http", "--artifact-type", "application/vnd.test.model"];
    oras.ok(&[&push[..], &[&at, "model.bin:application/octet-stream"]].concat()).await;
    for (kind, file) in [("bill", "bill.json"), ("scan", "scan.txt")] {
        let kind = format!("application/vnd.test.{kind}");
        oras.ok(&["attach", "--plain-http", "--artifact-type", &kind, &at, file]).await;
    }
    let discover = ["discover", "--plain-http", "--format", "json", &at];
    assert_eq!(kinds(&oras.ok(&discover).await), ["application/vnd.test.bill", "application/vnd.test.scan"]);
    let only = [&discover[..], &["--artifact-type", "application/vnd.test.scan"]].concat();
    let scans = oras.ok(&only).await;
    assert_eq!(kinds(&scans), ["application/vnd.test.scan"]);
    assert_eq!(oras.tags("team/model").await, ["1"], "referrers need no tags");
    let scan: Value = serde_json::from_str(&scans).expect("oras says what it found as JSON");
    let scan = scan["referrers"][0]["reference"].as_str().expect("a referrer has a reference");
    for reference in [at.as_str(), scan] {
        oras.ok(&["pull", "--plain-http", "--output", "pulled", reference]).await;
    }
    for file in ["model.bin", "scan.txt"] {
        let [pushed, pulled] = [oras.folder(), oras.folder().join("pulled")].map(|folder| folder.join(file));
        let [pushed, pulled] = [pushed, pulled].map(|path| std::fs::read(path).expect("the file is there"));
        assert!(pushed == pulled, "{file} is the same");
    }
    oras.ok(&["manifest", "delete", "--force", "--plain-http", scan]).await;
    assert_eq!(kinds(&oras.ok(&discover).await), ["application/vnd.test.bill"]);
    server.fsck().await;
    server.close().await;
}

async fn regctl_finds_what_refers_to_an_image_and_copies_it_along(ground: Ground) {
    let (server, token) = registry(ground).await;
    let Some(regctl) = Client::new(Program::Regctl, &server.url()) else { return };
    regctl.log_in(&token).await.ok();
    let made = Layout::of_image(&Image::new(1, 2, 1_000));
    regctl.push(&made, "team/app:1").await.ok();
    let (from, to) = (regctl.at("team/app:1"), regctl.at("mirror/app:1"));
    let put = ["artifact", "put", "--artifact-type", "application/vnd.test.bill", "--subject", &from];
    regctl.run_with(&put, "{}").await.ok();
    let list = async |reference: &str| {
        regctl
            .ok(&["artifact", "list", "--format", "{{range .Descriptors}}{{.ArtifactType}}\n{{end}}", reference])
            .await
    };
    assert_eq!(list(&from).await, "application/vnd.test.bill");
    regctl.ok(&["image", "copy", "--referrers", &from, &to]).await;
    assert_eq!(list(&to).await, "application/vnd.test.bill");
    for repository in ["team/app", "mirror/app"] {
        assert_eq!(regctl.tags(repository).await, ["1"], "referrers need no tags");
    }
    server.fsck().await;
    server.close().await;
}

async fn cosign_signs_images_and_verifies_them_by_what_refers_to_them(ground: Ground) {
    let (server, token) = registry(ground).await;
    let (Some(cosign), Some(crane)) =
        (Client::new(Program::Cosign, &server.url()), Client::new(Program::Crane, &server.url()))
    else {
        return;
    };
    for client in [&cosign, &crane] {
        client.log_in(&token).await.ok();
    }
    let [signed, unsigned] = [1, 2].map(|seed| Layout::of_image(&Image::new(seed, 1, 1_000)));
    crane.push(&signed, "team/signed:1").await.ok();
    crane.push(&unsigned, "team/unsigned:1").await.ok();
    cosign.ok(&["generate-key-pair"]).await;
    cosign.put("predicate.json", b"{\"tested\":true}");
    let http = ["--allow-http-registry", "--allow-insecure-registry"];
    let alone = ["--key", "cosign.key", "--yes", "--use-signing-config=false", "--tlog-upload=false"];
    let check = ["--key", "cosign.pub", "--insecure-ignore-tlog"];
    let image = cosign.at(&format!("team/signed@{}", signed.digest()));
    cosign.ok(&[&["sign"], &http[..], &alone, &[&image]].concat()).await;
    let attest = ["attest", "--type", "custom", "--predicate", "predicate.json"];
    cosign.ok(&[&attest[..], &http, &alone, &[&image]].concat()).await;
    let verified = cosign.ok(&[&["verify"], &http[..], &check, &[&cosign.at("team/signed:1")]].concat()).await;
    assert!(verified.contains(&signed.digest()), "{verified}");
    cosign.ok(&[&["verify-attestation", "--type", "custom"], &http[..], &check, &[&image]].concat()).await;
    let refused = cosign.run(&[&["verify"], &http[..], &check, &[&cosign.at("team/unsigned:1")]].concat()).await;
    assert!(!refused.status.success(), "an image without a signature is not verified: {}", refused.all());
    assert_eq!(crane.tags("team/signed").await, ["1"], "signatures need no tags");
    server.fsck().await;
    server.close().await;
}

async fn helm_pushes_a_chart_and_pulls_the_same_one(ground: Ground) {
    let (server, token) = registry(ground).await;
    let Some(helm) = Client::new(Program::Helm, &server.url()) else { return };
    helm.log_in(&token).await.ok();
    helm.put("shop/Chart.yaml", b"apiVersion: v2\nname: shop\ndescription: A shop\nversion: 1.2.3+build.7\n");
    helm.put("shop/templates/till.yaml", b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: till\n");
    helm.ok(&["package", "shop"]).await;
    let charts = format!("oci://{}", helm.at("team/charts"));
    let chart = format!("{charts}/shop");
    helm.ok(&["push", "--plain-http", "shop-1.2.3+build.7.tgz", &charts]).await;
    std::fs::create_dir(helm.folder().join("pulled")).expect("a folder can be made");
    helm.ok(&["pull", "--plain-http", &chart, "--version", "1.2.3+build.7", "--destination", "pulled"]).await;
    let [packed, pulled] = ["", "pulled"].map(|below| helm.folder().join(below).join("shop-1.2.3+build.7.tgz"));
    let [packed, pulled] = [packed, pulled].map(|path| std::fs::read(path).expect("the chart is there"));
    assert!(packed == pulled, "the chart is the same");
    // Without a version it takes the newest, which it finds among the tags.
    let shown = helm.ok(&["show", "chart", "--plain-http", &chart]).await;
    assert!(shown.contains("version: 1.2.3+build.7"), "{shown}");
    let rendered = helm.ok(&["template", "--plain-http", "till", &chart]).await;
    assert!(rendered.contains("kind: ConfigMap"), "{rendered}");
    server.fsck().await;
    server.close().await;
}

/// The kinds of what refers to an artifact, sorted.
fn kinds(discovered: &str) -> Vec<String> {
    let document: Value = serde_json::from_str(discovered).expect("oras says what it found as JSON");
    let referrers = document["referrers"].as_array().cloned().unwrap_or_default();
    let mut kinds: Vec<_> =
        referrers.iter().map(|one| one["artifactType"].as_str().unwrap_or_default().to_owned()).collect();
    kinds.sort();
    kinds
}
