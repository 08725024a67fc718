//! The default face of errors, and the statuses that every face starts from. The inside of an error reaches the log
//! only (`site.rs`), never a response.

use http::{HeaderValue, StatusCode, header};
use larder_core::{Error, Kind};

use crate::message::Response;

/// Seconds after which a client may try again when Larder is not available.
const RETRY_AFTER: &str = "5";

/// The status that stands for a kind of error.
pub fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Gone => StatusCode::GONE,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Full => StatusCode::INSUFFICIENT_STORAGE,
        Kind::Upstream => StatusCode::BAD_GATEWAY,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        // Damaged bytes can be put again, so a later try may succeed.
        Kind::Unavailable | Kind::Damaged => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What a client is told of an error. Where it is that is full is nobody's business but the operator's.
pub fn told(error: &Error) -> &str {
    match error.kind() {
        Kind::Full => "this server has no room left: ask whoever runs it to make some, then try again",
        _ => error.message(),
    }
}

/// `{"error": "…"}` with the status of the error's kind, and the headers that go with it.
pub fn face(error: &Error) -> Response {
    dressed(error, Response::json(status_of(error.kind()), &serde_json::json!({ "error": told(error) })))
}

/// Adds to a room's own face of `error` the headers that go with its kind: the challenge of a 401, and when to try
/// again.
pub fn dressed(error: &Error, face: Response) -> Response {
    match error.kind() {
        Kind::Unauthenticated if !face.headers.contains_key(header::WWW_AUTHENTICATE) => {
            face.with(header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Basic realm="Larder", charset="UTF-8""#))
        }
        Kind::Unavailable | Kind::Full => face.with(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER)),
        _ => face,
    }
}

/// An answer with a status that no kind stands for, in the default face.
pub fn plain(status: StatusCode, message: &str) -> Response {
    Response::json(status, &serde_json::json!({ "error": message }))
}

/// 405, naming the methods that are allowed, for example `GET, HEAD`. The answer to OPTIONS too.
pub fn method_not_allowed(allowed: &'static str) -> Response {
    plain(StatusCode::METHOD_NOT_ALLOWED, &format!("this address knows only {allowed}"))
        .with(header::ALLOW, HeaderValue::from_static(allowed))
}
