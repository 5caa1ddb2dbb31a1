//! A worker on a free port, and a client that speaks HTTP/1.1 over a plain socket.

use std::{net::SocketAddr, sync::Arc};

use darkroom::{Result, config::ServeConfig, loading::LoadStage, pipeline::Generate};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use super::{Hands, fake};

/// A worker that serves on a port of its own.
pub struct Worker {
    pub address: SocketAddr,
    pub hands: Hands,
    pub plug: Plug,
}

/// Ends a worker.
pub struct Plug {
    shutdown: oneshot::Sender<()>,
    served: JoinHandle<Result<()>>,
}

impl Plug {
    /// Tells the worker to stop; what is returned resolves when it has.
    pub fn pull(self) -> JoinHandle<Result<()>> {
        self.shutdown.send(()).unwrap();
        self.served
    }
}

/// Starts a worker that draws with the fake, and waits until it is ready.
pub async fn worker(config: ServeConfig) -> Worker {
    let (pipeline, hands) = fake();
    let (address, plug) = start(config, |_| Ok(pipeline as Arc<dyn Generate>)).await;
    until_ready(address).await;
    Worker { address, hands, plug }
}

/// Starts a worker that loads its model with `load`.
pub async fn start<L>(config: ServeConfig, load: L) -> (SocketAddr, Plug)
where
    L: FnOnce(&mut dyn FnMut(LoadStage)) -> Result<Arc<dyn Generate>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, pulled) = oneshot::channel::<()>();
    let pulled = async move {
        // A test that ends without pulling lets the worker live until its runtime ends.
        if pulled.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let served = tokio::spawn(darkroom::serve(config, listener, pulled, load));
    (address, Plug { shutdown, served })
}

/// Asks until the worker says that it is ready.
pub async fn until_ready(address: SocketAddr) {
    until(address, |ready| ready["ready"] == true).await;
}

/// Asks `/ready` until its answer is as wished, and gives it.
pub async fn until(address: SocketAddr, wished: impl Fn(&Value) -> bool) -> Value {
    loop {
        let ready = get(address, "/ready").await.json();
        if wished(&ready) {
            return ready;
        }
        tokio::task::yield_now().await;
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// Checks that this is the documented error, and gives its detail.
    pub fn problem(&self, status: u16, code: &str, field: Option<&str>) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let json = self.json();
        assert_eq!(json["type"], format!("urn:darkroom:problem:{code}"));
        assert_eq!(json["status"], status);
        assert_eq!(json["code"], code);
        assert_eq!(json["field"].as_str(), field, "{json}");
        assert!(json["title"].as_str().is_some_and(|title| !title.is_empty()));
        json["detail"].as_str().unwrap().to_owned()
    }
}

/// An answer whose body is read as it comes.
pub struct Stream {
    pub status: u16,
    pub head: String,
    reader: BufReader<TcpStream>,
    chunk_left: usize,
}

/// One event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    pub id: u64,
    pub name: String,
    pub data: Value,
}

impl Stream {
    /// The next event; `None` at the end of the stream.
    pub async fn event(&mut self) -> Option<Sent> {
        let (mut id, mut name, mut data) = (None, None, None);
        loop {
            let line = self.line().await?;
            match line.split_once(": ") {
                Some(("id", value)) => id = Some(value.parse().unwrap()),
                Some(("event", value)) => name = Some(value.to_owned()),
                Some(("data", value)) => data = Some(serde_json::from_str(value).unwrap()),
                _ if line.is_empty() && name.is_some() => {
                    return Some(Sent { id: id.unwrap(), name: name.unwrap(), data: data.unwrap() });
                }
                _ => {}
            }
        }
    }

    /// All events to the end.
    pub async fn rest(&mut self) -> Vec<Sent> {
        let mut events = Vec::new();
        while let Some(event) = self.event().await {
            events.push(event);
        }
        events
    }

    /// Reads until an event of this name has come, and gives it.
    pub async fn until(&mut self, name: &str) -> Sent {
        loop {
            let event = self.event().await.unwrap_or_else(|| panic!("the stream ended before {name}"));
            if event.name == name {
                return event;
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        loop {
            if self.chunk_left == 0 && !self.begin_chunk().await {
                return None;
            }
            let buffer = self.reader.fill_buf().await.unwrap();
            let here = &buffer[..buffer.len().min(self.chunk_left)];
            assert!(!here.is_empty(), "the connection broke off");
            let (taken, done) = match here.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (here.len(), false),
            };
            line.extend_from_slice(&here[..taken]);
            self.reader.consume(taken);
            self.chunk_left -= taken;
            if self.chunk_left == 0 {
                let mut end = [0; 2];
                self.reader.read_exact(&mut end).await.unwrap();
            }
            if done {
                line.pop();
                return Some(String::from_utf8(line).unwrap());
            }
        }
    }

    /// Reads a chunk's length; false for the last chunk.
    async fn begin_chunk(&mut self) -> bool {
        let mut length = String::new();
        if self.reader.read_line(&mut length).await.unwrap_or(0) == 0 {
            return false;
        }
        self.chunk_left = usize::from_str_radix(length.trim(), 16).unwrap();
        self.chunk_left > 0
    }
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    exchange(address, &request("GET", path, &[], "")).await
}

pub async fn delete(address: SocketAddr, path: &str) -> Answer {
    exchange(address, &request("DELETE", path, &[], "")).await
}

/// `POST /generate`, read to the end of the answer.
pub async fn generate(address: SocketAddr, headers: &[(&str, &str)], body: &Value) -> Answer {
    exchange(address, &generate_request(headers, body)).await
}

/// `POST /generate` for `text/event-stream`.
pub async fn generate_events(address: SocketAddr, body: &Value) -> Stream {
    open(address, &generate_request(&[("Accept", "text/event-stream")], body)).await
}

/// `GET /jobs/{id}/events`, from after an event on.
pub async fn events(address: SocketAddr, job_id: &str, after: Option<u64>) -> Stream {
    let after = after.map(|after| after.to_string());
    let headers: Vec<_> = after.iter().map(|after| ("Last-Event-ID", after.as_str())).collect();
    open(address, &request("GET", &format!("/jobs/{job_id}/events"), &headers, "")).await
}

/// A request for a drawing.
pub fn generate_request(headers: &[(&str, &str)], body: &Value) -> String {
    let headers: Vec<_> =
        std::iter::once(("Content-Type", "application/json")).chain(headers.iter().copied()).collect();
    request("POST", "/generate", &headers, &body.to_string())
}

pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

/// Sends a request and reads its answer's head.
pub async fn open(address: SocketAddr, request: &str) -> Stream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut reader = BufReader::new(socket);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).await.unwrap() > 0, "no answer: {head:?}");
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Stream { status, head, reader, chunk_left: 0 }
}

/// Sends a request and reads its answer, whose length has to be known.
pub async fn exchange(address: SocketAddr, request: &str) -> Answer {
    let Stream { status, head, mut reader, .. } = open(address, request).await;
    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.unwrap();
    Answer { status, head, body }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Headers as they would be on the wire.
pub fn text_head(headers: &axum::http::HeaderMap) -> String {
    headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect()
}
