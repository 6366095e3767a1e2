//! Who may ask: keys on every route however its path is spelled, quotas, origins, TLS and sockets.

use std::io::{BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use kvant_server::{Access, Keys, Quota, Tls, hash_line};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::client::{Answer, begin, get, open, post, read, read_until, send};
use crate::server::Server;

const USER: &str = "kv-user";
const ADMIN: &str = "kv-admin";
const TEXT: &str = "/v1/completions";

fn keys(more: &str) -> Keys {
    let text =
        format!("{}{more}\n{}\n", hash_line(USER, "user", false), hash_line(ADMIN, "boss", true));
    Keys::parse(&text, Quota::default()).unwrap()
}

fn guarded(more: &str) -> (Server, Arc<Access>) {
    let access = Arc::new(Access::with_keys(keys(more)));
    let given = access.clone();
    (Server::with_app(|_, _| {}, |app| app.access = given), access)
}

/// Every path of the router, and what its methods are called there.
fn routes() -> Vec<(String, String)> {
    let source = include_str!("../../src/routes.rs");
    let lines = source.lines().filter_map(|line| line.trim().strip_prefix(".route(\""));
    let found: Vec<_> = lines
        .map(|line| {
            let (path, rest) = line.split_once('"').unwrap();
            let method = rest.trim_start_matches(", ").split('(').next().unwrap();
            (method.to_uppercase(), path.replace("{*id}", "test/echo"))
        })
        .collect();
    assert!(found.len() >= 10, "{found:?}");
    found
}

/// Spellings that somebody might hope to be the same path to the router and not to the guard.
fn spellings(path: &str) -> Vec<String> {
    let encoded = |byte: u8| format!("%{byte:02x}");
    let last = *path.as_bytes().last().unwrap();
    vec![
        path.to_owned(),
        format!("/{path}"),
        format!("//{path}"),
        format!("{path}/"),
        format!("{path}//"),
        format!("/.{path}"),
        format!("/health/..{path}"),
        format!("/health/%2e%2e{path}"),
        format!("{}{}", &path[..path.len() - 1], encoded(last)),
        format!(
            "/{}{}",
            encoded(*path.as_bytes().get(1).unwrap_or(&b'x')),
            path.get(2..).unwrap_or("")
        ),
        format!("%2f{}", path.trim_start_matches('/')),
        format!("{path}?x=/health"),
        format!("{path};/health"),
        path.to_uppercase(),
        format!("http://localhost{path}"),
        format!("http://localhost/health/..{path}"),
    ]
}

fn ask(server: &Server, line: &str, headers: &str) -> Answer {
    let body = if line.starts_with("GET") { "" } else { "{\"prompt\": [40], \"max_tokens\": 1}" };
    send(server, line, headers, body.as_bytes())
}

#[test]
fn no_spelling_of_any_route_comes_in_without_a_key() {
    let (server, _) = guarded("");
    let page = ["/", "/page.css", "/page.js"];
    let open = ["/health", "/ready"].into_iter().chain(page).collect::<Vec<_>>();
    let page = page.map(|path| ("GET".to_owned(), path.to_owned()));
    for (method, route) in routes().into_iter().chain(page) {
        for path in spellings(&route).into_iter().filter(|path| path.starts_with(['/', 'h'])) {
            let line = format!("{method} {path}");
            let plain = path.strip_prefix("http://localhost").unwrap_or(&path);
            let plain = plain.split('?').next().unwrap();
            let expected = if open.contains(&plain) { 200 } else { 401 };
            for headers in [
                "",
                "authorization: Bearer kv-wrong\r\n",
                "authorization: Bearer \r\n",
                "authorization: Basic kv-user\r\n",
                "x-api-key: kv-use\r\n",
            ] {
                let answer = ask(&server, &line, headers);
                assert_eq!(answer.status, expected, "{line} {headers:?}: {answer:?}");
                if expected == 401 {
                    assert!(answer.header("www-authenticate").is_some());
                    assert!(!answer.text().contains("kv-"), "{}", answer.text());
                }
            }
            for headers in [
                "authorization: Bearer kv-user\r\n",
                "x-api-key: kv-user\r\n",
                "authorization: bearer kv-user\r\n",
            ] {
                let answer = ask(&server, &line, headers);
                assert_ne!(answer.status, 401, "{line}: {answer:?}");
            }
        }
    }
    for path in open {
        let answer = ask(&server, &format!("POST {path}"), "");
        assert_eq!(answer.status, 401, "only GET is open");
    }
}

#[test]
fn admin_paths_want_an_admin_key_however_they_are_spelled() {
    let (server, _) = guarded("");
    for path in [
        "/admin",
        "/admin/",
        "/admin/status",
        "//admin/status",
        "/ADMIN/status",
        "/%61dmin/status",
        "///admin",
        "/admin%2fstatus",
    ] {
        let line = format!("GET {path}");
        assert_eq!(ask(&server, &line, "x-api-key: kv-user\r\n").status, 403, "{path}");
        let boss = ask(&server, &line, "x-api-key: kv-admin\r\n").status;
        assert!(![401, 403].contains(&boss), "{path}: {boss}");
    }
    let answer = ask(&server, "GET /v1/models", "x-api-key: kv-admin\r\n");
    assert_eq!(answer.status, 200, "an admin key is a key");
}

#[test]
fn keys_change_while_the_server_serves() {
    let (server, access) = guarded("");
    let status = |key: &str| {
        ask(&server, "GET /v1/models", &format!("authorization: Bearer {key}\r\n")).status
    };
    assert_eq!((status(USER), status("kv-new")), (200, 401));
    let line = hash_line("kv-new", "new", false);
    access.replace(Keys::parse(&line, Quota::default()).unwrap());
    assert_eq!((status(USER), status("kv-new")), (401, 200));
}

#[test]
fn a_key_has_as_many_requests_at_a_time_as_its_line_says() {
    let (server, access) = guarded(" concurrent=2");
    let key = "authorization: Bearer kv-user\r\n";
    server.script.hold.store(true, SeqCst);
    let body = json!({"prompt": [40], "max_tokens": 2, "stream": true}).to_string();
    let head = format!("POST {TEXT} HTTP/1.1\r\n{key}");
    let mut held: Vec<_> = (0..2).map(|_| open(&server, &head, body.as_bytes())).collect();
    server.wait_for("two", Duration::from_secs(20), |g| g.running + g.waiting == 2);
    let third = ask(&server, &format!("POST {TEXT}"), key);
    assert_eq!((third.status, third.header("retry-after")), (429, Some("1")));
    assert_eq!(third.json()["error"]["code"], "concurrency_limit");
    assert_eq!(ask(&server, "GET /v1/models", key).status, 200, "asking costs nothing");
    access.replace(keys(" concurrent=2"));
    assert_eq!(ask(&server, &format!("POST {TEXT}"), key).status, 429, "counts stay");
    let other = "authorization: Bearer kv-admin\r\n";
    server.script.hold.store(false, SeqCst);
    assert_eq!(ask(&server, &format!("POST {TEXT}"), other).status, 200);
    for stream in &mut held {
        read_until(stream, "data: [DONE]");
    }
    let start = std::time::Instant::now();
    while ask(&server, &format!("POST {TEXT}"), key).status != 200 {
        assert!(start.elapsed() < Duration::from_secs(20), "places are not given back");
    }
}

#[test]
fn a_key_has_as_many_requests_a_minute_as_its_line_says() {
    let (server, _) = guarded(" requests_per_minute=3");
    let key = "authorization: Bearer kv-user\r\n";
    let statuses: Vec<u16> =
        (0..4).map(|_| ask(&server, &format!("POST {TEXT}"), key).status).collect();
    assert_eq!(statuses, [200, 200, 200, 429]);
    let refused = ask(&server, &format!("POST {TEXT}"), key);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait}");
    assert_eq!(refused.json()["error"]["code"], "rate_limit");
}

#[test]
fn pages_of_other_origins_are_let_in_by_name_only() {
    let origin = "origin: https://chat.example\r\n";
    let preflight = format!("{origin}access-control-request-method: POST\r\n");
    let closed = Server::start();
    for answer in
        [ask(&closed, "GET /v1/models", origin), ask(&closed, "OPTIONS /v1/models", &preflight)]
    {
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let adapt = |app: &mut kvant_server::App| {
        app.origins = vec!["https://chat.example".to_owned()];
        app.access = Arc::new(Access::with_keys(keys("")));
    };
    let server = Server::with_app(|_, _| {}, adapt);
    let asked = ask(&server, &format!("OPTIONS {TEXT}"), &preflight);
    assert_eq!(asked.status, 204, "a browser shows no key here");
    assert_eq!(asked.header("access-control-allow-origin"), Some("https://chat.example"));
    assert!(asked.header("access-control-allow-headers").unwrap().contains("authorization"));
    let refused = ask(&server, "GET /v1/models", origin);
    assert_eq!(refused.status, 401, "the page itself does");
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://chat.example"));
    for other in ["origin: https://chat.example.org\r\n", "origin: null\r\n"] {
        let more = format!("{other}access-control-request-method: POST\r\n");
        assert_eq!(ask(&server, &format!("OPTIONS {TEXT}"), &more).status, 401);
    }
}

const FIRST: [&[u8]; 2] =
    [include_bytes!("../certificates/first.crt"), include_bytes!("../certificates/first.key")];
const SECOND: [&[u8]; 2] =
    [include_bytes!("../certificates/second.crt"), include_bytes!("../certificates/second.key")];

/// Status of /health for a client that trusts one certificate.
fn over_tls(server: &Server, trusted: &[u8]) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = std::net::TcpStream::connect(&server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut stream = StreamOwned::new(client, socket);
    let head = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(head).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    Ok(answer)
}

#[test]
fn tls_shows_the_certificate_of_now() {
    let tls = Arc::new(Tls::new(FIRST[0], FIRST[1]).unwrap());
    let given = tls.clone();
    let server = Server::with_app(|_, _| {}, |app| app.tls = Some(given));
    assert!(over_tls(&server, FIRST[0]).unwrap().starts_with("HTTP/1.1 200"));
    assert!(over_tls(&server, SECOND[0]).is_err());
    tls.replace(SECOND[0], SECOND[1]).unwrap();
    assert!(over_tls(&server, SECOND[0]).unwrap().starts_with("HTTP/1.1 200"));
    assert!(over_tls(&server, FIRST[0]).is_err());
    for (chain, key) in [(FIRST[0], SECOND[1]), (FIRST[1], FIRST[1]), (FIRST[0], b"".as_slice())] {
        assert!(tls.replace(chain, key).is_err());
    }
    assert!(over_tls(&server, SECOND[0]).is_ok(), "a wrong pair changes nothing");
    let mut plain = std::net::TcpStream::connect(&server.address).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "no answer without TLS");
}

#[cfg(unix)]
#[test]
fn a_unix_socket_serves_as_a_port_does() {
    let server = Server::on_socket(|_, _| {});
    let mut stream = std::os::unix::net::UnixStream::connect(&server.address).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let answer = read(&mut BufReader::new(stream));
    assert_eq!((answer.status, answer.json()), (200, json!({"status": "ok"})));
}

#[test]
fn an_open_server_asks_for_nothing() {
    let server = Server::start();
    assert_eq!(get(&server, "/v1/models").status, 200);
    let body: Value = json!({"prompt": [40], "max_tokens": 1});
    assert_eq!(post(&server, TEXT, &body).status, 200);
    drop(begin(&server, TEXT, &body));
}
