//! Those who make the load: they push, pull, delete and refer until the end, and say what must not have happened.

use std::{sync::Arc, time::Instant};

use http::{StatusCode, header};
use larder_e2e::{
    Dice,
    oci::{Ask, Blob, Manifest, Trouble, Way, location},
};

use super::{
    LEASE, UNTAGGED,
    world::{Count, REPOSITORIES, Tag, World},
};

/// How often a push is tried, as docker does.
const TRIES: usize = 200;

/// Pushes images under tags of its own, and moves them.
pub(super) async fn push(world: Arc<World>, mut dice: Dice, number: usize) {
    let own: Vec<usize> = (0..world.tags().len()).filter(|tag| tag % super::PUSHERS == number).collect();
    let mut made = 0;
    while !world.is_over() {
        let tag = &world.tags()[*dice.pick(&own)];
        made += 1;
        let image = image(&world, &mut dice, &format!("{number} {made}"));
        let _turn = tag.turn.lock().await;
        tag.begin(Some(image.digest()));
        if !push_until_done(&world, &mut dice, tag, &image).await {
            return;
        }
        tag.settle(Some(image.digest()));
    }
}

/// Whether it was done, or it is over.
async fn push_until_done(world: &World, dice: &mut Dice, tag: &Tag, image: &Manifest) -> bool {
    let what = format!("a push to {}:{}", tag.repository, tag.name);
    for _ in 0..TRIES {
        match push_once(world, dice, tag, image).await {
            Ok(()) => {
                world.count(Count::Pushed);
                return true;
            }
            Err(trouble) => retry(world, &trouble, &what).await,
        }
        if world.is_over() {
            return false;
        }
        world.count(Count::Retried);
    }
    world.wrong(format!("{what} never worked"));
    false
}

/// After something that did not work: either it may be tried again, or it must never have happened.
async fn retry(world: &World, trouble: &Trouble, what: &str) {
    match trouble {
        Trouble::Cut(_) => world.wait().await,
        Trouble::Said(_, answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => world.count(Count::Refused),
        // What was acknowledged long ago may be gone; who was told too recently has said so.
        _ if trouble.is("MANIFEST_BLOB_UNKNOWN") => world.count(Count::Refused),
        trouble @ Trouble::Said(..) => world.wrong(format!("{what}: {trouble}")),
    }
}

fn image(world: &World, dice: &mut Dice, name: &str) -> Manifest {
    let own = |dice: &mut Dice, name: &str| {
        let count = dice.below(4);
        let layers: Vec<Blob> = (0..count).map(|_| world.layer(dice).clone()).collect();
        Manifest::image(name, &layers)
    };
    match dice.below(6) {
        0 => Manifest::index(&[own(dice, &format!("{name} a")), own(dice, &format!("{name} b"))]),
        1 => Manifest::index(&[dice.pick(&world.common).clone(), own(dice, name)]),
        2 | 3 => dice.pick(&world.common).clone(),
        _ => own(dice, name),
    }
}

/// When the server said last that it has something: before that was asked.
type Told = Vec<(String, Instant)>;

async fn push_once(world: &World, dice: &mut Dice, tag: &Tag, image: &Manifest) -> Result<(), Trouble> {
    let mut parts = Told::new();
    for part in &image.parts {
        let asked = Instant::now();
        put(world, dice, tag.repository, part.digest(), part, &Told::new()).await?;
        parts.push((part.digest().to_owned(), asked));
    }
    put(world, dice, tag.repository, &tag.name, image, &parts).await
}

/// Pushes what is missing, and then the manifest.
async fn put(
    world: &World,
    dice: &mut Dice,
    repository: &str,
    to: &str,
    image: &Manifest,
    parts: &Told,
) -> Result<(), Trouble> {
    let mut blobs = Told::new();
    for blob in &image.blobs {
        let asked = Instant::now();
        if !world.registry.has(repository, &blob.digest).await? {
            upload(world, dice, repository, blob).await?;
        }
        blobs.push((blob.digest.clone(), asked));
    }
    let answer = world.registry.push_manifest(repository, to, image).await;
    let Err(trouble) = &answer else { return Ok(()) };
    if trouble.is("MANIFEST_BLOB_UNKNOWN") {
        // A HEAD need not begin a lease anew while half of it is left.
        let are_safe = blobs
            .iter()
            .all(|(digest, told)| told.elapsed() < LEASE / 2 && !world.was_taken(repository, digest, *told))
            && parts.iter().all(|(_, told)| told.elapsed() < UNTAGGED);
        if are_safe {
            world.wrong(format!(
                "everything was acknowledged just before, and yet: {trouble}; told of {blobs:?} {parts:?}"
            ));
        }
    }
    answer.map(|_| ())
}

/// Uploads a blob in one of the ways that clients have.
async fn upload(world: &World, dice: &mut Dice, repository: &str, blob: &Blob) -> Result<(), Trouble> {
    let registry = &world.registry;
    let way = match dice.below(10) {
        0..=1 => Way::Chunked(blob.bytes.len() / 3 + 1),
        2 => Way::Post,
        3..=4 => Way::Put,
        5..=6 => {
            let from = dice.pick(&REPOSITORIES);
            let mount = Ask::post(format!("/v2/{repository}/blobs/uploads/?mount={}&from={from}", blob.digest));
            let answer = registry.want(mount, &[StatusCode::CREATED, StatusCode::ACCEPTED]).await?;
            if answer.status == StatusCode::CREATED {
                return Ok(());
            }
            return registry.push_to(location(&answer), blob, Way::Streamed).await;
        }
        _ => Way::Streamed,
    };
    registry.push_blob(repository, blob, way).await
}

/// Pulls whatever is there, and checks every byte.
pub(super) async fn pull(world: Arc<World>, mut dice: Dice) {
    while !world.is_over() {
        let tag = dice.pick(world.tags());
        match dice.below(8) {
            0 => list(&world, tag.repository).await,
            1 => part_of(&world, &mut dice, tag).await,
            _ => pull_tag(&world, tag).await,
        }
    }
}

async fn pull_tag(world: &World, tag: &Tag) {
    let before = tag.state();
    let pulled = world.registry.pull(tag.repository, &tag.name).await;
    // What changed meanwhile may be found as it was, as it is, or half gone.
    let is_same = tag.state().version == before.version;
    let at = format!("{}:{}", tag.repository, tag.name);
    let found = match pulled {
        Ok(digest) => {
            world.count(Count::Pulled);
            Some(digest)
        }
        Err(Trouble::Cut(_)) => return world.wait().await,
        Err(Trouble::Said(request, answer)) if answer.status == StatusCode::NOT_FOUND => {
            if is_same && before.certain().is_some_and(Option::is_some) {
                return world.wrong(format!("{at} names {:?}, but {request}: {}", before.possible, answer.text()));
            }
            None
        }
        Err(trouble) => return world.wrong(format!("{at}: {trouble}")),
    };
    if !is_same {
        return;
    }
    if !before.possible.contains(&found) {
        return world.wrong(format!("{at} names {found:?}, not one of {:?}", before.possible));
    }
    if let (Some(Some(digest)), false) = (before.certain(), before.referrers.is_empty())
        && let Err(what) = world.check_referrers(tag.repository, digest, &before.referrers).await
        && tag.state().version == before.version
    {
        world.wrong(format!("{at}: {what}"));
    }
}

/// All tags that are there for certain are listed, and none that is not.
async fn list(world: &World, repository: &str) {
    let tags: Vec<&Tag> = world.tags().iter().filter(|tag| tag.repository == repository).collect();
    let before: Vec<_> = tags.iter().map(|tag| tag.state()).collect();
    let ask = Ask::get(format!("/v2/{repository}/tags/list"));
    let answer = match world.registry.want(ask, &[StatusCode::OK, StatusCode::NOT_FOUND]).await {
        Ok(answer) => answer,
        Err(Trouble::Cut(_)) => return world.wait().await,
        Err(trouble) => return world.wrong(trouble.to_string()),
    };
    let listed = answer.json()["tags"].as_array().cloned().unwrap_or_default();
    for (tag, before) in tags.iter().zip(before) {
        let Some(certain) = before.certain() else { continue };
        if tag.state().version == before.version && listed.iter().any(|name| *name == tag.name) != certain.is_some() {
            world.wrong(format!("{repository}:{} names {certain:?}, and listed are {listed:?}", tag.name));
        }
    }
}

/// A range of a layer of a tag's image has the layer's bytes.
async fn part_of(world: &World, dice: &mut Dice, tag: &Tag) {
    let layer = world.layer(dice);
    if layer.bytes.len() < 2 {
        return;
    }
    let begin = dice.below(layer.bytes.len() - 1);
    let end = begin + 1 + dice.below(layer.bytes.len() - begin);
    let get = Ask::get(format!("/v2/{}/blobs/{}", tag.repository, layer.digest));
    let get = get.with(header::RANGE, format!("bytes={begin}-{}", end - 1));
    match world.registry.want(get, &[StatusCode::PARTIAL_CONTENT, StatusCode::NOT_FOUND]).await {
        Ok(answer) if answer.status == StatusCode::NOT_FOUND => {}
        Ok(answer) if answer.body == layer.bytes.slice(begin..end.min(layer.bytes.len())) => world.count(Count::Pulled),
        Ok(_) => world.wrong(format!("{begin}-{end} of {} are other bytes", layer.digest)),
        Err(Trouble::Cut(_)) => world.wait().await,
        Err(trouble) => world.wrong(trouble.to_string()),
    }
}

/// Deletes tags, images and blobs.
pub(super) async fn delete(world: Arc<World>, mut dice: Dice, number: u64) {
    while !world.is_over() {
        match dice.below(4) {
            0 => delete_blob(&world, &mut dice).await,
            1 => push_and_delete(&world, &mut dice, &format!("private/{number}")).await,
            _ => {
                let by_digest = dice.once_in(2);
                delete_tag(&world, dice.pick(world.tags()), by_digest).await;
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(dice.throw() % 200)).await;
    }
}

async fn delete_tag(world: &World, tag: &Tag, by_digest: bool) {
    let _turn = tag.turn.lock().await;
    let before = tag.state();
    let Some(Some(digest)) = before.certain() else { return };
    // With the digest go all tags: only for those who have the image alone.
    let is_common = world.common.iter().any(|common| common.digest() == digest);
    let reference = if by_digest && !is_common { digest.as_str() } else { tag.name.as_str() };
    tag.begin(None);
    let at = format!("/v2/{}/manifests/{reference}", tag.repository);
    match world.registry.want(Ask::delete(&at), &[StatusCode::ACCEPTED]).await {
        Ok(_) => {
            tag.settle(None);
            world.count(Count::Deleted);
            let gone = Ask::get(&at);
            match world.registry.want(gone, &[StatusCode::NOT_FOUND]).await {
                Ok(_) | Err(Trouble::Cut(_)) => {}
                Err(trouble) => world.wrong(format!("it was deleted: {trouble}")),
            }
        }
        Err(Trouble::Cut(_)) => world.wait().await,
        Err(trouble) => world.wrong(format!("nobody else deletes it: {trouble}")),
    }
}

/// Takes a blob out of a repository, unless a manifest needs it there.
async fn delete_blob(world: &World, dice: &mut Dice) {
    let (repository, layer) = (*dice.pick(&REPOSITORIES), world.layer(dice));
    world.take(repository, &layer.digest);
    let delete = Ask::delete(format!("/v2/{repository}/blobs/{}", layer.digest));
    let right = [StatusCode::ACCEPTED, StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED];
    let answer = world.registry.want(delete, &right).await;
    world.take(repository, &layer.digest);
    match answer {
        Ok(answer) if answer.status == StatusCode::ACCEPTED => world.count(Count::Deleted),
        Ok(_) => {}
        Err(Trouble::Cut(_)) => world.wait().await,
        Err(trouble) => world.wrong(trouble.to_string()),
    }
}

/// Where nobody else is, a blob comes and goes, while its bytes are those of everybody.
async fn push_and_delete(world: &World, dice: &mut Dice, repository: &str) {
    let layer = world.layer(dice);
    let result = async {
        upload(world, dice, repository, layer).await?;
        if !world.registry.has(repository, &layer.digest).await? {
            world.wrong(format!("{} was pushed to {repository}, and is not there", layer.digest));
        }
        let at = format!("/v2/{repository}/blobs/{}", layer.digest);
        world.registry.want(Ask::delete(&at), &[StatusCode::ACCEPTED]).await?;
        world.registry.want(Ask::get(&at), &[StatusCode::NOT_FOUND]).await
    };
    match result.await {
        Ok(_) => world.count(Count::Deleted),
        Err(Trouble::Cut(_)) => world.wait().await,
        Err(trouble) => world.wrong(format!("in {repository}, where nobody else is: {trouble}")),
    }
}

/// Pushes what refers to images that are there.
pub(super) async fn refer(world: Arc<World>, mut dice: Dice, number: u64) {
    let mut made = 0;
    while !world.is_over() {
        let tag = dice.pick(world.tags());
        let before = tag.state();
        let Some(Some(subject)) = before.certain() else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        made += 1;
        let subject = serde_json::json!({"mediaType": larder_e2e::oci::MANIFEST, "digest": subject, "size": 1});
        let referrer = Manifest::about(&subject, "application/vnd.test.soak", number * 1_000_000 + made);
        match put(&world, &mut dice, tag.repository, referrer.digest(), &referrer, &Told::new()).await {
            Ok(()) => {
                world.count(Count::Referred);
                tag.refer(before.version, referrer.digest());
            }
            Err(trouble) => retry(&world, &trouble, &format!("what refers to {}:{}", tag.repository, tag.name)).await,
        }
        tokio::time::sleep(std::time::Duration::from_millis(dice.throw() % 100)).await;
    }
}
