//! Requests that no client sends: each gets its 4xx, none a 5xx, and the server goes on as if nothing had happened.

use std::time::Duration;

use larder_e2e::{Ground, Server, on_every_ground, wire};

use crate::install::with_three_packages;

on_every_ground!(
    hostile_requests_get_the_right_refusal_and_the_server_goes_on,
    a_head_that_never_ends_is_refused_in_time,
);

/// What is sent, and the statuses that are right for it; none means that the connection ends without a word.
type Case<'a> = (&'a str, Vec<u8>, &'a [u16]);

async fn hostile_requests_get_the_right_refusal_and_the_server_goes_on(ground: Ground) {
    let (_forge, server) = with_three_packages(ground, &[]).await;
    let token = server.token("ci", &[]).await;
    let dist =
        server.versions(&token, "acme/text", false).await[0]["dist"]["url"].as_str().unwrap_or_default().to_owned();
    let dist = dist.strip_prefix(&server.url()).expect("the dist is at the public URL").to_owned();
    let mut wrong = Vec::new();
    let cases = addresses(&token).into_iter().chain(methods(&token, &dist)).chain(heads(&token)).chain(bodies(&token));
    for (name, bytes, right) in cases.chain(ranges(&token, &dist)) {
        let said = wire::raw(server.address(), &bytes, Duration::from_secs(10)).await;
        let status =
            said.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse::<u16>().ok());
        if !status.map_or(right.is_empty(), |status| right.contains(&status)) {
            wrong.push(format!(
                "{name}: {right:?} is right, but: {}",
                said.lines().next().unwrap_or("nothing was said")
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(server.get("/packages.json", Some(&token)).await.status.is_success());
    assert!(server.get(&dist, Some(&token)).await.status.is_success());
    server.close().await;
}

async fn a_head_that_never_ends_is_refused_in_time(ground: Ground) {
    let server = Server::start(ground).await;
    let said =
        wire::raw(server.address(), b"GET /packages.json HTTP/1.1\r\nHost: x\r\nX-Slow: ", Duration::from_secs(40))
            .await;
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    let silent = wire::raw(server.address(), b"", Duration::from_millis(100)).await;
    assert_eq!(silent, "");
    server.close().await;
}

fn request(method: &str, path: &str, token: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n{more}\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn addresses(token: &str) -> Vec<Case<'static>> {
    let get = |path: &str| request("GET", path, token, "", b"");
    vec![
        ("a % alone", get("/p2/%/x.json"), &[400]),
        ("half an escape", get("/p2/acme/text%2"), &[400]),
        ("no hex", get("/p2/%zz/x.json"), &[400]),
        ("not UTF-8", get("/p2/acme/%ff%fe.json"), &[400]),
        ("a zero byte", get("/p2/acme/text%00.json"), &[400]),
        ("a line break", get("/p2/acme/text%0d%0aX-Evil:%201.json"), &[400]),
        ("up and out", get("/../../etc/passwd"), &[400]),
        ("up and out, encoded", get("/p2/%2e%2e/%2e%2e/etc/passwd"), &[400]),
        ("up and in", get("/p2/../packages.json"), &[400]),
        ("up, with an encoded slash", get("/p2/acme/..%2f..%2fsecret.key"), &[400]),
        ("a backslash", get("/p2/acme\\text.json"), &[400]),
        ("an encoded backslash", get("/p2/acme%5ctext.json"), &[400]),
        ("empty segments", get("//p2///acme/text.json"), &[400]),
        ("a query that is no text", get("/list.json?filter=%ff"), &[400]),
        ("a fragment", get("/packages.json#x"), &[200, 400]),
        ("somebody else's address", get("http://evil.example.org/packages.json"), &[200, 400, 421]),
        ("no slash", get("packages.json"), &[400]),
        ("a star", get("*"), &[400, 404]),
        ("too long", get(&format!("/p2/acme/{}.json", "a".repeat(9_000))), &[414]),
        ("a name too long", get(&format!("/p2/acme/{}.json", "a".repeat(5_000))), &[400, 404]),
        ("a dist of nothing", get("/dist/acme/text/1/2/3/4/5.zip"), &[404]),
        ("a reference that is none", get("/dist/acme/text/1.0.0.0/--upload-pack=id.zip"), &[404]),
        ("a search for everything", get(&format!("/search.json?q={}", "%20a".repeat(1_500))), &[200]),
    ]
}

fn methods(token: &str, dist: &str) -> Vec<Case<'static>> {
    let send = |method: &str, path: &str| request(method, path, token, "Content-Length: 0\r\n", b"");
    vec![
        ("delete the root", send("DELETE", "/packages.json"), &[405]),
        ("post a package", send("POST", "/p2/acme/text.json"), &[405]),
        ("put a dist", send("PUT", dist), &[405]),
        ("patch a list", send("PATCH", "/list.json"), &[405]),
        ("options", send("OPTIONS", "/packages.json"), &[405]),
        ("trace", send("TRACE", "/packages.json"), &[405]),
        ("connect", send("CONNECT", "example.org:443"), &[400, 405]),
        ("a method of nobody", send("BREW", "/packages.json"), &[405]),
        ("get what is only posted", send("GET", "/downloads"), &[405]),
        ("delete health", send("DELETE", "/healthz"), &[405]),
    ]
}

fn heads(token: &str) -> Vec<Case<'static>> {
    let with = |more: &str| request("GET", "/packages.json", token, more, b"");
    let raw = |text: &str| text.as_bytes().to_vec();
    let many = "X-Again: y\r\n".repeat(150);
    vec![
        ("not HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), &[400]),
        ("one word", raw("hello\r\n\r\n"), &[400]),
        ("no version", raw("GET /\r\n\r\n"), &[400]),
        ("a version of nobody", raw("GET / HTTP/9.9\r\nHost: x\r\n\r\n"), &[400, 505]),
        // Whoever begins so understands no answer in another version.
        ("HTTP/2 at once", raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), &[]),
        ("a header of 20 KB", with(&format!("X-Large: {}\r\n", "a".repeat(20_000))), &[431]),
        ("150 headers", with(&many), &[431]),
        ("a header without a colon", with("nonsense\r\n"), &[400]),
        ("a header without a name", with(": x\r\n"), &[400]),
        ("a header with a zero byte", with("X-Zero: a\0b\r\n"), &[400]),
        ("a space before the colon", with("X-Space : y\r\n"), &[400]),
        ("no token", raw("GET /packages.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), &[401]),
        (
            "nonsense for a token",
            raw("GET /packages.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Basic !!!\r\n\r\n"),
            &[401],
        ),
        (
            "bytes for a token",
            b"GET /packages.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
                .to_vec(),
            &[400, 401],
        ),
        ("a date that is none", with("If-Modified-Since: yesterday\r\n"), &[200]),
        ("tags without end", with(&format!("If-None-Match: {}\"x\"\r\n", "\"y\", ".repeat(2_000))), &[200]),
    ]
}

fn bodies(token: &str) -> Vec<Case<'static>> {
    let post = |more: &str, body: &[u8]| request("POST", "/downloads", token, more, body);
    let sized =
        |body: &[u8]| post(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()), body);
    let deep = format!("{{\"downloads\": {}{}}}", "[".repeat(50_000), "]".repeat(50_000));
    vec![
        ("not JSON", sized(b"{"), &[400]),
        ("JSON of another shape", sized(b"[1, 2]"), &[400]),
        ("JSON 50,000 deep", sized(deep.as_bytes()), &[400]),
        ("not UTF-8", sized(b"{\"downloads\": [{\"name\": \"\xff\"}]}"), &[400]),
        ("3 MB", sized(&vec![b' '; 3_000_000]), &[413]),
        ("a length that is none", post("Content-Length: many\r\n", b""), &[400]),
        ("a negative length", post("Content-Length: -1\r\n", b""), &[400]),
        ("two lengths", post("Content-Length: 2\r\nContent-Length: 3\r\n", b"{}"), &[400]),
        ("a length and chunks", post("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), &[200, 400]),
        ("chunks that are none", post("Transfer-Encoding: chunked\r\n", b"zz\r\n{}\r\n0\r\n\r\n"), &[400]),
        ("an encoding of nobody", post("Transfer-Encoding: brotli\r\n", b"{}"), &[400, 501]),
    ]
}

fn ranges(token: &str, dist: &str) -> Vec<Case<'static>> {
    let with = |range: &str| request("GET", dist, token, &format!("Range: {range}\r\n"), b"");
    vec![
        ("beyond the end", with("bytes=999999999-"), &[416]),
        ("backwards", with("bytes=5-2"), &[200, 416]),
        ("no numbers", with("bytes=a-b"), &[200, 416]),
        ("another unit", with("pages=1-2"), &[200]),
        ("a thousand", with(&format!("bytes={}", "0-0,".repeat(1_000))), &[200, 206, 400, 416]),
        ("a number without end", with(&format!("bytes={}-", "9".repeat(100))), &[200, 416]),
    ]
}
