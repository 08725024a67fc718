//! One request, for checking what is measured, and for waiting until a server answers. The load comes from wrk.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// No answer takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its head, as it came.
    head: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header of it.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// Itself, if it has this status.
    pub fn expect(self, status: u16) -> Result<Self> {
        if self.status == status {
            return Ok(self);
        }
        bail!("the answer is {} instead of {status}: {}", self.status, String::from_utf8_lossy(&self.body));
    }
}

/// Asks for a path, with these headers.
pub async fn get(address: SocketAddr, path: &str, headers: &[(&str, String)]) -> Result<Answer> {
    tokio::time::timeout(LIMIT, ask(address, path, headers)).await.context("no answer within a minute")?
}

async fn ask(address: SocketAddr, path: &str, headers: &[(&str, String)]) -> Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n")?;
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("the answer has no end of its head")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("the answer has no status")?;
    let answer = Answer { status, head, body: bytes.split_off(end + 4) };
    if answer.header("transfer-encoding").is_some() {
        bail!("{path} is answered in chunks: nothing that is measured here should be");
    }
    Ok(answer)
}

/// Asks until the answer is 200; gives how long that took from `began` on.
pub async fn first_answer(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, String)],
    began: std::time::Instant,
) -> Result<Duration> {
    loop {
        if let Ok(answer) = ask(address, path, headers).await
            && answer.status == 200
        {
            return Ok(began.elapsed());
        }
        if began.elapsed() > LIMIT {
            bail!("{path} does not answer with 200 within a minute");
        }
        // Long enough to leave the processor to the server, short beside what is measured.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
