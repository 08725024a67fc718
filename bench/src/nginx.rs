//! The peer: nginx with one worker, serving the same bytes from files, set up for exactly that: kept connections, files
//! kept open, compressed ones made beforehand. Like Larder it writes down every access.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, Result};
use tokio::process::Child;

use crate::{fetch, machine, program::free_address};

/// A running nginx with its folder.
#[derive(Debug)]
pub struct Nginx {
    folder: tempfile::TempDir,
    child: Child,
    /// The processes: the master, which does nothing, and its worker.
    pub pids: Vec<u32>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Nginx {
    /// Starts one that serves `files`: paths with a slash before them, and bytes.
    pub async fn start(files: &[(String, Vec<u8>)]) -> Result<Self> {
        Self::start_at(free_address()?, files).await
    }

    /// Starts one at an address that its files may name.
    pub async fn start_at(address: SocketAddr, files: &[(String, Vec<u8>)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for (path, bytes) in files {
            let file = folder.path().join("www").join(path.trim_start_matches('/'));
            fs::create_dir_all(file.parent().context("a file is in a folder")?)?;
            fs::write(file, bytes)?;
        }
        let config = folder.path().join("nginx.conf");
        fs::write(&config, configuration(folder.path(), address)?)?;
        let program = PathBuf::from("nginx");
        let began = Instant::now();
        let child = machine::on_server_core(&program)
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("nginx does not start")?;
        fetch::first_answer(address, &files[0].0, &[("Accept-Encoding", "gzip".to_owned())], began).await?;
        let pids = machine::family(child.id().context("it has just started")?);
        Ok(Self { folder, child, pids, address })
    }

    /// How many requests it has answered so far.
    pub fn answered(&self) -> Result<usize> {
        Ok(fs::read_to_string(self.folder.path().join("access.log"))?.lines().count())
    }

    /// Stops it.
    pub async fn stop(mut self) -> Result<()> {
        // The master ends its worker only when it is asked to.
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.context("it still runs")?, rustix::process::Signal::TERM)?;
        self.child.wait().await?;
        self.folder.close()?;
        Ok(())
    }
}

fn configuration(folder: &Path, address: SocketAddr) -> Result<String> {
    // Otherwise a master of root has a worker of nobody, who may not read the folder.
    let user = std::process::Command::new("id").arg("-un").output()?;
    let (user, at) = (String::from_utf8(user.stdout)?, folder.display());
    let user = user.trim_end();
    Ok(format!(
        "user {user};
worker_processes 1;
daemon off;
pid {at}/nginx.pid;
error_log {at}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log {at}/access.log combined;
  sendfile on;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  open_file_cache max=1000 inactive=1h;
  open_file_cache_valid 1h;
  types {{ application/json json; application/zip zip; }}
  gzip_static on;
  client_body_temp_path {at}/body;
  proxy_temp_path {at}/proxy;
  fastcgi_temp_path {at}/fastcgi;
  uwsgi_temp_path {at}/uwsgi;
  scgi_temp_path {at}/scgi;
  server {{ listen {address}; root {at}/www; }}
}}
"
    ))
}
