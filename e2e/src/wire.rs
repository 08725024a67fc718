//! HTTP as tests speak it: one request on one connection, in well-formed messages or in raw bytes.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// No exchange takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body as it was sent.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is something else.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// A header as text; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// The header with which a client shows a token.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// A GET request for `path`, with a token if there is one.
///
/// # Panics
/// If `path` cannot stand in a request.
pub fn get(path: &str, token: Option<&str>) -> Request<Full<Bytes>> {
    let mut request = Request::get(path).header(header::HOST, "larder.test");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    request.body(Full::default()).expect("the test's request is well-formed")
}

/// Sends a request on a connection of its own. The error is one of the connection.
pub async fn send<B>(to: SocketAddr, request: Request<B>) -> Result<Answer, String>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let exchange = async {
        let stream = TcpStream::connect(to).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        connection.abort();
        Ok(Answer { status: head.status, headers: head.headers, body })
    };
    timeout(LIMIT, exchange).await.map_err(|_| "no whole answer in time".to_owned())?
}

/// Writes raw bytes and returns what comes back until the other side closes, or says nothing more for `quiet`.
///
/// # Panics
/// If there is no connection.
pub async fn raw(to: SocketAddr, bytes: &[u8], quiet: Duration) -> String {
    let mut stream = TcpStream::connect(to).await.expect("the server listens");
    // A server that has seen enough may close before it has read everything.
    drop(stream.write_all(bytes).await);
    let mut said = Vec::new();
    while let Ok(Ok(read @ 1..)) = timeout(quiet, stream.read_buf(&mut said)).await {
        debug_assert!(read > 0, "an end is matched above");
    }
    String::from_utf8_lossy(&said).into_owned()
}
