//! Fetching from a hub, against a small local server that behaves like one: its listing, its redirects to a content
//! server, its ranges, and its bad days.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use darkroom::{Error, models::Hub};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The repository `owner/model`, whose large files are redirected to another path as the real hub does.
struct Server {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// How many transfers break off in the middle before one goes through.
    broken_transfers: AtomicUsize,
    requests: Mutex<Vec<String>>,
}

fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let weights: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    BTreeMap::from([
        ("README.md", b"not fetched".to_vec()),
        ("model_index.json", b"{}".to_vec()),
        ("scheduler/scheduler_config.json", b"{\"s\": 1}".to_vec()),
        ("unet/config.json", b"{\"u\": 1}".to_vec()),
        ("unet/diffusion_pytorch_model.safetensors", weights),
    ])
}

/// Starts a server that lives as long as the test's process; returns it and its address.
fn serve(broken_transfers: usize) -> (Arc<Server>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = Arc::new(Server {
        files: files(),
        broken_transfers: AtomicUsize::new(broken_transfers),
        requests: Mutex::new(Vec::new()),
    });
    let shared = Arc::clone(&server);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let server = Arc::clone(&shared);
            std::thread::spawn(move || server.answer(stream));
        }
    });
    (server, address)
}

impl Server {
    /// Answers one request and closes the connection.
    fn answer(&self, mut stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let Some(request) = lines.next() else { return };
        let mut range = None;
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").unwrap();
            if name.eq_ignore_ascii_case("range") {
                range = value.strip_prefix("bytes=").map(str::to_owned);
            }
        }
        let path = request.split(' ').nth(1).unwrap().to_owned();
        self.requests.lock().unwrap().push(path.clone());
        let resolved = path.strip_prefix("/owner/model/resolve/main/").or_else(|| path.strip_prefix("/cdn/"));
        if path == "/api/models/owner/model/revision/main" {
            let names: Vec<_> = self.files.keys().map(|name| format!("{{\"rfilename\": \"{name}\"}}")).collect();
            let listing = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", names.join(", "));
            reply(&mut stream, "200 OK", "", listing.as_bytes(), listing.len());
        } else if let Some((name, bytes)) = resolved.and_then(|name| self.files.get_key_value(name)) {
            let large = bytes.len() > 1000;
            let headers = format!("etag: \"etag-{}\"\r\nx-repo-commit: {COMMIT}\r\n", name.replace('/', "-"));
            if large && !path.starts_with("/cdn/") {
                let linked = headers.replace("etag: ", "x-linked-etag: ");
                let host = stream.local_addr().unwrap();
                let headers = format!("{linked}location: http://{host}/cdn/{name}\r\n");
                reply(&mut stream, "302 Found", &headers, b"", 0);
            } else {
                self.send(&mut stream, bytes, range.as_deref(), &headers);
            }
        } else {
            reply(&mut stream, "404 Not Found", "", b"no such thing", 13);
        }
    }

    /// Sends a range of `bytes`, breaking off half-way while there are transfers to break.
    fn send(&self, stream: &mut TcpStream, bytes: &[u8], range: Option<&str>, headers: &str) {
        let (start, end) = range.and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
        let start: usize = start.parse().unwrap();
        let end: usize = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
        let part = &bytes[start..end];
        let mut headers = headers.to_owned();
        write!(headers, "content-range: bytes {start}-{}/{}\r\n", end.max(1) - 1, bytes.len()).unwrap();
        let breaks = part.len() > 1000
            && self
                .broken_transfers
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok();
        let sent = if breaks { &part[..part.len() / 2] } else { part };
        reply(stream, "206 Partial Content", &headers, sent, part.len());
    }
}

fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8], length: usize) {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n");
    // A client that has what it wants may have left.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn hub(endpoint: &str, cache: &tempfile::TempDir) -> Hub {
    Hub { endpoint: Some(endpoint.to_owned()), cache: Some(cache.path().to_owned()), token: None }
}

#[test]
fn a_repository_is_fetched_once_and_then_taken_from_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let (server, address) = serve(0);
    let mut parts = Vec::new();
    let root = hub(&address, &cache).fetch("owner/model", &mut |part| parts.push(part)).unwrap();
    for (name, bytes) in files().iter().filter(|(name, _)| **name != "README.md") {
        assert_eq!(&std::fs::read(root.join(name)).unwrap(), bytes, "{name}");
    }
    assert!(!root.join("README.md").exists());
    assert!(parts.is_sorted() && *parts.last().unwrap() > 0.999, "{parts:?}");

    server.requests.lock().unwrap().clear();
    assert_eq!(hub(&address, &cache).fetch("owner/model", &mut |_| {}).unwrap(), root);
    assert_eq!(*server.requests.lock().unwrap(), ["/api/models/owner/model/revision/main"]);

    // A port that nobody listens on: the cache still serves.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(hub(&format!("http://{closed}"), &cache).fetch("owner/model", &mut |_| {}).unwrap(), root);
}

#[test]
fn a_transfer_that_breaks_off_is_taken_up_again() {
    let cache = tempfile::tempdir().unwrap();
    let (server, address) = serve(1);
    let root = hub(&address, &cache).fetch("owner/model", &mut |_| {}).unwrap();
    let name = "unet/diffusion_pytorch_model.safetensors";
    assert_eq!(std::fs::read(root.join(name)).unwrap(), files()[name]);
    assert_eq!(server.broken_transfers.load(Ordering::SeqCst), 0);
}

#[test]
fn what_is_not_there_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let (_server, address) = serve(0);
    let error = hub(&address, &cache).fetch("owner/other", &mut |_| {}).unwrap_err();
    assert!(matches!(&error, Error::Hub { repository, .. } if repository == "owner/other"));
    assert!(error.to_string().contains("no such repository"), "{error}");
}
