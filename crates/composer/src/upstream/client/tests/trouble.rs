//! Upstreams that are slow, busy, wrong or gone.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn everybody_waits_for_one_question() {
    let house = House::new().await;
    house.up.put("/packages.json", r#"{"providers-lazy-url":"/repo/p/%package%.json"}"#);
    house.up.put("/p/a/b.json", file("a/b", &["1.0"]));
    let told = join_all((0..50).map(|n| house.client.package("a/b", n % 2 == 0, None))).await;
    assert_eq!(told.iter().filter(|told| matches!(told, Ok(Told::Versions { .. }))).count(), 25);
    assert_eq!(house.up.asked(), ["/packages.json", "/p/a/b.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_in_trouble_is_told_from_one_that_has_nothing() {
    let house = House::new().await;
    assert!(failed(&house.failure("a/b").await).contains("check the address"), "a root that is not there");
    for (body, why) in [
        ("<!DOCTYPE html><p>Sign in</p>", "web page"),
        ("", "empty"),
        (r#"{"packages":{"a/b":{"1.0":{"name":"#, "ends in the middle"),
        (r#"{"error":"closed"}"#, "nothing about packages"),
        ("[]", "shape"),
        ("0", "shape"),
    ] {
        house.clock.advance(Duration::from_secs(6));
        house.up.put("/packages.json", body);
        assert!(failed(&house.failure("a/b").await).contains(why), "{body}: {:?}", house.failure("a/b").await);
    }
    // For a moment it is left alone.
    house.up.asked();
    house.failure("a/b").await;
    assert_eq!(house.up.asked(), [""; 0]);

    house.clock.advance(Duration::from_secs(6));
    house.up.put("/packages.json", r#"{"metadata-url":"/repo/p2/%package%.json"}"#);
    house.up.put("/p2/a/b.json", "<html>");
    assert!(failed(&house.failure("a/b").await).contains("web page"));
    house.up.answer("/p2/a/b.json", StatusCode::BAD_GATEWAY, &[], "");
    assert!(failed(&house.failure("a/b").await).contains("502"));
    house.up.answer("/p2/a/b.json", StatusCode::FOUND, &[], "");
    assert!(failed(&house.failure("a/b").await).contains("302"));
    house.up.answer("/p2/a/b.json", StatusCode::GONE, &[], "");
    assert_eq!(house.client.package("a/b", false, None).await.unwrap(), Told::Absent);
    house.up.answer("/p2/a/b.json", StatusCode::FORBIDDEN, &[], "");
    let Failure::Refused(message) = house.failure("a/b").await else { panic!() };
    assert!(message.contains("403") && message.contains("credential"), "{message}");
    assert_eq!(documents::page(&house.db, house.source.id, "", "", 9).await.unwrap().len(), 1, "only the root is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_has_enough_is_left_alone() {
    let house = House::new().await;
    house.up.put("/packages.json", r#"{"metadata-url":"/repo/p2/%package%.json"}"#);
    for (status, after) in [(StatusCode::TOO_MANY_REQUESTS, "40"), (StatusCode::SERVICE_UNAVAILABLE, "40")] {
        house.up.answer("/p2/a/b.json", status, &[("retry-after", after)], "");
        assert!(matches!(house.failure("a/b").await, Failure::Busy(_, 40)));
        house.up.asked();
        assert!(matches!(house.failure("a/c").await, Failure::Busy(_, 40)));
        assert_eq!(house.up.asked(), [""; 0]);
        house.clock.advance(Duration::from_secs(41));
    }
    house.up.answer("/p2/a/b.json", StatusCode::SERVICE_UNAVAILABLE, &[], "");
    assert!(failed(&house.failure("a/b").await).contains("503"));
    house.up.put("/p2/a/b.json", file("a/b", &["1.0"]));
    assert_eq!(house.versions("a/b", false).await, ["1.0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_root_is_better_than_none() {
    let mut house = House::new().await;
    house.up.put("/packages.json", json!({"packages": {"a/b": versions("a/b", &["1.0"])}}).to_string());
    assert_eq!(house.versions("a/b", false).await, ["1.0"]);
    house.up.answer("/packages.json", StatusCode::INTERNAL_SERVER_ERROR, &[], "");
    house.stale();
    assert_eq!(house.versions("a/b", false).await, ["1.0"]);
    house.restart();
    assert_eq!(house.versions("a/b", false).await, ["1.0"]);
    house.up.asked();
    assert!(failed(&house.failure("a/c").await).contains("500"), "it may be there by now");
    assert_eq!(house.up.asked(), [""; 0], "it is left alone for a moment");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_never_ends_is_given_up() {
    let house = House::new().await;
    house.up.put("/packages.json", r#"{"packages":[],"includes":{"i/0.json":{}}}"#);
    for n in 0..1_100 {
        let next = json!({"packages": [], "includes": {format!("i/{}.json", n + 1): {}, "i/0.json": {}}});
        house.up.put(&format!("/i/{n}.json"), next.to_string());
    }
    assert!(failed(&house.failure("a/b").await).contains("more than 1000 files"));
    // One that includes itself ends.
    house.clock.advance(Duration::from_secs(6));
    house.up.put("/i/0.json", r#"{"packages":{},"includes":{"i/0.json":{}}}"#);
    assert!(house.is_absent("a/b").await);
}
