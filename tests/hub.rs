//! Fetching from a hub, against a small local server that behaves like one: its listing, its redirects to a content
//! server, its ranges, and its bad days.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use darkroom::{
    Error,
    models::{Checkpoint, Hub},
    nn::WeightFile,
};

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

type Files = BTreeMap<String, Vec<u8>>;

/// The repository `owner/model`, whose large files are redirected to another path as the real hub does.
struct Server {
    files: Mutex<Files>,
    commit: Mutex<&'static str>,
    /// How many transfers break off in the middle before one goes through.
    broken_transfers: AtomicUsize,
    requests: Mutex<Vec<String>>,
}

fn files() -> Files {
    let weights: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let files = [
        ("README.md", b"not fetched".to_vec()),
        (
            "model_index.json",
            br#"{"scheduler": ["d", "S"], "unet": ["d", "U"], "safety_checker": [null, null]}"#.to_vec(),
        ),
        ("scheduler/scheduler_config.json", b"{\"s\": 1}".to_vec()),
        ("unet/config.json", b"{\"u\": 1}".to_vec()),
        (WEIGHTS, weights),
    ];
    files.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}

/// The files of one of the tiny checkpoints.
fn checkpoint(name: &str) -> Files {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/data").join(name).join("model");
    let mut files = Files::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

/// Starts a server that lives as long as the test's process; returns it and its address.
fn serve(files: Files, broken_transfers: usize) -> (Arc<Server>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = Arc::new(Server {
        files: Mutex::new(files),
        commit: Mutex::new(COMMIT),
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
        let files = self.files.lock().unwrap().clone();
        let commit = *self.commit.lock().unwrap();
        let resolved = path.strip_prefix("/owner/model/resolve/main/").or_else(|| path.strip_prefix("/cdn/"));
        if path == "/api/models/owner/model/revision/main" {
            let names: Vec<_> = files.keys().map(|name| format!("{{\"rfilename\": \"{name}\"}}")).collect();
            let listing = format!("{{\"sha\": \"{commit}\", \"siblings\": [{}]}}", names.join(", "));
            reply(&mut stream, "200 OK", "", listing.as_bytes(), listing.len());
        } else if let Some((name, bytes)) = resolved.and_then(|name| files.get_key_value(name)) {
            let large = bytes.len() > 1000;
            let size = bytes.len();
            let headers = format!("etag: \"etag-{}-{size}\"\r\nx-repo-commit: {commit}\r\n", name.replace('/', "-"));
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
    Hub {
        endpoint: endpoint.to_owned(),
        cache: cache.path().to_owned(),
        token: None,
        offline: false,
        answer_within: Duration::from_secs(30),
    }
}

fn fetch(hub: &Hub) -> darkroom::Result<PathBuf> {
    hub.fetch("owner/model", &mut |_| {})
}

/// The paths of a folder's files below it, sorted.
fn below(root: &Path) -> Vec<String> {
    let mut folders = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_repository_is_fetched_once_and_then_taken_from_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let (server, address) = serve(files(), 0);
    let mut parts = Vec::new();
    let root = hub(&address, &cache).fetch("owner/model", &mut |part| parts.push(part)).unwrap();
    for (name, bytes) in files().iter().filter(|(name, _)| *name != "README.md") {
        assert_eq!(&fs::read(root.join(name)).unwrap(), bytes, "{name}");
    }
    assert!(!root.join("README.md").exists());
    assert!(parts.is_sorted() && *parts.last().unwrap() > 0.999, "{parts:?}");
    let asked = server.requests.lock().unwrap().split_off(0);
    assert!(asked.last().unwrap().ends_with("model_index.json"), "{asked:?}");

    assert_eq!(fetch(&hub(&address, &cache)).unwrap(), root);
    assert_eq!(*server.requests.lock().unwrap(), ["/api/models/owner/model/revision/main"]);

    // A port that nobody listens on: the cache still serves.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(fetch(&hub(&format!("http://{closed}"), &cache)).unwrap(), root);
}

#[test]
fn a_transfer_that_breaks_off_is_taken_up_again() {
    let cache = tempfile::tempdir().unwrap();
    let (server, address) = serve(files(), 1);
    let root = fetch(&hub(&address, &cache)).unwrap();
    assert_eq!(fs::read(root.join(WEIGHTS)).unwrap(), files()[WEIGHTS]);
    assert_eq!(server.broken_transfers.load(Ordering::SeqCst), 0);
}

#[test]
fn what_is_not_there_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let (_server, address) = serve(files(), 0);
    let error = hub(&address, &cache).fetch("owner/other", &mut |_| {}).unwrap_err();
    assert!(matches!(&error, Error::Hub { repository, .. } if repository == "owner/other"));
    assert!(error.to_string().contains("no such repository"), "{error}");
}

#[test]
fn offline_no_connection_is_tried_and_what_is_missing_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let (server, address) = serve(files(), 0);
    let offline = Hub { offline: true, ..hub(&address, &cache) };
    let nothing = fetch(&offline).unwrap_err().to_string();
    assert!(nothing.starts_with("owner/model: cannot be fetched, because HF_HUB_OFFLINE is set, and "), "{nothing}");
    assert!(nothing.contains("there is no ") && nothing.contains("models--owner--model"), "{nothing}");
    assert_eq!(*server.requests.lock().unwrap(), [""; 0]);

    let root = fetch(&hub(&address, &cache)).unwrap();
    server.requests.lock().unwrap().clear();
    assert_eq!(fetch(&offline).unwrap(), root);
    // A commit is a revision, too, as far as the cache knows it.
    assert_eq!(offline.fetch(&format!("owner/model@{COMMIT}"), &mut |_| {}).unwrap(), root);
    let tag = offline.fetch("owner/model@v2", &mut |_| {}).unwrap_err().to_string();
    assert!(tag.contains("has no revision v2; its snapshots are 0123456789abcdef"), "{tag}");

    for name in [WEIGHTS, "scheduler/scheduler_config.json", "unet/config.json", "model_index.json"] {
        let path = root.join(name);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let partial = fetch(&offline).unwrap_err().to_string();
        assert!(partial.contains(&format!("{}: no such file", path.display())), "{partial}");
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(fetch(&offline).unwrap(), root);
    assert_eq!(*server.requests.lock().unwrap(), [""; 0]);
}

#[test]
fn a_hub_that_is_silent_is_not_waited_for() {
    let cache = tempfile::tempdir().unwrap();
    let (_server, address) = serve(files(), 0);
    // The system accepts its connections, and nobody ever reads them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_address = format!("http://{}", silent.local_addr().unwrap());
    let impatient = Hub { answer_within: Duration::from_millis(50), ..hub(&silent_address, &cache) };
    let message = fetch(&impatient).unwrap_err().to_string();
    assert!(
        message.contains(&silent_address) && message.contains("nor can the cache be used: there is no"),
        "{message}"
    );
    let root = fetch(&hub(&address, &cache)).unwrap();
    assert_eq!(fetch(&impatient).unwrap(), root);
}

#[test]
fn a_new_commit_is_a_new_snapshot_with_all_its_files() {
    let cache = tempfile::tempdir().unwrap();
    let (server, address) = serve(files(), 0);
    let first = fetch(&hub(&address, &cache)).unwrap();
    let newer = "fedcba9876543210fedcba9876543210fedcba98";
    *server.commit.lock().unwrap() = newer;
    server.files.lock().unwrap().insert("unet/config.json".to_owned(), b"{\"u\": 20}".to_vec());
    server.requests.lock().unwrap().clear();
    let second = fetch(&hub(&address, &cache)).unwrap();
    // What did not change is asked after once, and not transferred again.
    let asked = server.requests.lock().unwrap().split_off(0);
    let of_weights = asked.iter().filter(|path| path.ends_with(WEIGHTS)).count();
    assert_eq!(of_weights, 2, "{asked:?}");
    assert_eq!(fs::read(second.join(WEIGHTS)).unwrap(), files()[WEIGHTS]);
    assert!(second.ends_with(format!("snapshots/{newer}")) && first != second);
    assert_eq!(below(&first), below(&second));
    assert_eq!(fs::read(second.join("unet/config.json")).unwrap(), b"{\"u\": 20}");
    assert_eq!(fs::read(first.join("unet/config.json")).unwrap(), b"{\"u\": 1}");
    assert_eq!(fetch(&Hub { offline: true, ..hub(&address, &cache) }).unwrap(), second);
}

#[test]
fn a_link_in_the_cache_that_leads_nowhere_is_fetched_again() {
    let cache = tempfile::tempdir().unwrap();
    let (_server, address) = serve(files(), 0);
    let root = fetch(&hub(&address, &cache)).unwrap();
    fs::remove_file(root.join(WEIGHTS).canonicalize().unwrap()).unwrap();
    assert!(fetch(&Hub { offline: true, ..hub(&address, &cache) }).is_err());
    assert_eq!(fs::read(fetch(&hub(&address, &cache)).unwrap().join(WEIGHTS)).unwrap(), files()[WEIGHTS]);
}

/// The weight files that a checkpoint's components are opened from.
fn opened(root: &Path, components: &[&str]) -> Vec<String> {
    let checkpoint = Checkpoint::Directory(root.to_owned());
    let paths = components.iter().flat_map(|component| checkpoint.weights(component).unwrap());
    let name = |file: WeightFile| match file {
        WeightFile::Path(path) => path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(),
        WeightFile::Embedded(..) => unreachable!(),
    };
    let mut names: Vec<String> = paths.map(name).collect();
    names.sort();
    names
}

#[test]
fn exactly_those_weights_are_fetched_that_are_opened() {
    let index = |shards: &[&str]| {
        let map: BTreeMap<_, _> =
            shards.iter().enumerate().map(|(number, shard)| (number.to_string(), shard)).collect();
        serde_json::json!({ "weight_map": map }).to_string().into_bytes()
    };
    let mut files = files();
    let mut add = |name: &str, bytes: Vec<u8>| files.insert(name.to_owned(), bytes);
    for component in ["text_encoder", "text_encoder_2", "vae"] {
        add(&format!("{component}/config.json"), b"{}".to_vec());
    }
    // Two ways to name an index and its shards, beside files that neither names, and a neighbour with plain weights.
    let shards = ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"];
    add("text_encoder/model.safetensors.index.fp16.json", index(&shards));
    let old = [
        "diffusion_pytorch_model-00001-of-00002.bf16.safetensors",
        "diffusion_pytorch_model-00002-of-00002.bf16.safetensors",
    ];
    add("vae/diffusion_pytorch_model.bf16.safetensors.index.json", index(&old));
    add("vae/diffusion_pytorch_model.non_ema.safetensors", b"n".to_vec());
    for shard in shards {
        add(&format!("text_encoder/{shard}"), b"s".to_vec());
    }
    for shard in old {
        add(&format!("vae/{shard}"), b"s".to_vec());
    }
    add("text_encoder_2/model.safetensors", b"p".to_vec());
    add("text_encoder_2/model.fp16.safetensors", b"h".to_vec());
    let (_server, address) = serve(files, 0);
    let cache = tempfile::tempdir().unwrap();
    let root = fetch(&hub(&address, &cache)).unwrap();
    let mut fetched = below(&root);
    fetched.retain(|name| name.ends_with(".safetensors"));
    assert_eq!(fetched, opened(&root, &["text_encoder", "text_encoder_2", "unet", "vae"]));
    assert_eq!(fetched.len(), 6);
}

/// `darkroom` with nothing in its environment but `variables`.
fn darkroom(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_darkroom"));
    command.env_clear().envs(variables.iter().copied()).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

#[test]
fn the_environment_says_which_hub_and_which_cache() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (server, address) = serve(checkpoint("sdxl"), 0);
    let picture = path("fox.png");
    let draw = |model: &str, variables: &[(&str, &str)]| {
        let _ = fs::remove_file(&picture);
        let arguments = ["generate", "a fox", "--steps", "1", "--seed", "1", "-o", &picture, "--model", model];
        let output = darkroom(variables, &arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        if output.status.success() { Ok(fs::read(&picture).unwrap()) } else { Err(stderr) }
    };
    let home = path("home");
    let online = [("HF_ENDPOINT", address.as_str()), ("HF_HOME", home.as_str()), ("HF_HUB_CACHE", "")];
    let first = draw("owner/model", &online).unwrap();
    let repository = path("home/hub/models--owner--model");
    assert!(Path::new(&repository).join("snapshots").join(COMMIT).is_dir());

    // Offline: the same picture from the cache alone, by the hub's name or by the cache's folder.
    server.requests.lock().unwrap().clear();
    let cache = path("home/hub");
    let offline = [
        ("HF_ENDPOINT", address.as_str()),
        ("HF_HOME", "/nowhere"),
        ("HF_HUB_CACHE", cache.as_str()),
        ("HF_HUB_OFFLINE", "true"),
    ];
    assert_eq!(draw("owner/model", &offline).unwrap(), first);
    assert_eq!(draw(&repository, &[]).unwrap(), first);
    assert_eq!(draw(&format!("{repository}/snapshots/{COMMIT}"), &[]).unwrap(), first);
    let other = draw("owner/other", &offline).unwrap_err();
    assert!(other.contains("owner/other: cannot be fetched, because HF_HUB_OFFLINE is set"), "{other}");
    let above = draw(&cache, &[]).unwrap_err();
    assert!(above.contains("model_index.json: no such file") && above.contains("models--owner--model"), "{above}");
    assert_eq!(*server.requests.lock().unwrap(), [""; 0]);
}
