//! The conformance suite of the OCI distribution specification, whole: what comes with its next version, every kind of
//! data, and deletion.

use larder_e2e::{Ground, not_tested, on_every_ground, program::run, setting};
use tokio::process::Command;

use crate::registry;

on_every_ground!(the_conformance_suite_fails_nothing_and_skips_nothing);

/// The suite has more, how many depends on the answers. Far fewer mean that it gave up.
const MANY: u64 = 900;

async fn the_conformance_suite_fails_nothing_and_skips_nothing(ground: Ground) {
    let Some(suite) = setting("LARDER_TEST_OCI_CONFORMANCE") else {
        not_tested("the OCI conformance suite: LARDER_TEST_OCI_CONFORMANCE is not set");
        return;
    };
    let (server, token) = registry(ground).await;
    // The suite pushes manifests whose parts are missing. That is refused unless a policy allows it.
    server.ok(&["oci", "policy", "set", "conformance/*", "--sparse"]).await;
    let folder = tempfile::tempdir().expect("a test needs a place for temporary files");
    let mut command = Command::new(suite);
    command.current_dir(folder.path()).env_clear().envs([
        ("OCI_REGISTRY", server.address().to_string().as_str()),
        ("OCI_TLS", "disabled"),
        ("OCI_REPO1", "conformance/one"),
        ("OCI_REPO2", "conformance/two"),
        ("OCI_USERNAME", "ci"),
        ("OCI_PASSWORD", &token),
        ("OCI_VERSION", "dev"),
        ("OCI_DATA_SPARSE", "true"),
        ("OCI_RESULTS_DIR", "results"),
    ]);
    let report = run(command, b"").await.all();
    // A line for each test, indented by its place among the others, and the reasons below it.
    let tests = report.lines().skip_while(|line| !line.starts_with("OCI Conformance Test: "));
    let notable: Vec<_> =
        tests.take_while(|line| *line != "Configuration:").filter(|line| !line.ends_with(": Pass")).collect();
    let notable = notable.join("\n");
    for status in ["FAIL", "Error", "Skip", "Disabled"] {
        assert_eq!(count(&report, status), 0, "{status}:\n{notable}");
    }
    assert!(count(&report, "Pass") > MANY, "{report}");
    server.fsck().await;
    server.close().await;
}

/// How many tests ended so, from the summary: `  Skip..........................:         10`.
fn count(report: &str, status: &str) -> u64 {
    let line = report.lines().find_map(|line| line.trim().strip_prefix(status)?.strip_prefix("..."));
    let count = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    count.unwrap_or_else(|| panic!("the suite counts {status}: {report}"))
}
