//! Listening: TCP connections that speak HTTP/1 to a [`Site`], with limits on everything that a stranger can use up.
//! What is asked and answered on them is not its business; TLS is a reverse proxy's.

mod connection;
mod patience;
mod proxies;

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use larder_core::{Error, Kind, Result};
use larder_http::Site;
use tokio::{net::TcpListener, sync::Semaphore};

pub use proxies::Proxies;

use connection::Connection;
use patience::Patience;

/// The pause after the machine refused a new connection, most often because it ran out of file handles.
const BREATH: Duration = Duration::from_millis(100);

/// What one client may use up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at one time; the operating system lets more wait. 4,096.
    pub connections: u32,
    /// Bytes of a request line and its headers; more is a 431. 16 KiB.
    pub head: usize,
    /// Bytes of an address; more is a 414. 8 KiB.
    pub address: usize,
    /// How long the head of a request may take from its first byte; longer is a 408. 15 s.
    pub head_time: Duration,
    /// How long a connection may rest between two requests. 75 s.
    pub rest: Duration,
    /// How long a client may send nothing of a body, or take nothing of an answer. 30 s.
    pub stall: Duration,
    /// Bytes per second that a request body must reach on average, after [`stall`](Self::stall) has passed. 1 KiB.
    pub body_rate: u64,
    /// How long requests may take to end when the server stops. 30 s.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            head: 16 * 1024,
            address: 8 * 1024,
            head_time: Duration::from_secs(15),
            rest: Duration::from_secs(75),
            stall: Duration::from_secs(30),
            body_rate: 1024,
            drain: Duration::from_secs(30),
        }
    }
}

/// A bound address, where connections already wait.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    limits: Limits,
    proxies: Proxies,
}

impl Listener {
    /// Binds `address`, for example `127.0.0.1:8080`; port 0 takes a free one. Fails, saying what to do, when that is
    /// not possible.
    pub async fn bind(address: &str, limits: Limits, proxies: Proxies) -> Result<Self> {
        let socket = TcpListener::bind(address).await.map_err(|error| cannot_listen(address, error))?;
        Ok(Self { socket, limits, proxies })
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        self.socket.local_addr().map_err(|error| Error::internal("asking for the bound address", error))
    }

    /// Answers requests until `stop` completes; then takes no new ones, lets those that run end, and returns.
    pub async fn serve(self, site: Arc<Site>, stop: impl Future<Output = ()> + Send) {
        let Self { socket, limits, proxies } = self;
        let patience = Arc::new(Patience::new(&limits));
        let watch = tokio::spawn(patience.clone().watch());
        let slots = Arc::new(Semaphore::new(limits.connections as usize));
        let shared = Arc::new(connection::Shared { site, limits, proxies });
        let mut stop = pin!(stop);
        loop {
            let next = async {
                let slot = slots.clone().acquire_owned().await;
                (slot, socket.accept().await)
            };
            let (slot, accepted) = tokio::select! {
                biased;
                () = &mut stop => break,
                next = next => next,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = Connection::new(stream, peer, shared.clone(), &patience);
                    tokio::spawn(async move {
                        connection.run().await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
        drop(socket);
        patience.stop();
        let all_ended = slots.acquire_many(shared.limits.connections);
        if tokio::time::timeout(shared.limits.drain, all_ended).await.is_err() {
            tracing::warn!(connections = patience.count(), "requests that do not end are cut off");
            patience.cut_off();
        }
        watch.abort();
    }
}

fn cannot_listen(address: &str, error: io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there; stop it, or choose another port",
        io::ErrorKind::PermissionDenied => "this user may not; choose a port above 1023",
        io::ErrorKind::AddrNotAvailable => "this machine has no such address; 0.0.0.0 stands for all that it has",
        _ => "write an address and a port, for example 127.0.0.1:8080",
    };
    Error::new(Kind::Invalid, format!("cannot listen on {address}: {why}")).caused_by(error)
}
