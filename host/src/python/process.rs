//! The process of one pack: it is started when a node of the pack is due, and called over a socket.
//!
//! Messages are four bytes of length, little-endian, and JSON. The descriptors of a message's tensors come with it, or
//! before its end, in their order. What the process prints is the log of the node at work.

use super::hear::{Heard, read_lines, read_messages};
use super::values::{Lent, Side};
use super::{Mode, PythonPack};
use crate::ask::Answer;
use crate::catalogue::classes_digest;
use crate::plugin::{Call, LogLevel, NodeFailure};
use crate::process::ending;
use crate::value::Value;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Map, Value as Json, json};
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What comes of a node: the outputs that it has, the message, and the descriptors that came with it.
type Answered = (Vec<Output>, Json, Vec<Option<OwnedFd>>);

/// How long a node that was asked to stop may take before its process is ended: less than the worker itself is given.
const GRACE: Duration = Duration::from_millis(600);
/// How often it is asked whether to stop.
const TICK: Duration = Duration::from_millis(30);
/// How long a process may take to read what it is sent.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a class may think about its inputs before it runs.
const ANSWERING: Duration = Duration::from_secs(10);
/// How many messages and lines may wait. What is printed beyond is left out.
const WAITING: usize = 512;

/// Whether a process is still there: shared with the values that it holds.
#[derive(Debug, Default)]
pub(super) struct Alive(AtomicBool);

impl Alive {
    pub fn is_alive(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A pack in a worker: its process, once there is one.
pub struct Pack {
    told: PythonPack,
    running: Option<Running>,
    calls: u64,
}

struct Running {
    child: Child,
    socket: UnixStream,
    heard: Receiver<Heard>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    alive: Arc<Alive>,
    released: Arc<Mutex<Vec<u64>>>,
    lent: Mutex<Lent>,
    /// The pack's.
    path: PathBuf,
    nodes: Vec<Node>,
}

/// A node as the process describes it.
struct Node {
    class: String,
    inputs: Vec<(String, bool)>,
    outputs: Vec<Output>,
    takes_lists: bool,
    wants_prompt: bool,
    wants_workflow: bool,
}

/// Its name, its type, and whether it is a list of values of that type.
type Output = (String, String, bool);

/// How a call ended without values.
enum Failure {
    Node {
        input: Option<String>,
        sentence: String,
    },
    Cancelled,
    /// The process is no use any more: how, as the end of a sentence.
    Process(String),
}

impl Pack {
    pub fn new(told: PythonPack) -> Self {
        Self { told, running: None, calls: 0 }
    }

    /// Runs node number `node`, of the classes whose digest is `planned`, in the pack's process, which is started where
    /// there is none.
    ///
    /// # Errors
    /// The node's own sentence with the place in the pack, or how its process ended.
    pub fn run(
        &mut self,
        planned: [u8; 16],
        node: usize,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<Value>, NodeFailure> {
        let result = self.started(planned, call).and_then(|()| self.call(node, call, inputs));
        result.map_err(|failure| self.failed(failure))
    }

    /// What the host is told of a failure; a process that is no use any more is ended.
    fn failed(&mut self, failure: Failure) -> NodeFailure {
        let name = self.told.name.clone();
        // One that did not stop when it was asked to was ended: the next node has another.
        if self.running.as_ref().is_some_and(|running| !running.alive.is_alive()) {
            self.end();
        }
        match failure {
            Failure::Cancelled => NodeFailure::Cancelled,
            Failure::Node { input, sentence } => NodeFailure::Failed {
                input,
                sentence: format!("{sentence}; said by its pack {name}, in Python"),
            },
            Failure::Process(how) => {
                self.end();
                NodeFailure::Failed {
                    input: None,
                    sentence: format!("the Python process of its pack {name} {how}"),
                }
            }
        }
    }

    /// Asks node number `node` which of its lazy inputs it wants: check_lazy_status.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn lazy(
        &mut self,
        planned: [u8; 16],
        node: usize,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<String>, NodeFailure> {
        let result = self.started(planned, call).and_then(|()| {
            let (_, message, _) = self.send_node("lazy", node, call, inputs)?;
            let names = message["wanted"].as_array().into_iter().flatten();
            Ok(names.filter_map(|name| name.as_str().map(str::to_owned)).collect())
        });
        result.map_err(|failure| self.failed(failure))
    }

    /// Puts the question `told` to the pack: see [`crate::ask`].
    ///
    /// # Errors
    /// Why there is no answer; what the class said is one, whatever it is.
    pub fn ask(
        &mut self,
        planned: [u8; 16],
        told: &Json,
        call: &dyn Call,
    ) -> Result<Answer, NodeFailure> {
        let answer = self.started(planned, call).and_then(|()| {
            let Some(running) = &mut self.running else {
                return Err(Failure::Process("is not there".into()));
            };
            self.calls += 1;
            let number = self.calls;
            let mut message = told.clone();
            message["ask"] = number.into();
            running.tell(&message, &[])?;
            let until = Some(Instant::now() + ANSWERING);
            let (message, _) = running.wait(call, Some(number), until, &mut |_| false)?;
            match message["answer"].as_u64() {
                Some(_) => Ok(Answer {
                    fingerprint: message["fingerprint"].as_str().map(str::to_owned),
                    sentence: message["sentence"].as_str().map(str::to_owned),
                }),
                None => Err(Failure::Cancelled),
            }
        });
        answer.map_err(|failure| self.failed(failure))
    }

    /// Whether there is a process already.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    fn started(&mut self, planned: [u8; 16], call: &dyn Call) -> Result<(), Failure> {
        let changed = || {
            let sentence = "its pack was changed since the workflow was planned; start again";
            Failure::Node { input: None, sentence: sentence.to_owned() }
        };
        if self.running.is_none() {
            if super::find::hash(&self.told.path) != self.told.version {
                return Err(changed());
            }
            let running = Running::start(&self.told)
                .map_err(|error| Failure::Process(format!("cannot be started: {error}")))?;
            let running = self.running.insert(running);
            // Importing a pack takes as long as it takes; who waits can cancel.
            let (message, _) = running.wait(call, None, None, &mut |_| false)?;
            if let Some(refused) = message["refused"].as_str() {
                let sentence = refused.to_owned();
                self.end();
                return Err(Failure::Node { input: None, sentence });
            }
            running.nodes = nodes(&message["descriptor"]);
            if classes_digest(&message["descriptor"]) != planned {
                self.end();
                return Err(changed());
            }
        }
        Ok(())
    }

    /// Sends a node and its inputs, to `what` is done with it, and waits for what comes of that. Gives the outputs that the
    /// node has, the message and its descriptors.
    fn send_node(
        &mut self,
        what: &str,
        node: usize,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Answered, Failure> {
        let Some(running) = &mut self.running else {
            return Err(Failure::Process("is not there".into()));
        };
        let failed = |sentence: String| Failure::Node { input: None, sentence };
        let known = running.nodes.get(node).filter(|known| known.inputs.len() <= inputs.len());
        let Some(known) = known else {
            return Err(failed("the plan does not fit the pack".into()));
        };
        self.calls += 1;
        let number = self.calls;
        let side = running.side();
        let (mut memory, mut given) = (Vec::new(), Vec::new());
        let names = |what: &str| -> Vec<String> {
            let names = call.property(what);
            names.and_then(|names| serde_json::from_str(&names).ok()).unwrap_or_default()
        };
        // Behind those of the class stand those of this node alone.
        let more = names("inputs").into_iter().skip(known.inputs.len()).map(|name| (name, false));
        let inputs_of_node: Vec<(String, bool)> =
            known.inputs.iter().cloned().chain(more).collect();
        if inputs_of_node.len() != inputs.len() {
            return Err(failed("the plan does not fit the pack".into()));
        }
        for ((name, unsigned), value) in inputs_of_node.iter().zip(inputs) {
            let encoded = match known.takes_lists && !value.is_none() {
                true => side.encode_list(value, *unsigned, &mut memory),
                false => side.encode(value, *unsigned, &mut memory),
            };
            let encoded = encoded.map_err(|why| Failure::Node {
                input: Some(name.clone()),
                sentence: format!("what is connected to it {why}"),
            })?;
            given.push(json!([name, encoded]));
        }
        let mut hidden = Map::new();
        for (wanted, name) in [(known.wants_prompt, "prompt"), (known.wants_workflow, "workflow")] {
            if let Some(text) = wanted.then(|| call.property(name)).flatten() {
                hidden.insert(name.to_owned(), text.into());
            }
        }
        let released =
            std::mem::take(&mut *running.released.lock().unwrap_or_else(PoisonError::into_inner));
        let mut message = json!({"class": known.class, "node": call.property("node"), "inputs": given,
            "linked": names("linked"), "hidden": hidden, "fds": memory.len(), "release": released});
        message[what] = number.into();
        let outputs = known.outputs.clone();
        let fds: Vec<RawFd> = memory.iter().map(AsRawFd::as_raw_fd).collect();
        running.tell(&message, &fds)?;
        drop(memory);
        let mut progress = |message: &Json| {
            let told = &message["progress"];
            match (told[0].as_u64(), told[1].as_u64(), told[2].as_u64()) {
                (Some(of), Some(step), Some(steps)) if of == number => {
                    call.progress(step.min(steps), steps)
                }
                _ => false,
            }
        };
        let (message, memory) = running.wait(call, Some(number), None, &mut progress)?;
        if let Some(sentence) =
            message["failed"].as_u64().and_then(|_| message["sentence"].as_str())
        {
            if let Some(traceback) = message["traceback"].as_str() {
                call.log(LogLevel::Debug, traceback);
            }
            let input = message["input"].as_str().map(str::to_owned);
            return Err(Failure::Node { input, sentence: sentence.to_owned() });
        }
        if message["cancelled"].is_u64() {
            return match call.progress(0, 0) {
                true => Err(Failure::Cancelled),
                false => {
                    Err(failed("it ended as interrupted, though nobody asked it to stop".into()))
                }
            };
        }
        Ok((outputs, message, memory))
    }

    fn call(
        &mut self,
        node: usize,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<Value>, Failure> {
        let (outputs, mut message, mut memory) = self.send_node("run", node, call, inputs)?;
        let failed = |sentence: String| Failure::Node { input: None, sentence };
        if let Some(warning) = message["warning"].as_str() {
            call.log(LogLevel::Warn, warning);
        }
        if message["ui"].is_object() {
            call.output(message["ui"].take());
        }
        let Some(running) = &self.running else {
            return Err(Failure::Process("is not there".into()));
        };
        let side = running.side();
        let values = outputs.iter().enumerate().map(|(at, (name, type_name, is_list))| {
            let sent = &message["outputs"][at];
            let value = match is_list {
                true => side.decode_list(sent, type_name, &mut memory),
                false => side.decode(sent, type_name, &mut memory),
            };
            value.map_err(|why| failed(format!("its output {name} ({type_name}) {why}")))
        });
        let values = values.collect();
        side.lent.lock().unwrap_or_else(PoisonError::into_inner).back(&message["returned"]);
        values
    }

    /// Ends the process, if there is one, and with it the values that it holds.
    fn end(&mut self) {
        self.running = None;
    }
}

fn nodes(descriptor: &Json) -> Vec<Node> {
    let text = |of: &Json, key: &str| of[key].as_str().unwrap_or_default().to_owned();
    let list = |of: &Json, key: &str| of[key].as_array().cloned().unwrap_or_default();
    let is_unsigned = |input: &Json| input["max"].as_u64().is_some_and(|max| max > i64::MAX as u64);
    let nodes = list(descriptor, "nodes");
    let node = nodes.iter().map(|node| {
        let hidden = list(node, "hidden");
        Node {
            class: text(node, "class"),
            inputs: list(node, "inputs")
                .iter()
                .map(|input| (text(input, "name"), is_unsigned(input)))
                .collect(),
            outputs: list(node, "outputs")
                .iter()
                .map(|output| {
                    (text(output, "name"), text(output, "type"), output["is_list"] == true)
                })
                .collect(),
            takes_lists: node["input_is_list"] == true,
            wants_prompt: hidden.contains(&"PROMPT".into()),
            wants_workflow: hidden.contains(&"EXTRA_PNGINFO".into()),
        }
    });
    node.collect()
}

impl Running {
    fn start(told: &PythonPack) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut command = told.command(Mode::Run)?;
        command.stdout(Stdio::from(OwnedFd::from(theirs))).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        // With the command goes the last copy here of the socket's other end.
        drop(command);
        let (sender, heard) = sync_channel(WAITING);
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stderr) = child.stderr.take() {
            let (sender, kept) = (sender.clone(), last_lines.clone());
            thread("python printed", move || read_lines(stderr, &sender, &kept))?;
        }
        let reader = socket.try_clone()?;
        thread("python messages", move || read_messages(&reader, &sender))?;
        let (alive, released, lent) = (Arc::default(), Arc::default(), Mutex::default());
        let (path, nodes) = (told.path.clone(), Vec::new());
        Ok(Self { child, socket, heard, last_lines, alive, released, lent, path, nodes })
    }

    /// What values that go there and come from there have to do with it.
    fn side(&self) -> Side<'_> {
        Side { process: &self.alive, released: &self.released, lent: &self.lent }
    }

    fn send(&mut self, message: &Json, fds: &[RawFd]) -> io::Result<()> {
        let body = message.to_string();
        let mut bytes = u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes().to_vec();
        bytes.extend(body.into_bytes());
        let mut sent = 0;
        if !fds.is_empty() {
            let rights = [ControlMessage::ScmRights(fds)];
            let parts = [IoSlice::new(&bytes)];
            sent = sendmsg::<()>(
                self.socket.as_raw_fd(),
                &parts,
                &rights,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )?;
        }
        self.socket.write_all(&bytes[sent..])
    }

    /// As [`Self::send`]; why that was not possible is told.
    fn tell(&mut self, message: &Json, fds: &[RawFd]) -> Result<(), Failure> {
        self.send(message, fds).map_err(|error| {
            Failure::Process(match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    format!("does not read what it is sent, for {} s", PATIENCE.as_secs())
                }
                _ => self.ended(None),
            })
        })
    }

    /// Waits for a message that is no progress; passes on what is printed and, to `progress`, what progress there is.
    /// Where there is an `until`, the process has to answer by then.
    fn wait(
        &mut self,
        call: &dyn Call,
        number: Option<u64>,
        until: Option<Instant>,
        progress: &mut dyn FnMut(&Json) -> bool,
    ) -> Result<(Json, Vec<Option<OwnedFd>>), Failure> {
        let mut asked: Option<Instant> = None;
        loop {
            let heard = self.heard.recv_timeout(TICK);
            let mut stop = false;
            match heard {
                Ok(Heard::Message(message, fds)) => match message.get("progress") {
                    Some(_) => stop = progress(&message),
                    None => return Ok((message, fds)),
                },
                Ok(Heard::Printed(line)) => call.log(LogLevel::Info, &line),
                Ok(Heard::End(why)) => return Err(self.lost(asked, why)),
                Err(RecvTimeoutError::Disconnected) => return Err(self.lost(asked, None)),
                // What it forked may hold its socket open for ever.
                Err(RecvTimeoutError::Timeout) => {
                    if let Ok(Some(_)) = self.child.try_wait() {
                        return Err(self.lost(asked, None));
                    }
                }
            }
            if asked.is_none() && until.is_some_and(|until| Instant::now() > until) {
                let why = format!("had not answered after {} s", ANSWERING.as_secs());
                return Err(self.lost(None, Some(why)));
            }
            if asked.is_none() && (stop || call.progress(0, 0)) {
                asked = Some(Instant::now());
                // While it imports there is nothing to interrupt.
                let told = number.map(|number| self.send(&json!({"cancel": number}), &[]));
                if !matches!(told, Some(Ok(()))) {
                    return Err(self.lost(asked, None));
                }
            }
            if asked.is_some_and(|asked| asked.elapsed() > GRACE) {
                return Err(self.lost(asked, None));
            }
        }
    }

    /// The process is gone, or has to go. One that was `asked` to stop has stopped so.
    fn lost(&mut self, asked: Option<Instant>, why: Option<String>) -> Failure {
        self.alive.end();
        if asked.is_some() {
            let _ = self.child.kill();
            return Failure::Cancelled;
        }
        Failure::Process(self.ended(why))
    }

    /// How it ended, as the end of a sentence, and where, if it printed that.
    fn ended(&mut self, why: Option<String>) -> String {
        if let Some(why) = why {
            let _ = self.child.kill();
            return why;
        }
        let Some(status) = self.status() else { return "stopped listening".to_owned() };
        // The last lines may still be on their way.
        std::thread::sleep(TICK);
        let lines = self.last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        // faulthandler: the frames of the thread that did it stand below "Current thread", the innermost first.
        let head = lines.iter().rposition(|line| line.starts_with("Current thread"));
        let frames = lines.iter().skip(head.map_or(usize::MAX, |head| head + 1));
        let mut frames =
            frames.map(|line| line.trim()).take_while(|line| line.starts_with("File "));
        let of_pack = format!("File \"{}", self.path.display());
        let place = frames.find(|line| line.starts_with(&of_pack));
        let how = format!("ended with {}", ending(status));
        match place {
            Some(place) => format!("{how}, in {}", place.trim_start_matches("File ")),
            None => how,
        }
    }

    fn status(&mut self) -> Option<ExitStatus> {
        let until = Instant::now() + Duration::from_millis(500);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                _ => {
                    let _ = self.child.kill();
                    return None;
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.alive.end();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}
