//! Wrong configuration: the program says which key, where, and what it expected; it does not start, and tells no secret.

use std::sync::Arc;

use larder_e2e::{Ground, Options, Server, program::run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_value_is_named_with_its_key_its_place_and_what_was_expected() {
    let server = Server::prepare(&Arc::new(Ground::local()), Options::default()).await;
    server.guard("hunter2");
    for (variable, value, expected) in [
        ("LARDER_LISTEN", "localhost", "127.0.0.1:8080"),
        ("LARDER_LISTEN", "127.0.0.1:99999", "127.0.0.1:8080"),
        ("LARDER_PUBLIC_URL", "ftp://packages.example.org", "https://packages.example.org"),
        ("LARDER_PUBLIC_URL", "https://user:pass@packages.example.org", "https://packages.example.org"),
        ("LARDER_DATABASE_URL", "mysql://larder:hunter2@localhost/larder", "postgres://"),
        ("LARDER_STORAGE_URL", "ftp://store", "s3://BUCKET/PREFIX"),
        ("LARDER_SECRET_KEY", "hunter2", "LARDER_SECRET_KEY"),
        ("LARDER_TRUSTED_PROXIES", "everybody", "10.0.0.0/8"),
        ("LARDER_ALLOW_LOCAL_SOURCES", "maybe", "true or false"),
        ("LARDER_LOG", "larder=loud=very", "LARDER_LOG"),
        ("LARDER_LOG_FORMAT", "xml", "text, json or auto"),
        ("LARDER_WORKERS", "0", "a whole number above 0"),
        ("LARDER_LIMITS_GIT_LIST", "soon", "30s"),
        ("LARDER_LIMITS_REFS", "-1", "a whole number above 0"),
        ("LARDER_SECRET_KEY_FILE", "/nowhere/key", "/nowhere/key"),
    ] {
        let mut command = server.command(&["serve", "--listen", "127.0.0.1:0"]).await;
        if variable == "LARDER_LISTEN" {
            command = server.command(&["serve"]).await;
        }
        command.env(variable, value);
        let said = run(command, b"").await.failed(1);
        assert!(said.contains(variable) && said.contains(expected), "{variable}={value}: {said}");
        assert!(!said.contains("hunter2"), "a secret is told: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_file_is_named_with_its_key_and_its_line() {
    let server = Server::prepare(&Arc::new(Ground::local()), Options::default()).await;
    let file = server.data().with_file_name("wrong.toml");
    for (text, expected) in [
        ("listn = \"127.0.0.1:0\"\n", vec!["`listn`", "listen"]),
        ("[limits]\nreffs = 5\n", vec!["`limits.reffs`", "limits.refs"]),
        ("[limits]\nrefs = \"many\"\n", vec!["limits.refs", "a whole number above 0"]),
        ("listen = \n", vec!["TOML", "1"]),
        ("listen = 5\n", vec!["listen", "127.0.0.1:8080"]),
        ("[s3]\nendpoint = \"x\"\n", vec!["s3.endpoint", "s3_endpoint"]),
    ] {
        std::fs::write(&file, text).expect("a file can be written");
        let command = server.command(&["serve", "--config", &file.display().to_string()]).await;
        let said = run(command, b"").await.failed(1);
        assert!(said.contains("wrong.toml"), "{text}: {said}");
        for part in expected {
            assert!(said.contains(part), "{text}: {said}");
        }
    }
    let missing = run(server.command(&["serve", "--config", "/nowhere/larder.toml"]).await, b"").await.failed(1);
    assert!(missing.contains("/nowhere/larder.toml"), "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_named_and_nothing_starts() {
    let server = Server::prepare(&Arc::new(Ground::local()), Options::default()).await;
    server.guard("hunter2");
    let taken = server.url().replace("http://", "");
    let a_file = server.data().with_file_name("a-file");
    std::fs::write(&a_file, "x").expect("a file can be written");
    let a_file = a_file.display().to_string();
    for (args, environment, expected) in [
        (vec!["serve", "--listen", &taken], None, vec![taken.as_str()]),
        (vec!["serve", "--data", &a_file], None, vec![a_file.as_str()]),
        (
            vec!["serve"],
            Some(("LARDER_DATABASE_URL", "postgres://larder:hunter2@127.0.0.1:1/larder")),
            vec!["database"],
        ),
        (
            vec!["token", "list"],
            Some(("LARDER_DATABASE_URL", "postgres://larder:hunter2@127.0.0.1:1/larder")),
            vec!["database"],
        ),
    ] {
        let mut command = server.command(&args).await;
        command.envs(environment);
        let said = run(command, b"").await.failed(1);
        for part in expected {
            assert!(said.contains(part), "{args:?} {environment:?}: {said}");
        }
        assert!(!said.contains("hunter2"), "a secret is told: {said}");
    }
    let mut half = server.command(&["serve"]).await;
    half.env("LARDER_STORAGE_URL", "s3://bucket/prefix").env("LARDER_S3_SECRET_KEY", "hunter2");
    let half = run(half, b"").await.failed(1);
    assert!(half.contains("access key") && !half.contains("hunter2"), "{half}");
    let usage = run(server.command(&["serve", "--lisen", "127.0.0.1:0"]).await, b"").await.failed(2);
    assert!(usage.contains("--listen"), "{usage}");
}
