//! Who is asking, and with what: tokens in the headers, the passes that clients fetch for them, and those who have neither.
//! Docker's token authentication, as its documentation describes it.

use http::{Method, StatusCode, header};
use larder_e2e::{
    Ground, Server,
    oci::{Ask, Blob, Manifest, Registry, Way, put_manifest},
    on_every_ground, until,
    wire::{self, Answer},
};
use serde_json::Value;

use crate::{refused, spoken};

on_every_ground!(
    whoever_shows_nothing_or_nonsense_is_told_where_to_log_in,
    a_token_does_what_it_is_granted_and_learns_of_nothing_else,
    a_pass_does_what_was_asked_for_and_no_more_than_its_token,
    a_pass_dies_with_its_token,
    an_identity_token_is_good_for_passes_and_for_nothing_else,
    what_is_open_is_pulled_without_a_token,
);

const NONE: StatusCode = StatusCode::NOT_FOUND;
const WHO: StatusCode = StatusCode::UNAUTHORIZED;

fn bearer(text: &str) -> String {
    format!("Bearer {text}")
}

async fn whoever_shows_nothing_or_nonsense_is_told_where_to_log_in(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let base = registry.ask(Ask::get("/v2/")).await;
    assert_eq!(base.status, StatusCode::OK, "{}", base.text());
    assert_eq!(base.header("docker-distribution-api-version"), "registry/2.0");
    let wrong = "lrd_0000000000000000000000000000000000000000000000";
    for shown in [
        None,
        Some(bearer(wrong)),
        Some(bearer("nonsense")),
        Some(bearer("eyJhbGciOiJub25lIn0.eyJzdWIiOiJjaSJ9.")),
        Some(wire::basic("ci", wrong)),
        Some("Basic nonsense".to_owned()),
    ] {
        let somebody = registry.as_somebody(shown.clone());
        for (ask, scope) in [
            (Ask::get("/v2/"), ""),
            (Ask::get("/v2/team/app/manifests/1"), "repository:team/app:pull"),
            (Ask::head("/v2/team/app/manifests/1"), "repository:team/app:pull"),
            (Ask::post("/v2/team/app/blobs/uploads/"), "repository:team/app:pull,push"),
            (Ask::delete("/v2/team/app/manifests/1"), "repository:team/app:delete"),
        ] {
            let answer = somebody.ask(ask.clone()).await;
            assert_eq!(answer.status, WHO, "{ask} as {shown:?}: {}", answer.text());
            let challenge = answer.header("www-authenticate");
            let realm = format!("Bearer realm=\"{}/v2/token\",service=\"", server.url());
            assert!(challenge.starts_with(&realm), "{challenge}");
            assert!(scope.is_empty() || challenge.contains(&format!("scope=\"{scope}\"")), "{challenge}");
            if !ask.to_string().starts_with("HEAD") {
                refused(&somebody, ask, WHO, "UNAUTHORIZED").await;
            }
        }
    }
    let wrong = registry.as_somebody(Some(wire::basic("ci", wrong)));
    assert_eq!(wrong.ask(Ask::get("/v2/token?service=x")).await.status, WHO, "no pass for a wrong token");
    server.close().await;
}

async fn a_token_does_what_it_is_granted_and_learns_of_nothing_else(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let image = Manifest::image("theirs", &[Blob::noise(1, 1_000)]);
    for repository in ["theirs/app", "ours/app"] {
        registry.push(repository, "1", &image).await.expect("an image is pushed");
    }
    let reader = server.token("reader", &["read:oci:ours/*"]).await;
    let reader = registry.as_somebody(Some(wire::basic("ci", &reader)));
    assert_eq!(reader.pull("ours/app", "1").await.expect("it may read"), image.digest());
    let (digest, layer) = (image.digest(), &image.blobs[1].digest);
    for (method, path) in [
        (Method::PUT, "/v2/ours/app/manifests/2".to_owned()),
        (Method::DELETE, "/v2/ours/app/manifests/1".to_owned()),
        (Method::DELETE, format!("/v2/ours/app/manifests/{digest}")),
        (Method::DELETE, format!("/v2/ours/app/blobs/{layer}")),
        (Method::POST, "/v2/ours/app/blobs/uploads/".to_owned()),
        (Method::POST, format!("/v2/ours/app/blobs/uploads/?mount={layer}&from=ours/app")),
    ] {
        refused(&reader, Ask::new(method, path).body("{}"), StatusCode::FORBIDDEN, "DENIED").await;
    }
    // Whatever is asked of what is hidden, the answer is that of what is not there.
    let publisher = server.token("publisher", &["*:oci:ours/*"]).await;
    let publisher = registry.as_somebody(Some(wire::basic("ci", &publisher)));
    for somebody in [&reader, &publisher] {
        for (method, rest) in [
            (Method::GET, "manifests/1".to_owned()),
            (Method::HEAD, "manifests/1".to_owned()),
            (Method::GET, format!("manifests/{digest}")),
            (Method::PUT, "manifests/1".to_owned()),
            (Method::DELETE, "manifests/1".to_owned()),
            (Method::GET, format!("blobs/{layer}")),
            (Method::HEAD, format!("blobs/{layer}")),
            (Method::DELETE, format!("blobs/{layer}")),
            (Method::POST, "blobs/uploads/".to_owned()),
            (Method::POST, format!("blobs/uploads/?mount={layer}&from=ours/app")),
            (Method::GET, "tags/list".to_owned()),
            (Method::GET, format!("referrers/{digest}")),
        ] {
            let [hidden, absent] = ["theirs/app", "absent/app"].map(|repository| {
                let ask = Ask::new(method.clone(), format!("/v2/{repository}/{rest}"));
                if method == Method::PUT { ask.body(image.blob.bytes.clone()) } else { ask }
            });
            let (hidden, absent) = (somebody.ask(hidden).await, somebody.ask(absent).await);
            assert!(hidden.status.is_client_error(), "{method} {rest}: {}", hidden.status);
            assert_eq!(faceless(&hidden, "theirs/app"), faceless(&absent, "absent/app"), "{method} {rest}");
        }
        let catalog = somebody.ask(Ask::get("/v2/_catalog")).await.json();
        assert_eq!(catalog["repositories"], serde_json::json!(["ours/app"]));
    }
    // An upload belongs to who began it, and to its repository.
    let at = registry.begin("ours/app").await.expect("an upload begins");
    for ask in [Ask::get(&at), Ask::patch(&at).stream("x"), Ask::delete(&at)] {
        refused(&publisher, ask, NONE, "BLOB_UPLOAD_UNKNOWN").await;
    }
    let elsewhere = at.replace("ours/app", "theirs/app");
    refused(&registry, Ask::get(elsewhere), NONE, "BLOB_UPLOAD_UNKNOWN").await;
    assert_eq!(registry.ask(Ask::get(&at)).await.status, StatusCode::NO_CONTENT, "it goes on for who began it");
    server.close().await;
}

/// All that an answer tells, but for the name that was asked for and the time.
fn faceless(answer: &Answer, name: &str) -> (StatusCode, Vec<(String, String)>, String) {
    let value = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).replace(name, "NAME");
    let headers = answer.headers.iter().filter(|(name, _)| *name != header::DATE);
    let mut headers: Vec<_> = headers.map(|(name, text)| (name.to_string(), value(text))).collect();
    headers.sort();
    (answer.status, headers, answer.text().replace(name, "NAME"))
}

/// Asks for a pass for these scopes.
async fn pass(registry: &Registry, scopes: &[&str]) -> String {
    let scopes: Vec<String> = scopes.iter().map(|scope| format!("scope={scope}")).collect();
    let answer = registry.ask(Ask::get(format!("/v2/token?service=larder.test&{}", scopes.join("&")))).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["token"], answer["access_token"]);
    assert!(answer["expires_in"].as_u64().is_some_and(|seconds| seconds >= 60), "{}", answer["expires_in"]);
    assert!(answer["issued_at"].is_string());
    answer["token"].as_str().expect("a pass is a text").to_owned()
}

async fn a_pass_does_what_was_asked_for_and_no_more_than_its_token(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let image = Manifest::image("pass", &[Blob::noise(1, 1_000)]);
    for repository in ["team/app", "team/other", "theirs/app"] {
        registry.push(repository, "1", &image).await.expect("an image is pushed");
    }
    let ours = server.token("ours", &["read,publish:oci:team/*"]).await;
    let ours = registry.as_somebody(Some(wire::basic("any", &ours)));
    let with = async |scopes: &[&str]| {
        let pass = pass(&ours, scopes).await;
        server.guard(&pass);
        registry.as_somebody(Some(bearer(&pass)))
    };
    let puller = with(&["repository:team/app:pull"]).await;
    assert_eq!(puller.ask(Ask::get("/v2/")).await.status, StatusCode::OK);
    assert_eq!(puller.pull("team/app", "1").await.expect("it was asked for"), image.digest());
    for ask in [
        Ask::post("/v2/team/app/blobs/uploads/"),
        Ask::get("/v2/team/other/manifests/1"),
        Ask::delete("/v2/team/app/manifests/1"),
    ] {
        let answer = puller.ask(ask.clone()).await;
        assert!(answer.status == WHO || answer.status == StatusCode::FORBIDDEN, "{ask}: {}", answer.status);
        if answer.status == WHO {
            // Clients fetch another pass when they hear this.
            let challenge = answer.header("www-authenticate");
            assert!(challenge.contains("scope=\"repository:team/"), "{challenge}");
        }
    }
    // As docker asks for a push with a mount, in one parameter and in two.
    for scopes in [
        &["repository:team/new:pull,push", "repository:team/app:pull"][..],
        &["repository:team/new:pull,push%20repository:team/app:pull"],
    ] {
        let pusher = with(scopes).await;
        let mount = format!("/v2/team/new/blobs/uploads/?mount={}&from=team/app", image.blobs[1].digest);
        assert_eq!(pusher.ask(Ask::post(mount)).await.status, StatusCode::CREATED);
        pusher.push("team/new", "1", &image).await.expect("it was asked for");
    }
    // More than the token has is not given, whatever is asked for.
    let greedy = with(&["repository:theirs/app:pull,push,delete", "repository:team/app:*", "registry:catalog:*"]).await;
    greedy.push("team/app", "2", &image).await.expect("the token may publish");
    let [hidden, absent] = ["theirs/app", "theirs/non"].map(|name| Ask::get(format!("/v2/{name}/manifests/1")));
    let [hidden, absent] = [greedy.ask(hidden).await, greedy.ask(absent).await];
    assert!(hidden.status.is_client_error());
    assert_eq!(faceless(&hidden, "theirs/app"), faceless(&absent, "theirs/non"));
    let deleted = greedy.ask(Ask::delete("/v2/team/app/manifests/1")).await.status;
    assert!(deleted == WHO || deleted == StatusCode::FORBIDDEN, "{deleted}");
    let catalog = greedy.ask(Ask::get("/v2/_catalog")).await.json();
    assert!(!catalog.to_string().contains("theirs"), "{catalog}");
    for scopes in [&["nonsense"][..], &["repository:UPPER:pull"], &["repository:team/app:fly"], &[]] {
        let nothing = with(scopes).await;
        assert_eq!(nothing.ask(Ask::get("/v2/")).await.status, StatusCode::OK, "it is known who asks");
        assert!(nothing.ask(Ask::get("/v2/team/app/manifests/1")).await.status.is_client_error(), "{scopes:?}");
    }
    // A pass makes no other.
    let again = puller.ask(Ask::get("/v2/token?scope=repository:team/app:pull,push")).await;
    assert!(again.status.is_client_error(), "{} {}", again.status, again.text());
    server.close().await;
}

async fn a_pass_dies_with_its_token(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    registry.push("team/app", "1", &Manifest::image("dies", &[])).await.expect("an image is pushed");
    let holders = async |name: &str| {
        let token = server.token(name, &["read:oci:*"]).await;
        let holder = registry.as_somebody(Some(wire::basic("any", &token)));
        let pass = registry.as_somebody(Some(bearer(&pass(&holder, &["repository:team/app:pull"]).await)));
        assert!(pass.pull("team/app", "1").await.is_ok() && holder.pull("team/app", "1").await.is_ok());
        [holder, pass]
    };
    let (revoked, rotated) = (holders("revoked").await, holders("rotated").await);
    server.ok(&["token", "revoke", "revoked"]).await;
    server.guard(&server.ok(&["token", "rotate", "rotated"]).await);
    for dead in revoked.iter().chain(&rotated) {
        until("it is dead", || async {
            let status = dead.ask(Ask::get("/v2/team/app/manifests/1")).await.status;
            assert!(status == WHO || status == StatusCode::OK, "{status}");
            (status == WHO).then_some(())
        })
        .await;
    }
    server.close().await;
}

async fn an_identity_token_is_good_for_passes_and_for_nothing_else(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    registry.push("team/app", "1", &Manifest::image("identity", &[])).await.expect("an image is pushed");
    let secret = server.token("identity", &["read:oci:team/*"]).await;
    let nobody = registry.as_somebody(None);
    let form = |fields: &str| {
        let ask = Ask::post("/v2/token").with(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        ask.body(format!("service=larder.test&client_id=test&{fields}"))
    };
    let scope = "scope=repository:team/app:pull";
    let password = format!("grant_type=password&username=any&password={secret}&access_type=offline&{scope}");
    let given = nobody.ask(form(&password)).await;
    assert_eq!(given.status, StatusCode::OK, "{}", given.text());
    let given: Value = given.json();
    let [access, refresh] =
        ["access_token", "refresh_token"].map(|name| given[name].as_str().unwrap_or_default().to_owned());
    assert!(!access.is_empty() && !refresh.is_empty() && access != refresh, "{given}");
    for text in [&access, &refresh] {
        server.guard(text);
    }
    registry.as_somebody(Some(bearer(&access))).pull("team/app", "1").await.expect("the pass pulls");
    let direct = registry.as_somebody(Some(bearer(&refresh))).ask(Ask::get("/v2/team/app/manifests/1")).await;
    assert_eq!(direct.status, WHO, "it opens no repository itself");
    let refreshed = nobody.ask(form(&format!("grant_type=refresh_token&refresh_token={refresh}&{scope}"))).await;
    assert_eq!(refreshed.status, StatusCode::OK, "{}", refreshed.text());
    let access = refreshed.json()["access_token"].as_str().unwrap_or_default().to_owned();
    registry.as_somebody(Some(bearer(&access))).pull("team/app", "1").await.expect("the pass of a refresh pulls");
    for fields in [
        "grant_type=password&username=any&password=wrong".to_owned(),
        format!("grant_type=refresh_token&refresh_token={access}"),
        "grant_type=refresh_token&refresh_token=nonsense".to_owned(),
        "grant_type=magic".to_owned(),
        String::new(),
    ] {
        let answer = nobody.ask(form(&fields)).await;
        assert!(answer.status.is_client_error(), "{fields}: {} {}", answer.status, answer.text());
    }
    let long = format!("grant_type=password&{}", "x".repeat(1 << 20));
    assert!(nobody.ask(form(&long)).await.status.is_client_error());
    // Asked for by GET, as those clients do that know no forms.
    let holder = registry.as_somebody(Some(wire::basic("any", &secret)));
    let offline = holder.ask(Ask::get(format!("/v2/token?service=larder.test&offline_token=true&{scope}"))).await;
    assert!(offline.json()["refresh_token"].is_string(), "{}", offline.text());
    server.ok(&["token", "revoke", "identity"]).await;
    until("it dies with its token", || async {
        let answer = nobody.ask(form(&format!("grant_type=refresh_token&refresh_token={refresh}&{scope}"))).await;
        (answer.status == WHO).then_some(())
    })
    .await;
    server.close().await;
}

async fn what_is_open_is_pulled_without_a_token(ground: Ground) {
    let (server, registry): (Server, Registry) = spoken(ground).await;
    let image = Manifest::image("open", &[Blob::noise(1, 1_000)]);
    for repository in ["open/app", "closed/app"] {
        registry.push(repository, "1", &image).await.expect("an image is pushed");
    }
    server.ok(&["grant", "add", "anonymous", "read:oci:open/*"]).await;
    let nobody = registry.as_somebody(None);
    until("it is open", || async { nobody.pull("open/app", "1").await.ok() }).await;
    let base = nobody.ask(Ask::get("/v2/")).await;
    assert_eq!(base.status, WHO, "or clients would never log in");
    let pass = pass(&nobody, &["repository:open/app:pull,push", "repository:closed/app:pull"]).await;
    let holder = registry.as_somebody(Some(bearer(&pass)));
    assert_eq!(holder.pull("open/app", "1").await.expect("it is open"), image.digest());
    for somebody in [&nobody, &holder] {
        for ask in [
            Ask::get("/v2/closed/app/manifests/1"),
            Ask::post("/v2/open/app/blobs/uploads/"),
            put_manifest("open/app", "2", &image),
            Ask::delete("/v2/open/app/manifests/1"),
        ] {
            refused(somebody, ask, WHO, "").await;
        }
        let trouble = somebody.push_blob("open/app", &image.blobs[1], Way::Post).await;
        assert!(trouble.is_err_and(|trouble| trouble.answer().is_some_and(|answer| answer.status == WHO)));
    }
    server.close().await;
}
