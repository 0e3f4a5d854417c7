//! Who listens: the open sockets, by the name that their clients gave themselves.
//!
//! Whoever sends never waits. A client that does not read its messages loses its connection when a
//! bounded number of them, or of bytes, wait for it; it may come again.

mod waiting;

use crate::engine::Bulletin;
use crate::fleet::Outlet;
use crate::message::{Encoding, Preview, logs};
use axum::extract::ws::{Message, Utf8Bytes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::Notify;
use waiting::Waiting;

/// How many sockets may be open.
const MOST: usize = 4096;

/// What a client said it understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Previews that say which node they are of: binary frames of kind 4.
    pub preview_metadata: bool,
}

struct Client {
    connection: u64,
    messages: Arc<Waiting>,
    kicked: Arc<Notify>,
    flags: Flags,
    hears_logs: bool,
}

/// One end of an open socket.
pub struct Connection {
    pub number: u64,
    /// Of a socket whose name another one took nothing more comes here, and it stays.
    pub messages: Arc<Waiting>,
    /// Told when this connection is to be closed.
    pub kicked: Arc<Notify>,
}

/// See the module.
#[derive(Default)]
pub struct Hub {
    /// Where this process has no sockets of its own, and servers are to tell theirs.
    elsewhere: OnceLock<Arc<Outlet>>,
    clients: Mutex<HashMap<String, Client>>,
    numbers: AtomicU64,
    open: AtomicU64,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client; an older one of the same name is forgotten. `None` where there are too many.
    pub fn connect(&self, sid: &str) -> Option<Connection> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= MOST as u64 {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let messages = Arc::new(Waiting::default());
        let kicked = Arc::new(Notify::new());
        let client = Client {
            connection: number,
            messages: messages.clone(),
            kicked: kicked.clone(),
            flags: Flags::default(),
            hears_logs: false,
        };
        self.lock().insert(sid.to_owned(), client);
        Some(Connection { number, messages, kicked })
    }

    pub fn disconnect(&self, sid: &str, number: u64) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        let mut clients = self.lock();
        if clients.get(sid).is_some_and(|client| client.connection == number) {
            clients.remove(sid);
        }
    }

    /// How many sockets are open.
    pub fn count(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    pub fn set_flags(&self, sid: &str, flags: Flags) {
        if let Some(client) = self.lock().get_mut(sid) {
            client.flags = flags;
        }
    }

    /// Whether the client hears the log from now on; false where there is no such client.
    pub fn hear_logs(&self, sid: &str, hears: bool) -> bool {
        let mut clients = self.lock();
        let client = clients.get_mut(sid);
        client.map(|client| client.hears_logs = hears).is_some()
    }

    /// From now on everything is told to the servers of a queue that many share.
    pub fn tell_elsewhere(&self, outlet: Arc<Outlet>) {
        let _ = self.elsewhere.set(outlet);
    }

    /// Where to tell servers, where this is a worker of theirs.
    pub fn elsewhere(&self) -> Option<&Arc<Outlet>> {
        self.elsewhere.get()
    }

    /// Whether anybody is there to hear what is sent `to` a client, or to all.
    pub fn hears(&self, to: Option<&str>) -> bool {
        if self.elsewhere.get().is_some() {
            return true;
        }
        let clients = self.lock();
        to.map_or(!clients.is_empty(), |sid| clients.contains_key(sid))
    }

    /// Sends to one client, or to all where `to` is `None`.
    pub fn send(&self, to: Option<&str>, message: &Utf8Bytes) {
        self.send_of(to, message, None, None);
    }

    /// As [`Self::send`], of a job; of messages of one name that wait to be told elsewhere the last one is
    /// enough.
    pub fn send_of(
        &self,
        to: Option<&str>,
        message: &Utf8Bytes,
        job: Option<&str>,
        fleeting: Option<String>,
    ) {
        if let Some(outlet) = self.elsewhere.get() {
            let (to, text) = (to.map(str::to_owned), message.to_string());
            let job = job.map(str::to_owned);
            return outlet.push(Bulletin::Text { to, job, text, fleeting });
        }
        self.deliver(to, None, |_| Some(Message::Text(message.clone())));
    }

    /// As [`Self::send_of`], of what takes back what was sent by this `name` before: to a client that has not
    /// yet read that it is not told any more.
    pub fn send_newest(
        &self,
        to: Option<&str>,
        message: &Utf8Bytes,
        job: Option<&str>,
        name: String,
    ) {
        if self.elsewhere.get().is_some() {
            return self.send_of(to, message, job, Some(name));
        }
        self.deliver(to, Some(&name), |_| Some(Message::Text(message.clone())));
    }

    /// Sends a picture of a job at work, to each client as it understands it.
    pub fn preview(&self, to: Option<&str>, preview: &Preview) {
        if let Some(outlet) = self.elsewhere.get() {
            return outlet.push(Bulletin::Picture {
                to: to.map(str::to_owned),
                job: preview.job.clone(),
                node: preview.node.clone(),
                is_png: preview.encoding == Encoding::Png,
                picture: STANDARD.encode(&preview.picture),
            });
        }
        let (plain, with_metadata) = (preview.plain(), preview.with_metadata());
        self.deliver(to, None, |client| {
            let frame = if client.flags.preview_metadata { &with_metadata } else { &plain };
            Some(Message::Binary(frame.clone()))
        });
    }

    /// Sends lines of the log to those who hear it.
    pub fn log(&self, entries: &[Json]) {
        let message = logs(entries);
        self.deliver(None, None, |client| {
            client.hears_logs.then(|| Message::Text(message.clone()))
        });
    }

    fn deliver(
        &self,
        to: Option<&str>,
        name: Option<&str>,
        message: impl Fn(&Client) -> Option<Message>,
    ) {
        let mut clients = self.lock();
        let slow = |client: &Client| {
            message(client).is_some_and(|message| !client.messages.push(name, message))
        };
        let gone: Vec<String> = match to {
            Some(sid) => clients
                .get(sid)
                .filter(|client| slow(client))
                .map(|_| sid.to_owned())
                .into_iter()
                .collect(),
            None => {
                let all = clients.iter().filter(|(_, client)| slow(client));
                all.map(|(sid, _)| sid.clone()).collect()
            }
        };
        for sid in gone {
            if let Some(client) = clients.remove(&sid) {
                client.messages.end();
                client.kicked.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> Utf8Bytes {
        Utf8Bytes::from_static(text)
    }

    fn heard(connection: &Connection) -> Vec<Message> {
        std::iter::from_fn(|| connection.messages.pop()).collect()
    }

    #[test]
    fn a_second_socket_of_a_name_takes_it_over() {
        let hub = Hub::default();
        let (first, other) = (hub.connect("a").unwrap(), hub.connect("b").unwrap());
        let second = hub.connect("a").unwrap();
        hub.send(Some("a"), &text("one"));
        hub.send(None, &text("all"));
        assert_eq!((heard(&first).len(), heard(&second).len()), (0, 2));
        assert_eq!(heard(&other), [Message::Text(text("all"))]);
        // That the older one goes does not take the name from the newer one.
        hub.disconnect("a", first.number);
        hub.send(Some("a"), &text("one"));
        assert_eq!((heard(&second).len(), hub.count()), (1, 2));
    }

    #[test]
    fn who_does_not_read_is_let_go() {
        let hub = Hub::default();
        let slow = hub.connect("slow").unwrap();
        let quick = hub.connect("quick").unwrap();
        for _ in 0..waiting::MOST {
            hub.send(None, &text("x"));
            assert_eq!(heard(&quick).len(), 1);
        }
        assert_eq!(slow.messages.len(), waiting::MOST);
        hub.send(None, &text("x"));
        assert_eq!(slow.messages.len(), 0, "what waited is let go at once");
        assert!(!hub.hear_logs("slow", true) && hub.hear_logs("quick", true));
    }

    #[test]
    fn previews_come_as_each_client_understands_them() {
        let hub = Hub::default();
        let (old, new) = (hub.connect("old").unwrap(), hub.connect("new").unwrap());
        hub.set_flags("new", Flags { preview_metadata: true });
        hub.preview(None, &Preview::jpeg("p", "3", vec![0xff, 0xd8]));
        let kind = |messages: Vec<Message>| match messages.as_slice() {
            [Message::Binary(frame)] => u32::from_be_bytes(frame[..4].try_into().unwrap()),
            other => panic!("{other:?}"),
        };
        assert_eq!((kind(heard(&old)), kind(heard(&new))), (1, 4));
    }
}
