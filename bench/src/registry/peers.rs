//! The registries that are measured: Larder, and those of `scripts/bench-peers` that are here. Each one stores in a folder of
//! its own, as it does by default, and is on the core of the servers.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::process::{Child, Command};

use super::{
    client::{Connection, Door, Send},
    table::LARDER,
};
use crate::{
    machine,
    program::{self, Larder},
};

/// How long a server may take to start.
const START: Duration = Duration::from_secs(30);

/// Tokens of Larder, and what they allow: one for whoever pushes, one for whoever may only pull.
const TOKENS: [(&str, &str); 2] = [("pushes", "read,publish"), ("pulls", "read")];

/// A program that is a registry.
#[derive(Clone, Debug)]
enum Kind {
    Larder(Larder),
    /// distribution, version 2 or 3: the same configuration serves both.
    Distribution(PathBuf),
    Zot(PathBuf),
}

/// A registry that can be started.
#[derive(Clone, Debug)]
pub struct Peer {
    /// How it is called in the tables.
    pub name: &'static str,
    kind: Kind,
}

/// What a program turns into.
type Make = fn(PathBuf) -> Kind;

/// The programs in the folder of `scripts/bench-peers`, behind their names in the tables.
const PEERS: [(&str, &str, Make); 3] = [
    ("distribution-3", "registry", Kind::Distribution),
    ("distribution-2", "docker-registry", Kind::Distribution),
    ("zot", "zot", Kind::Zot),
];

/// Larder and the peers that are here, Larder first; says loudly what is not.
pub async fn find(larder: &Larder, folder: Option<&Path>) -> Result<Vec<Peer>> {
    let folder = match folder {
        Some(folder) => folder.to_owned(),
        None => machine::cache_folder()?.join("bench-peers"),
    };
    let mut peers = vec![Peer { name: LARDER, kind: Kind::Larder(larder.clone()) }];
    for (name, program, kind) in PEERS {
        let path = folder.join("bin").join(program);
        if !path.is_file() {
            eprintln!("\n!!! {name} IS NOT HERE: scripts/bench-peers {} fetches it. !!!", folder.display());
            continue;
        }
        let output =
            Command::new(&path).arg("--version").output().await.with_context(|| format!("{name} does not run"))?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        println!("{name}: {:.100}", said.lines().next().unwrap_or("?"));
        peers.push(Peer { name, kind: kind(path) });
    }
    Ok(peers)
}

/// A registry that runs.
#[derive(Debug)]
pub struct Running {
    /// How it is called in the tables.
    pub name: &'static str,
    /// For whoever pushes.
    pub door: Door,
    /// For whoever may only pull; the same where nobody has to say who he is.
    pub pulls: Door,
    /// Its process.
    pub pid: u32,
    child: Child,
    folder: tempfile::TempDir,
}

impl Peer {
    /// Starts it on an empty folder in `place`, and waits until it answers.
    pub async fn start(&self, place: &Path) -> Result<Running> {
        let folder = tempfile::Builder::new().prefix(self.name).tempdir_in(place)?;
        let address = program::free_address()?;
        let mut authorizations = [None, None];
        let mut command = match &self.kind {
            Kind::Larder(larder) => {
                for (authorization, (name, actions)) in authorizations.iter_mut().zip(TOKENS) {
                    let grant = format!("{actions}:oci:*");
                    let token = larder.run(folder.path(), &["token", "create", name, "--allow", &grant]).await?;
                    *authorization = Some(format!("Basic {}", BASE64_STANDARD.encode(format!("bench:{token}"))));
                }
                larder.on_server_core(folder.path(), address)
            }
            Kind::Distribution(path) => distribution(path, folder.path(), address)?,
            Kind::Zot(path) => zot(path, folder.path(), address)?,
        };
        let log = fs::File::create(folder.path().join("bench.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{} does not start", self.name))?;
        let pid = child.id().context("it has just started")?;
        let [door, pulls] = authorizations.map(|authorization| Door { address, authorization });
        let running = Running { name: self.name, door, pulls, pid, child, folder };
        running.ready().await?;
        Ok(running)
    }
}

impl Running {
    async fn ready(&self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < START {
            if let Ok(mut connection) = Connection::open(&self.door).await {
                let head = Connection::head(&self.door, "GET", "/v2/");
                return connection.ask(&head, "GET", Send::Nothing, 200).await.map(drop);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let log = fs::read_to_string(self.folder.path().join("bench.log")).unwrap_or_default();
        bail!("{} does not answer: {log}", self.name)
    }

    /// Stops it, and throws its folder away.
    pub async fn stop(mut self) -> Result<()> {
        self.child.kill().await?;
        let folder = self.folder;
        tokio::task::spawn_blocking(|| folder.close()).await??;
        Ok(())
    }
}

/// As its example configuration has it, logs and all; without the traces that version 3 sends to whoever collects them,
/// which its official image leaves out too.
fn distribution(program: &Path, folder: &Path, address: SocketAddr) -> Result<Command> {
    let file = folder.join("config.yml");
    let data = folder.join("data");
    fs::write(
        &file,
        format!(
            "version: 0.1
log: {{ fields: {{ service: registry }} }}
storage:
  cache: {{ blobdescriptor: inmemory }}
  filesystem: {{ rootdirectory: {} }}
http:
  addr: {address}
  headers: {{ X-Content-Type-Options: [nosniff] }}
health:
  storagedriver: {{ enabled: true, interval: 10s, threshold: 3 }}
",
            data.display()
        ),
    )?;
    let mut command = machine::on_server_core(program);
    command.arg("serve").arg(file).env("OTEL_TRACES_EXPORTER", "none");
    Ok(command)
}

/// As its example configuration has it, which stores each blob once, and syncs nothing to the disk.
fn zot(program: &Path, folder: &Path, address: SocketAddr) -> Result<Command> {
    let file = folder.join("config.json");
    let config = serde_json::json!({
        "distSpecVersion": "1.1.1",
        "storage": { "rootDirectory": folder.join("data") },
        "http": { "address": address.ip().to_string(), "port": address.port().to_string() },
        "log": { "level": "info" },
    });
    fs::write(&file, config.to_string())?;
    let mut command = machine::on_server_core(program);
    command.arg("serve").arg(file);
    Ok(command)
}
