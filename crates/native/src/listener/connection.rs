//! One connection: from bytes to requests of the site, and from its responses to bytes.

use std::{
    convert::Infallible,
    future::poll_fn,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as _, Frame, SizeHint};
use hyper::{
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use larder_core::{Error, Kind, Result};
use larder_http::{Body, Received, RequestBody, Response, Site};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::{
    Limits, Proxies,
    patience::{Patience, Phase, Verdict, Watched},
};

/// The largest piece of a body that is read or buffered at once, in bytes.
const BUFFER: usize = 128 * 1024;

/// How long a client may go on sending what nobody wants.
const LINGER: Duration = Duration::from_secs(3);

/// All that is said to a client whose head came too slowly.
const LATE_HEAD: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What all connections of a listener share.
pub(super) struct Shared {
    pub(super) site: Arc<Site>,
    pub(super) limits: Limits,
    pub(super) proxies: Proxies,
}

pub(super) struct Connection {
    socket: Socket,
    peer: IpAddr,
    shared: Arc<Shared>,
    watched: Arc<Watched>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, patience: &Arc<Patience>) -> Self {
        // Without it an answer in two parts waits for the client's acknowledgement of the first.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let watched = Arc::new(patience.begin());
        let socket = Socket { stream: TokioIo::new(stream), watched: watched.clone() };
        Self { socket, peer: peer.ip().to_canonical(), shared, watched }
    }

    /// Until the client leaves, misbehaves, or the server stops.
    pub(super) async fn run(self) {
        let Self { socket, peer, shared, watched } = self;
        let mut http = http1::Builder::new();
        // The watch has time limits of its own (`patience.rs`).
        http.header_read_timeout(None).max_header_size(shared.limits.head).max_buf_size(BUFFER);
        let service = service_fn(|request| answer(request, peer, &shared, &watched));
        let mut connection = http.serve_connection(socket, service);
        let mut stopping = false;
        let end = poll_fn(|cx| {
            if watched.verdict() == Verdict::Close {
                return Poll::Ready(Err(None));
            }
            if !stopping && watched.must_stop() {
                stopping = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            Pin::new(&mut connection).poll(cx).map_err(Some)
        })
        .await;
        match end {
            Ok(()) if watched.left_unread() => linger(connection.into_parts().io.stream.into_inner()).await,
            Ok(()) | Err(None) => {}
            Err(Some(error)) => tracing::debug!(%peer, %error, "connection ended"),
        }
    }
}

/// Throws away what a client still sends after it was refused. Closing at once would make its machine drop the answer
/// before the client has read it.
async fn linger(mut stream: TcpStream) {
    let mut nowhere = vec![0; 16 * 1024];
    let read = async { while stream.read(&mut nowhere).await.is_ok_and(|length| length > 0) {} };
    if tokio::time::timeout(LINGER, read).await.is_err() {
        tracing::debug!("a refused client did not stop sending");
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    peer: IpAddr,
    shared: &Shared,
    watched: &Arc<Watched>,
) -> Result<hyper::Response<Answer>, Infallible> {
    watched.answer();
    let (mut head, incoming) = request.into_parts();
    let length = head.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let response = if length > shared.limits.address {
        let longest = shared.limits.address;
        larder_http::error::plain(StatusCode::URI_TOO_LONG, &format!("an address has at most {longest} bytes here"))
    } else {
        let body = if incoming.is_end_stream() {
            RequestBody::default()
        } else {
            RequestBody::arriving(Arriving::new(incoming, &shared.limits, watched.clone()))
        };
        let address = shared.proxies.client(peer, &head.headers);
        shared.proxies.clean(peer, &mut head.headers);
        let received = Received { method: head.method, uri: head.uri, headers: head.headers, body, address };
        shared.site.answer(received).await
    };
    let Response { status, headers, body } = response;
    let mut out = hyper::Response::new(Answer { body, watched: watched.clone() });
    *out.status_mut() = status;
    *out.headers_mut() = headers;
    Ok(out)
}

/// The body of an answer. When it is dropped, everything has been handed to the socket, and the connection rests.
struct Answer {
    body: Body,
    watched: Arc<Watched>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.watched.enter(Phase::Rest);
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Err(error)) = &frame {
            tracing::error!(error = error.chain(), "an answer broke off");
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request, given up when it comes too slowly.
struct Arriving {
    incoming: Incoming,
    began: Instant,
    received: u64,
    stall: Duration,
    rate: u64,
    /// Set only while nothing is there to read.
    alarm: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    ended: bool,
    watched: Arc<Watched>,
}

impl Arriving {
    fn new(incoming: Incoming, limits: &Limits, watched: Arc<Watched>) -> Self {
        Self {
            incoming,
            began: Instant::now(),
            received: 0,
            stall: limits.stall,
            rate: limits.body_rate.max(1),
            alarm: None,
            waiting: false,
            ended: false,
            watched,
        }
    }

    /// The client may stall once in a while, and must keep up an average.
    fn deadline(&self) -> Instant {
        let average = Duration::from_secs(self.received / self.rate) + self.stall;
        (Instant::now() + self.stall).min(self.began + average)
    }

    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline();
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !self.waiting {
            alarm.as_mut().reset(deadline);
            self.waiting = true;
        }
        alarm.as_mut().poll(cx)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if !self.ended && !self.incoming.is_end_stream() {
            self.watched.leave_unread();
        }
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            ready!(self.poll_alarm(cx));
            return Poll::Ready(Some(Err(Error::new(Kind::Timeout, "the request body came too slowly"))));
        };
        self.waiting = false;
        self.ended = frame.is_none();
        Poll::Ready(frame.map(|frame| match frame {
            Ok(frame) => {
                self.received += frame.data_ref().map_or(0, |data| data.len() as u64);
                Ok(frame)
            }
            Err(error) => Err(Error::invalid("the request body is malformed or ended early").caused_by(error)),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// The TCP stream, telling the watch what goes over it.
struct Socket {
    stream: TokioIo<TcpStream>,
    watched: Arc<Watched>,
}

impl Socket {
    /// Fails when the watch has given the client up.
    fn check(&self) -> io::Result<()> {
        let verdict = self.watched.verdict();
        if verdict == Verdict::Fine {
            return Ok(());
        }
        if verdict == Verdict::LateHead {
            // No answer is on its way while a head is waited for, so nothing can get mixed up. Whoever does not read
            // it does not need it.
            drop(self.stream.inner().try_write(LATE_HEAD));
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn note_write<T>(&self, cx: &Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.watched.sent(outcome.is_pending());
        if outcome.is_pending() {
            self.watched.wake(cx.waker());
        }
        outcome
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        if outcome.is_pending() {
            self.watched.wake(cx.waker());
            self.check()?;
        } else {
            self.watched.received();
        }
        outcome
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_write(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note_write(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
