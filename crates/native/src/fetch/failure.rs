//! What a failed request says to whoever asked: what happened, at which host, and what to do. The inside goes to the log.

use std::{error::Error as _, io, time::Duration};

use larder_core::{Error, Kind};
use larder_sources::fetch::{origin, shown};
use url::Url;

/// Puts an error of the client into words.
pub(super) fn explain(at: &Url, error: reqwest::Error) -> Error {
    let error = error.without_url();
    if let Some(refused) = cause::<Error>(&error) {
        return Error::new(refused.kind(), refused.message()).caused_by(error);
    }
    let host = origin(at);
    let (kind, what) = if error.is_builder() {
        (Kind::Invalid, format!("{} cannot be asked: it is no address that HTTP knows", shown(at)))
    } else if error.is_connect() && error.is_timeout() {
        (
            Kind::Timeout,
            format!("{host} does not take the connection, or does not go on with it: is it up, and is the port right?"),
        )
    } else if error.is_timeout() {
        (Kind::Timeout, format!("{} is too slow", shown(at)))
    } else if let Some(tls) = cause::<rustls::Error>(&error) {
        (Kind::Upstream, encryption(&host, tls))
    } else if error.is_connect() {
        let refuses = cause::<io::Error>(&error).is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        let what = if refuses { "refuses the connection" } else { "cannot be reached" };
        (Kind::Upstream, format!("{host} {what}: is it up, and is the port right?"))
    } else if let Some(http) = cause::<hyper::Error>(&error) {
        (Kind::Upstream, protocol(at, http))
    } else {
        (Kind::Upstream, format!("{} failed in the middle of its answer", shown(at)))
    };
    Error::new(kind, what).caused_by(error)
}

fn encryption(host: &str, error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => format!(
            "the certificate of {host} is signed by nobody that is trusted here: trust its authority (the system's certificates, or extra ones in Larder's settings)"
        ),
        rustls::Error::InvalidCertificate(why) => format!("the certificate of {host} is not good: {why}"),
        _ => format!("{host} does not agree on encryption: does it speak https on this port?"),
    }
}

fn protocol(at: &Url, error: &hyper::Error) -> String {
    let at = shown(at);
    if error.is_parse_too_large() {
        format!("{at} answers with a head that is too large")
    } else if error.is_parse() {
        format!("{at} does not answer in HTTP")
    } else {
        format!("{at} ended the connection before its answer was complete")
    }
}

/// A body that paused, or that took too long as a whole.
pub(super) fn too_slow(at: &Url, as_a_whole: bool, idle: Duration) -> Error {
    let at = shown(at);
    let what = if as_a_whole {
        "takes too long to send its answer".into()
    } else {
        format!("paused for {idle:?} in its answer")
    };
    Error::new(Kind::Timeout, format!("{at} {what}"))
}

/// A body that is not what its encoding says.
pub(super) fn encoding(at: &Url, error: io::Error) -> Error {
    let message = format!("{} answers with broken or incomplete gzip", shown(at));
    Error::new(Kind::Upstream, message).caused_by(error)
}

/// The first cause of this type. An `io::Error` around another error does not call that one its source.
fn cause<T: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&T> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        next = match inner {
            Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    None
}
