//! The address under which clients reach a server: it passes every request on and remembers it. A server that is started
//! again on another port keeps its address, and lock files keep their URLs.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::wire;

/// A request that passed the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `GET`
    pub method: String,
    /// With its query.
    pub path: String,
    /// Of the answer.
    pub status: u16,
}

#[derive(Debug)]
struct Shared {
    server: Mutex<SocketAddr>,
    seen: Mutex<Vec<Seen>>,
    /// Every how many requests one fails; never if 0.
    failing: AtomicUsize,
    /// The requests since that was last said.
    passed: AtomicUsize,
}

/// See the file.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Gate {
    /// Opens one; behind it is nobody yet.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback is free");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            server: Mutex::new(address),
            seen: Mutex::default(),
            failing: AtomicUsize::new(0),
            passed: AtomicUsize::new(0),
        });
        let passing = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let shared = Arc::clone(&passing);
                let service = service_fn(move |request| pass(request, Arc::clone(&shared)));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, shared, task }
    }

    /// From now on this server is behind it.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.shared.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    /// From now on one request in `every` is answered with 500, half of them after the server has done what it was asked;
    /// with 0 none is.
    pub fn fail(&self, every: usize) {
        self.shared.passed.store(0, Ordering::Relaxed);
        self.shared.failing.store(every, Ordering::Relaxed);
    }

    /// The server behind it.
    pub fn server(&self) -> SocketAddr {
        *self.shared.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests since this was last asked.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, Infallible> {
    let to = *shared.server.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut head, body) = request.into_parts();
    let method = head.method.to_string();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    head.headers.remove(header::CONNECTION);
    let failing = shared.failing.load(Ordering::Relaxed);
    let passed = shared.passed.fetch_add(1, Ordering::Relaxed) + 1;
    let fails = failing > 0 && passed.is_multiple_of(failing);
    let is_done = !fails || (passed / failing).is_multiple_of(2);
    let answer = match body.collect().await {
        Ok(_) if !is_done => Err("the test says so".to_owned()),
        Ok(body) => wire::send(to, Request::from_parts(head, Full::new(body.to_bytes()))).await,
        Err(error) => Err(error.to_string()),
    };
    let answer = if fails { answer.and(Err("the test says so".to_owned())) } else { answer };
    let response = match answer {
        Ok(answer) => {
            let mut response = Response::new(Full::new(answer.body));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            response.headers_mut().remove(header::TRANSFER_ENCODING);
            response
        }
        Err(error) if fails => {
            let mut response = Response::new(Full::from(error));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
        Err(error) => {
            let mut response = Response::new(Full::from(format!("nobody answers: {error}")));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    };
    let seen = Seen { method, path, status: response.status().as_u16() };
    shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    Ok(response)
}
