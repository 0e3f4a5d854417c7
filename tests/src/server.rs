//! A server that a test starts, and what its clients say to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::{Run, repository};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// `kosmograph serve` on a free port, with folders of its own. It ends with this value.
pub struct Server {
    process: Child,
    pub address: String,
    pub folder: PathBuf,
    said: Arc<Mutex<String>>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl Server {
    /// Starts one whose state, input and output are in `folder`; `arguments` come last.
    #[track_caller]
    pub fn start(folder: &Path, arguments: &[&str]) -> Self {
        let path = |name: &str| folder.join(name).display().to_string();
        let mut run = Run::new("serve").with_plugins().args(["--listen", "127.0.0.1:0"]);
        run = run.args(["--no-frontend", "--models"]).arg(repository().join("models"));
        run = run.args(["--state", &path("state"), "--out", &path("out"), "--input", &path("in")]);
        run = run.arg("--workflows").arg(repository().join("workflows")).args(arguments);
        let mut command = run.env("KOSMOGRAPH_LOG", "info").command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the server can be started");
        let stderr = process.stderr.take().expect("its stderr is a pipe");
        let said = Arc::new(Mutex::new(String::new()));
        let (sender, listening) = std::sync::mpsc::channel();
        let heard = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some((_, address)) = line
                    .split_once("listening at http")
                    .and_then(|(_, rest)| rest.split_once("://"))
                {
                    let _ = sender.send(address.trim().to_owned());
                }
                let mut said = heard.lock().unwrap_or_else(PoisonError::into_inner);
                said.push_str(&line);
                said.push('\n');
            }
        });
        let address = listening.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            panic!("the server does not listen:\n{}", said.lock().expect("what it said"))
        });
        Self { process, address, folder: folder.to_owned(), said }
    }

    /// What it has logged so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it ends");
    }

    /// Sends it a signal by its name, and waits for its end.
    #[track_caller]
    pub fn end(mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "it does not end:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn signal(&self, signal: &str) {
        send_signal(self.id(), signal);
    }

    /// The processes that it started to run nodes.
    pub fn workers(&self) -> Vec<u32> {
        let id = self.id();
        let tasks = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
        let children = tasks.map(|task| std::fs::read_to_string(task.path().join("children")));
        let children = children.map(Result::unwrap_or_default).collect::<String>();
        children.split_whitespace().filter_map(|id| id.parse().ok()).collect()
    }

    /// One request, on a connection of its own.
    #[track_caller]
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.try_request(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.said()))
    }

    /// As [`Self::request`]; an error where the server is not there.
    pub fn try_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        stream.write_all(head.as_bytes())?;
        // A server that refuses a request need not read all of it.
        let _ = stream.write_all(body);
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(end) = end else {
            read?;
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let pair = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers: Vec<(String, String)> = lines.filter_map(pair).collect();
        let mut body = bytes[end + 4..].to_vec();
        if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
            body = unchunked(&body);
        }
        Ok(Answer { status: status.unwrap_or(0), headers, body })
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[], body.to_string().as_bytes())
    }

    /// Submits a prompt that is accepted; returns its id.
    #[track_caller]
    pub fn submit(&self, prompt: &Value, client: Option<&str>) -> String {
        let answer = self.post("/prompt", &json!({"prompt": prompt, "client_id": client}));
        let said = answer.json();
        assert_eq!(answer.status, 200, "{said}");
        said["prompt_id"].as_str().expect("an id").to_owned()
    }

    /// The entry of a job in the history, as soon as it is there.
    #[track_caller]
    pub fn finished(&self, id: &str) -> Value {
        let begin = Instant::now();
        loop {
            let history = self.get(&format!("/history/{id}")).json();
            if !history[id].is_null() {
                return history[id].clone();
            }
            assert!(begin.elapsed() < PATIENCE, "{id} is not done:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Opens a socket.
    #[track_caller]
    pub fn socket(&self, client: &str) -> Socket {
        let stream = TcpStream::connect(&self.address).expect("the server is there");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let url = format!("ws://{}/ws?clientId={client}", self.address);
        let (socket, _) = tungstenite::client(url, stream).expect("a socket");
        Socket { socket, frames: Vec::new() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends a process a signal by its name, "TERM".
pub fn send_signal(process: u32, signal: &str) {
    let process = process.to_string();
    let status = std::process::Command::new("kill").args(["-s", signal, &process]).status();
    assert!(status.is_ok_and(|status| status.success()), "kill -s {signal} {process}");
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let length = std::str::from_utf8(&body[..end]).ok();
        let length = length.and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
        let Some(length @ 1..) = length else { break };
        let begin = end + 2;
        whole.extend_from_slice(&body[begin..(begin + length).min(body.len())]);
        body = body.get(begin + length + 2..).unwrap_or_default();
    }
    whole
}

/// An open socket.
pub struct Socket {
    socket: WebSocket<TcpStream>,
    frames: Vec<Vec<u8>>,
}

impl Socket {
    pub fn send(&mut self, message: &Value) {
        self.socket.send(Message::text(message.to_string())).expect("it can be sent");
    }

    /// The next text message.
    #[track_caller]
    pub fn hear(&mut self) -> Value {
        loop {
            match self.socket.read().expect("a message") {
                Message::Text(text) => return serde_json::from_str(&text).expect("JSON"),
                Message::Binary(frame) => self.frames.push(frame.to_vec()),
                Message::Close(_) => panic!("the socket was closed"),
                _ => (),
            }
        }
    }

    /// The binary frames that came since this was asked last.
    pub fn frames(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.frames)
    }

    /// Every message up to the one that is `last`.
    #[track_caller]
    pub fn until(&mut self, last: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut heard = Vec::new();
        loop {
            let message = self.hear();
            let is_last = last(&message);
            heard.push(message);
            if is_last {
                return heard;
            }
        }
    }

    /// Every message up to the end of a job.
    #[track_caller]
    pub fn until_done(&mut self, id: &str) -> Vec<Value> {
        self.until(|message| {
            let data = &message["data"];
            message["type"] == "executing" && data["node"].is_null() && data["prompt_id"] == id
        })
    }
}
