//! The body of an answer as a stream: counted, decoded if that was asked for, with a limit on how long it may pause.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use larder_core::{Error, Kind, Result};
use larder_sources::fetch::{FetchRequest, FetchResponse, shown};
use reqwest::Response;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};
use url::Url;

use super::{failure, gzip::Gunzip};

/// The answer to `request` with its body still to come. It must be there by `end`.
pub(super) fn answer(
    request: &FetchRequest,
    url: Url,
    response: Response,
    end: Option<Instant>,
    permit: OwnedSemaphorePermit,
) -> Result<FetchResponse> {
    let status = response.status();
    let mut headers = response.headers().clone();
    let mut length = announced(&headers);
    let empty = request.method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if empty {
        return Ok(FetchResponse { status, headers, url, length, body: stream::empty().boxed() });
    }
    let gunzip = if request.decode { decoder(&headers, &url)? } else { None };
    let limit = Limit { most: request.most, url };
    // The page of an error may be of any size; its status is what is wanted, and its body has the limit all the same.
    if status.is_success() {
        limit.check(length.unwrap_or(0))?;
    }
    if gunzip.is_some() {
        headers.remove(header::CONTENT_ENCODING);
        headers.remove(header::CONTENT_LENGTH);
        length = None;
    }
    let url = limit.url.clone();
    let reading = Reading { response, gunzip, limit, taken: 0, given: 0, idle: request.idle, end, _permit: permit };
    let body =
        stream::try_unfold(
            reading,
            |mut reading| async move { Ok(reading.next().await?.map(|piece| (piece, reading))) },
        );
    Ok(FetchResponse { status, headers, url, length, body: body.boxed() })
}

/// How many bytes the head says that the body has.
fn announced(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What takes the encoding off, if there is one.
fn decoder(headers: &HeaderMap, url: &Url) -> Result<Option<Gunzip>> {
    let encodings: Vec<_> = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes).collect();
    match encodings[..] {
        [] | [b"identity" | b""] => Ok(None),
        [b"gzip" | b"x-gzip"] => Ok(Some(Gunzip::new())),
        _ => Err(Error::new(Kind::Upstream, format!("{} answers in an encoding that was not asked for", shown(url)))),
    }
}

struct Limit {
    most: Option<u64>,
    url: Url,
}

impl Limit {
    fn check(&self, size: u64) -> Result<()> {
        match self.most {
            Some(most) if size > most => Err(Error::new(
                Kind::TooLarge,
                format!("{} answers with more than the {most} bytes that are the limit for this", shown(&self.url)),
            )),
            _ => Ok(()),
        }
    }
}

struct Reading {
    response: Response,
    gunzip: Option<Gunzip>,
    limit: Limit,
    /// Bytes from the host, and bytes to the reader.
    taken: u64,
    given: u64,
    idle: Duration,
    end: Option<Instant>,
    _permit: OwnedSemaphorePermit,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(gunzip) = &mut self.gunzip
                && let Some(decoded) = gunzip.next().map_err(|error| failure::encoding(&self.limit.url, error))?
            {
                self.given += decoded.len() as u64;
                self.limit.check(self.given)?;
                return Ok(Some(decoded));
            }
            let Some(piece) = self.take().await? else {
                if let Some(gunzip) = &mut self.gunzip {
                    gunzip.finish().map_err(|error| failure::encoding(&self.limit.url, error))?;
                }
                return Ok(None);
            };
            self.taken += piece.len() as u64;
            self.limit.check(self.taken)?;
            match &mut self.gunzip {
                Some(gunzip) => gunzip.feed(piece),
                None => return Ok(Some(piece)),
            }
        }
    }

    /// The next piece as the host sends it.
    async fn take(&mut self) -> Result<Option<Bytes>> {
        let pause = Instant::now() + self.idle;
        let by = self.end.map_or(pause, |end| end.min(pause));
        match timeout_at(by, self.response.chunk()).await {
            Ok(piece) => piece.map_err(|error| failure::explain(&self.limit.url, error)),
            Err(_) => Err(failure::too_slow(&self.limit.url, by < pause, self.idle)),
        }
    }
}
