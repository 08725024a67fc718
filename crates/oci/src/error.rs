//! How this protocol says that something went wrong: a code of the specification, what happened, and what to do.

use http::{HeaderName, HeaderValue, StatusCode, header};
use larder_core::{Error, Kind};
use larder_http::{Response, error::status_of};
use serde_json::json;

/// A code of the specification, or one that registries use beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// No such blob in this repository.
    BlobUnknown,
    /// An upload that cannot go on so.
    BlobUploadInvalid,
    /// No such upload.
    BlobUploadUnknown,
    /// Not a digest, or not that of the bytes.
    DigestInvalid,
    /// A manifest refers to what is not here.
    ManifestBlobUnknown,
    /// Not a manifest.
    ManifestInvalid,
    /// No such manifest.
    ManifestUnknown,
    /// Not a name.
    NameInvalid,
    /// No such repository.
    NameUnknown,
    /// Another number of bytes than was said, or too many.
    SizeInvalid,
    /// Who are you?
    Unauthorized,
    /// You may not.
    Denied,
    /// Not here.
    Unsupported,
    /// Too often.
    TooManyRequests,
    /// Not now.
    Unavailable,
    /// Anything else.
    Unknown,
}

impl Code {
    fn word(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestBlobUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown => StatusCode::NOT_FOUND,
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::SizeInvalid => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Why a request is not done.
#[derive(Debug)]
pub enum Refusal {
    /// Something about the request, in the words of this protocol.
    Said(Box<Said>),
    /// Something about the house.
    House(Error),
}

/// A refusal in the words of this protocol.
#[derive(Debug)]
pub struct Said {
    code: Code,
    status: StatusCode,
    message: String,
    todo: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// What happened, and what to do about it.
    pub fn new(code: Code, message: impl Into<String>, todo: impl Into<String>) -> Self {
        let (message, todo) = (message.into(), todo.into());
        Self::Said(Box::new(Said { code, status: code.status(), message, todo, headers: Vec::new() }))
    }

    /// What happened.
    pub fn message(&self) -> &str {
        match self {
            Self::Said(said) => &said.message,
            Self::House(error) => error.message(),
        }
    }

    /// With another status than the code's usual one.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        if let Self::Said(said) = &mut self {
            said.status = status;
        }
        self
    }

    /// With a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        if let Self::Said(said) = &mut self {
            said.headers.push((name, value));
        }
        self
    }

    /// No such repository, or none that the asker may see.
    pub fn no_repository(name: &str) -> Self {
        Self::new(
            Code::NameUnknown,
            format!("there is no repository `{name}` for you"),
            "check the name, and log in with a token that may read it: `larder grant list` shows what each may do",
        )
    }

    /// No such blob in the repository.
    pub fn no_blob(name: &str, digest: &larder_core::Digest) -> Self {
        Self::new(
            Code::BlobUnknown,
            format!("`{name}` has no blob {digest}"),
            "push it again: only what is missing is sent",
        )
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::House(error)
    }
}

impl From<larder_db::CommitError> for Refusal {
    fn from(error: larder_db::CommitError) -> Self {
        Self::House(error.into())
    }
}

impl From<Said> for Response {
    fn from(said: Said) -> Self {
        let body = errors(said.code, &said.message, &said.todo);
        let mut response = Self::json(said.status, &body);
        for (name, value) in said.headers {
            response.headers.append(name, value);
        }
        response
    }
}

fn errors(code: Code, message: &str, todo: &str) -> serde_json::Value {
    // Clients print the message, and only some of them the detail: what to do belongs in both.
    let message = if todo.is_empty() { message.to_owned() } else { format!("{message}: {todo}") };
    json!({ "errors": [{ "code": code.word(), "message": message, "detail": { "todo": todo } }] })
}

/// What happened, and what to do: the house says both in one sentence.
fn parted(message: &str) -> (&str, &str) {
    let parts = message.split_once(": ").or_else(|| message.split_once("; "));
    parts.unwrap_or((message, "try again; if that does not help, whoever runs this registry finds more in its log"))
}

/// The face of what went wrong in the house.
pub fn face(error: &Error) -> Response {
    let code = match error.kind() {
        Kind::Unauthenticated => Code::Unauthorized,
        Kind::Forbidden => Code::Denied,
        Kind::NotFound | Kind::Gone => Code::NameUnknown,
        Kind::Damaged => Code::BlobUnknown,
        Kind::TooLarge => Code::SizeInvalid,
        Kind::Invalid => Code::BlobUploadInvalid,
        Kind::Conflict | Kind::Full | Kind::Unavailable | Kind::Upstream | Kind::Timeout => Code::Unavailable,
        Kind::Internal => Code::Unknown,
    };
    // A client that hears 404 pushes what is missing again, and that heals it.
    let status = if error.kind() == Kind::Damaged { StatusCode::NOT_FOUND } else { status_of(error.kind()) };
    let (what, todo) = match error.kind() {
        // Where it is that is full is for the log.
        Kind::Full => ("this registry has no room left", "ask whoever runs it to make some, and push again"),
        _ => parted(error.message()),
    };
    let response = Response::json(status, &errors(code, what, todo));
    if error.kind() == Kind::Conflict {
        response.with(header::RETRY_AFTER, HeaderValue::from_static("1"))
    } else {
        response
    }
}
