//! A client that costs as little as a client can: HTTP/1.1 over connections that stay open, bodies that are sent from memory
//! and thrown away as they come. It checks statuses and lengths, and computes nothing.

use std::{fmt::Write as _, net::SocketAddr};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::content::{Blob, Image, MANIFEST};

/// How much is sent or received at once.
const BUFFER: usize = 256 * 1024;

/// Where a registry is, and how it is spoken to.
#[derive(Clone, Debug)]
pub struct Door {
    /// Where it listens.
    pub address: SocketAddr,
    /// The value of `Authorization`, for a registry that wants one.
    pub authorization: Option<String>,
}

/// What is sent.
#[derive(Clone, Copy)]
pub enum Send<'a> {
    /// Nothing.
    Nothing,
    /// Bytes of a known length.
    Bytes(&'a [u8]),
    /// Chunks, as they go over the wire.
    Chunks(&'a [u8]),
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    status: u16,
    text: String,
}

impl Head {
    /// A header of it.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    door: Door,
    buffer: Vec<u8>,
    /// The part of the buffer that came and was not looked at.
    ready: std::ops::Range<usize>,
}

impl Connection {
    /// Opens one.
    pub async fn open(door: &Door) -> Result<Self> {
        let stream = TcpStream::connect(door.address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, door: door.clone(), buffer: vec![0; BUFFER], ready: 0..0 })
    }

    /// The head of a request, without its last line.
    pub fn head(door: &Door, method: &str, path: &str) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: larder-bench\r\n", door.address);
        if let Some(value) = &door.authorization {
            // Writing to a String cannot fail.
            let _ = write!(head, "Authorization: {value}\r\n");
        }
        head
    }

    /// Sends a request, reads its answer and throws the body away; gives how many bytes that had. Fails unless the answer
    /// has this status.
    pub async fn ask(&mut self, head: &str, method: &str, send: Send<'_>, status: u16) -> Result<(Head, u64)> {
        let (line, body) = match send {
            Send::Nothing if method == "GET" || method == "HEAD" => (String::new(), &[][..]),
            Send::Nothing => ("Content-Length: 0\r\n".to_owned(), &[][..]),
            Send::Bytes(bytes) => (format!("Content-Length: {}\r\n", bytes.len()), bytes),
            Send::Chunks(chunks) => ("Transfer-Encoding: chunked\r\n".to_owned(), chunks),
        };
        self.stream.write_all(format!("{head}{line}\r\n").as_bytes()).await?;
        for piece in body.chunks(BUFFER) {
            self.stream.write_all(piece).await?;
        }
        let answer = self.read_head().await?;
        let length = if method == "HEAD" || answer.status == 204 { 0 } else { self.skip_body(&answer).await? };
        if answer.status != status {
            bail!("{} instead of {status} to {}", answer.text, head.lines().next().unwrap_or_default());
        }
        Ok((answer, length))
    }

    async fn read_head(&mut self) -> Result<Head> {
        loop {
            let ready = &self.buffer[self.ready.clone()];
            if let Some(end) = ready.windows(4).position(|four| four == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&ready[..end]).into_owned();
                self.ready.start += end + 4;
                let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
                return Ok(Head { status: status.context("the answer has no status")?, text });
            }
            self.fill().await?;
        }
    }

    /// Reads more; what is ready is moved to the front of the buffer before.
    async fn fill(&mut self) -> Result<()> {
        self.buffer.copy_within(self.ready.clone(), 0);
        self.ready = 0..self.ready.len();
        let read = self.stream.read(&mut self.buffer[self.ready.end..]).await?;
        if read == 0 {
            bail!("the connection ended within an answer");
        }
        self.ready.end += read;
        Ok(())
    }

    async fn skip_body(&mut self, head: &Head) -> Result<u64> {
        if let Some(length) = head.header("content-length") {
            let length = length.parse()?;
            self.skip(length).await?;
            return Ok(length);
        }
        if head.header("transfer-encoding").is_none() {
            bail!("an answer has no length");
        }
        let mut whole = 0;
        loop {
            let length = u64::from_str_radix(&self.line().await?, 16)?;
            self.skip(length).await?;
            whole += length;
            self.line().await?;
            if length == 0 {
                return Ok(whole);
            }
        }
    }

    async fn skip(&mut self, mut length: u64) -> Result<()> {
        loop {
            let here = usize::try_from(length)?.min(self.ready.len());
            self.ready.start += here;
            length -= here as u64;
            if length == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            let ready = &self.buffer[self.ready.clone()];
            if let Some(end) = ready.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&ready[..end]).into_owned();
                self.ready.start += end + 2;
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    /// Pushes a blob as docker, podman and crane do: POST, one PATCH that is a stream, PUT.
    pub async fn push_blob(&mut self, repository: &str, blob: &Blob) -> Result<()> {
        let begin = Self::head(&self.door, "POST", &format!("/v2/{repository}/blobs/uploads/"));
        let (answer, _) = self.ask(&begin, "POST", Send::Nothing, 202).await?;
        let stream = self.follow("PATCH", &answer, "")? + "Content-Type: application/octet-stream\r\n";
        let (answer, _) = self.ask(&stream, "PATCH", Send::Chunks(&blob.wire), 202).await?;
        let end = self.follow("PUT", &answer, &format!("digest={}", blob.digest))?;
        self.ask(&end, "PUT", Send::Nothing, 201).await?;
        Ok(())
    }

    /// The head of the next request of an upload, with one more parameter.
    fn follow(&self, method: &str, answer: &Head, parameter: &str) -> Result<String> {
        let location = answer.header("location").context("an upload has no Location")?;
        // Relative, or absolute with the address that was asked.
        let path = location.strip_prefix(&format!("http://{}", self.door.address)).unwrap_or(location);
        let separator = match parameter {
            "" => "",
            _ if path.contains('?') => "&",
            _ => "?",
        };
        Ok(Self::head(&self.door, method, &format!("{path}{separator}{parameter}")))
    }

    /// Asks whether a blob is there, as a client does before it pushes.
    pub async fn misses(&mut self, repository: &str, digest: &str) -> Result<()> {
        let head = Self::head(&self.door, "HEAD", &format!("/v2/{repository}/blobs/{digest}"));
        self.ask(&head, "HEAD", Send::Nothing, 404).await.map(drop)
    }

    /// Pushes a manifest under a tag.
    pub async fn push_manifest(&mut self, repository: &str, tag: &str, manifest: &[u8]) -> Result<()> {
        let head = Self::head(&self.door, "PUT", &format!("/v2/{repository}/manifests/{tag}"));
        let head = format!("{head}Content-Type: {MANIFEST}\r\n");
        self.ask(&head, "PUT", Send::Bytes(manifest), 201).await.map(drop)
    }

    /// Pulls a blob. Fails if it has another size.
    pub async fn pull_blob(&mut self, repository: &str, blob: &Blob) -> Result<()> {
        let head = Self::head(&self.door, "GET", &format!("/v2/{repository}/blobs/{}", blob.digest));
        let (_, length) = self.ask(&head, "GET", Send::Nothing, 200).await?;
        if length != blob.size as u64 {
            bail!("{} came with {length} bytes instead of {}", blob.digest, blob.size);
        }
        Ok(())
    }

    /// Pulls a manifest by its tag.
    pub async fn pull_manifest(&mut self, repository: &str, tag: &str, image: &Image) -> Result<()> {
        let head = Self::head(&self.door, "GET", &format!("/v2/{repository}/manifests/{tag}"));
        let (_, length) = self.ask(&format!("{head}Accept: {MANIFEST}\r\n"), "GET", Send::Nothing, 200).await?;
        if length != image.manifest.len() as u64 {
            bail!("the manifest of {tag} came with {length} bytes");
        }
        Ok(())
    }
}
