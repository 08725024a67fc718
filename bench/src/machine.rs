//! The machine: which one it is, which programs it has, and what the kernel says about a process.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command as Plain,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

/// The core of the servers.
const SERVER_CORE: &str = "0";
/// The core of the client.
const CLIENT_CORE: &str = "1";

/// The kernel counts processor time in hundredths of a second (`USER_HZ`, the same on every Linux).
const TICK: Duration = Duration::from_millis(10);

/// Prints what the figures depend on.
pub fn describe() -> Result<()> {
    let cpu = fs::read_to_string("/proc/cpuinfo").context("this program needs Linux")?;
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, it)| it);
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    println!("machine: {cores} cores, {model}");
    for (program, argument) in [("uname", "-sr"), ("git", "version"), ("nginx", "-v"), ("wrk", "-v")] {
        if let Ok(output) = Plain::new(program).arg(argument).output() {
            let text = [output.stdout, output.stderr].concat();
            println!("{program}: {}", String::from_utf8_lossy(&text).lines().next().unwrap_or("?"));
        }
    }
    let load = fs::read_to_string("/proc/loadavg")?;
    println!("load before: {}", load.split(' ').take(3).collect::<Vec<_>>().join(" "));
    Ok(())
}

/// The programs that are not here, with the Debian packages that have them.
pub fn missing() -> Vec<(&'static str, &'static str)> {
    let needed = [("nginx", "-v", "nginx"), ("wrk", "-v", "wrk"), ("taskset", "-V", "util-linux")];
    needed
        .into_iter()
        .filter(|(program, argument, _)| Plain::new(program).arg(argument).output().is_err())
        .map(|(program, _, package)| (program, package))
        .collect()
}

/// Where scripts keep the programs that they fetch.
#[expect(clippy::disallowed_methods, reason = "where scripts keep what they fetch is no setting of Larder")]
pub fn cache_folder() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable("LARDER_CACHE_DIR")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("larder")))
        .or_else(|| Some(variable("HOME")?.join(".cache/larder")))
        .context("there is no HOME: say where the programs are that are measured")
}

/// A command on the core of the servers.
pub fn on_server_core(program: &Path) -> Command {
    pinned(SERVER_CORE, program)
}

/// A command on the core of the client.
pub fn on_client_core(program: &Path) -> Command {
    pinned(CLIENT_CORE, program)
}

/// Moves this program, all of its threads, to the core of the client.
pub async fn move_to_client_core() -> Result<()> {
    let own = std::process::id().to_string();
    let moved = Command::new("taskset").args(["-a", "-c", "-p", CLIENT_CORE, &own]).output().await?;
    if !moved.status.success() {
        bail!("taskset: {}", String::from_utf8_lossy(&moved.stderr));
    }
    Ok(())
}

fn pinned(core: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(program);
    command
}

/// A process and all that it started, by their ids; those that ended are left out.
pub fn family(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok())
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(pid) = family.get(next) {
        family.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    family
}

/// The fields of `/proc/PID/stat` after the name: the first one is the state.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// The processor time that processes have used, in user and system mode.
pub fn processor_time(pids: &[u32]) -> Duration {
    let ticks = |pid: &u32| -> Option<u32> {
        let fields = stat(*pid)?;
        Some(fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?)
    };
    TICK * pids.iter().filter_map(ticks).sum::<u32>()
}

/// Lets the most that was resident of a process count from now on.
pub fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("the kernel does not reset the peak of a process")
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident now (`VmRSS`).
    pub now: u64,
    /// The most that was resident (`VmHWM`).
    pub peak: u64,
}

/// What is resident of a process.
pub fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Memory { now: kib("VmRSS").unwrap_or(0) * 1024, peak: kib("VmHWM").unwrap_or(0) * 1024 }
}
