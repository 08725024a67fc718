//! The room of webhooks: `POST /webhooks/{source}`, by which a forge says that a repository changed. Which forge it is and
//! how it shows the secret is read from the headers ([`forge`]); whether that is so, and what follows, is
//! `larder_sources::webhooks`'. There is no package and no Git in here, and no body is ever held.

mod forge;

use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, StatusCode};
use larder_core::{Error, Kind, Result, grant::Principal};
use larder_http::{AccessNote, Request, RequestBody, Response, Room, error::method_not_allowed};
use larder_sources::{
    Sources,
    webhooks::{Accepted, Check},
};
use serde_json::json;

use crate::forge::Wish;

/// The largest delivery, in bytes: what GitHub sends at most.
pub const LARGEST: u64 = 25 * 1024 * 1024;

/// What stands for a format in the access log, where a delivery is refused. Those that are accepted are events.
const WEBHOOK: &str = "webhook";

/// Answers forges.
pub struct WebhookRoom(pub Sources);

#[async_trait]
impl Room for WebhookRoom {
    fn mounts(&self) -> &'static [&'static str] {
        &["/webhooks/"]
    }

    fn recognises(&self) -> bool {
        true
    }

    async fn handle(&self, request: &mut Request, _: &Arc<Principal>, access: &mut AccessNote) -> Result<Response> {
        let Some(source) = source_of(request) else {
            return Err(Error::not_found("there is nothing at this address: a webhook is at /webhooks/SOURCE"));
        };
        if request.method != Method::POST {
            return Ok(method_not_allowed("POST"));
        }
        access.format = WEBHOOK;
        let told = forge::told(&request.headers);
        let mut check = self.0.check_delivery(&source, told.proof).await?;
        access.package = check.source().map(Arc::from);
        read(&mut request.body, &mut check).await?;
        let proven = check.finish()?;
        Ok(match told.wish {
            Wish::Hello => answer(StatusCode::OK, "hello: this webhook works"),
            Wish::Nothing => {
                answer(StatusCode::OK, "nothing to do: only pushes, tags, branches and releases matter here")
            }
            Wish::Sync => match self.0.accept_delivery(&proven, &told.delivery).await? {
                Accepted::Now => answer(StatusCode::ACCEPTED, "the sync is due now"),
                Accepted::Before => answer(StatusCode::OK, "this delivery is already known"),
            },
        })
    }
}

/// The name or id of the source in the path.
fn source_of(request: &Request) -> Option<String> {
    let mut segments = request.segments().skip(1);
    let source = segments.next()?.into_owned();
    segments.next().is_none().then_some(source)
}

/// Shows the whole body to the check. Fails with [`Kind::TooLarge`], at once when the forge announced the length.
async fn read(body: &mut RequestBody, check: &mut Check) -> Result<()> {
    let too_large =
        || Error::new(Kind::TooLarge, format!("the delivery is larger than the {LARGEST} bytes that a forge may send"));
    if body.announced().is_some_and(|length| length > LARGEST) {
        return Err(too_large());
    }
    let mut length = 0;
    while let Some(bytes) = body.chunk().await? {
        length += bytes.len() as u64;
        if length > LARGEST {
            return Err(too_large());
        }
        check.update(&bytes);
    }
    Ok(())
}

fn answer(status: StatusCode, message: &str) -> Response {
    Response::json(status, &json!({ "message": message }))
}
