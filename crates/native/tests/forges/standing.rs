//! What forges say of credentials.

use larder_core::Time;
use larder_db::credentials;
use larder_sources::forges::{ForgeKind, Standing};
use serde_json::json;

use crate::house::House;

async fn standing(house: &House) -> Standing {
    let credential = credentials::find(&house.db, "own").await.unwrap().unwrap();
    house.forges.standing(&credential).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn github_tells_of_account_scopes_and_end() {
    for house in House::each(ForgeKind::Github).await {
        house.credential("own", "github").await;
        let unbound = credentials::find(&house.db, "own").await.unwrap().unwrap();
        assert_eq!(house.forges.standing(&unbound).await.unwrap(), None, "it is shown to nobody before it has a host");
        assert!(house.teller.asked().is_empty());
        house.add_with("acme/*", Some("own")).await.unwrap();
        house.teller.world().rate = Some((5000, 4000, 1_795_165_200));
        house.teller.world().account_headers = vec![
            ("x-oauth-scopes", "repo, read:org".to_owned()),
            ("github-authentication-token-expiration", "2026-11-25 08:00:00 UTC".to_owned()),
        ];
        let told = standing(&house).await;
        assert_eq!((told.account.as_deref(), told.accepted), (Some("ada"), true));
        assert_eq!(told.scopes, Some(vec!["repo".to_owned(), "read:org".to_owned()]));
        assert_eq!(told.expires_at, Time::parse("2026-11-25T08:00:00Z").ok());
        assert_eq!(told.rate.map(|rate| (rate.limit, rate.remaining)), Some((5000, 3999)));
        assert!(told.warnings.len() == 1 && told.warnings[0].contains("in 5 days"), "{:?}", told.warnings);

        house.teller.world().account_headers = vec![("x-oauth-scopes", "gist".to_owned())];
        assert!(standing(&house).await.warnings[0].contains("lacks the scope `repo`"));
        // A fine-grained one: nothing is told of scopes.
        house.teller.world().account_headers = Vec::new();
        let told = standing(&house).await;
        assert_eq!((told.scopes, told.warnings.len(), told.expires_at), (None, 0, None));
        house.teller.world().token = Some(("authorization", "Bearer another".to_owned()));
        let told = standing(&house).await;
        assert!(!told.accepted && told.warnings[0].contains("does not take it"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gitlab_tells_of_scopes_and_end() {
    for house in House::each(ForgeKind::Gitlab).await {
        house.credential("own", "gitlab").await;
        house.add_with("acme/*", Some("own")).await.unwrap();
        house.teller.world().token = Some(("private-token", "sesame".to_owned()));
        house.teller.world().account = json!({
            "id": 4, "name": "larder", "revoked": false, "scopes": ["read_repository"], "user_id": 24,
            "active": true, "expires_at": "2026-11-10",
        });
        let told = standing(&house).await;
        assert_eq!(told.scopes, Some(vec!["read_repository".to_owned()]));
        assert!(
            told.warnings[0].contains("`read_api`") && told.warnings[1].contains("it ended"),
            "{:?}",
            told.warnings
        );
        house.teller.world().account = json!({ "name": "larder", "scopes": ["api"], "expires_at": null });
        assert!(standing(&house).await.warnings.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bitbucket_and_gitea_tell_who_it_is() {
    for kind in [ForgeKind::Bitbucket, ForgeKind::Gitea] {
        for house in House::each(kind).await {
            house.credential("own", kind.word()).await;
            house.add_with("acme/*", Some("own")).await.unwrap();
            let told = standing(&house).await;
            assert_eq!((told.account.as_deref(), told.scopes, told.warnings.len()), (Some("ada"), None, 0));
            house.teller.world().account_headers = vec![("x-oauth-scopes", "account".to_owned())];
            assert_eq!(standing(&house).await.warnings.len(), usize::from(kind == ForgeKind::Bitbucket));
        }
    }
}
