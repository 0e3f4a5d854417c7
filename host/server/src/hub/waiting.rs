//! What waits for one socket: bounded in number and in bytes. Where it is much, of messages that take each
//! other back, as the progress of a job does, only the newest waits.

use axum::extract::ws::Message;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// How many messages may wait for one client: some seconds of a fast sampler's progress.
pub(super) const MOST: usize = 2048;

/// How many bytes of them: a batch of large pictures that a job sends whole. What waits alone may be larger.
pub(super) const MOST_BYTES: usize = 64 << 20;

/// A client for which more waits lags behind, and is spared what is not news any more. Others hear each message
/// in its place: some look for a node's progress in front of the message that it begins.
const MUCH: usize = 256 << 10;

#[derive(Default)]
struct Inside {
    messages: VecDeque<(Option<String>, Message)>,
    bytes: usize,
    /// Nobody takes them any more.
    is_over: bool,
}

/// See the module.
#[derive(Default)]
pub struct Waiting {
    inside: Mutex<Inside>,
    more: Notify,
}

fn length(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        Message::Close(_) => 0,
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message, where much waits in place of one of the same name; false where there is no room for it.
    pub fn push(&self, name: Option<&str>, message: Message) -> bool {
        let mut inside = self.lock();
        if name.is_some()
            && inside.bytes > MUCH
            && let Some(at) = inside.messages.iter().position(|(known, _)| known.as_deref() == name)
            && let Some((_, old)) = inside.messages.remove(at)
        {
            inside.bytes -= length(&old);
        }
        let bytes = inside.bytes + length(&message);
        let is_full =
            inside.messages.len() >= MOST || (bytes > MOST_BYTES && !inside.messages.is_empty());
        if is_full || inside.is_over {
            return false;
        }
        inside.bytes = bytes;
        inside.messages.push_back((name.map(str::to_owned), message));
        drop(inside);
        self.more.notify_one();
        true
    }

    /// The next message, if one waits.
    pub fn pop(&self) -> Option<Message> {
        let mut inside = self.lock();
        let (_, message) = inside.messages.pop_front()?;
        inside.bytes -= length(&message);
        Some(message)
    }

    /// The next message, as soon as there is one.
    pub async fn next(&self) -> Message {
        loop {
            if let Some(message) = self.pop() {
                return message;
            }
            self.more.notified().await;
        }
    }

    /// Lets go of what waits, and takes no more.
    pub fn end(&self) {
        *self.lock() = Inside { is_over: true, ..Inside::default() };
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().messages.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Message {
        Message::Text(text.into())
    }

    #[test]
    fn the_newest_of_a_name_waits_at_its_own_place() {
        let waiting = Waiting::default();
        let push = |name, message: &str| assert!(waiting.push(name, text(message)));
        let left = || std::iter::from_fn(|| waiting.pop()).collect::<Vec<Message>>();
        push(Some("a"), "1");
        push(Some("a"), "2");
        assert_eq!(left(), [text("1"), text("2")], "who reads hears both");
        let long = "x".repeat(MUCH + 1);
        for (name, message) in [(Some("a"), "1"), (None, &long), (Some("b"), "3"), (Some("a"), "4")]
        {
            push(name, message);
        }
        assert_eq!(left(), [text(&long), text("3"), text("4")]);
        assert_eq!(waiting.lock().bytes, 0);
    }

    #[test]
    fn bytes_are_bounded_and_given_back() {
        let waiting = Waiting::default();
        let large = || Message::Binary(vec![0; MOST_BYTES / 4 + 1].into());
        assert!((0..3).all(|_| waiting.push(None, large())) && !waiting.push(None, large()));
        assert!(waiting.pop().is_some() && waiting.push(None, large()));
        waiting.end();
        assert_eq!((waiting.len(), waiting.lock().bytes), (0, 0));
        assert!(!waiting.push(None, text("x")));
        let waiting = Waiting::default();
        assert!(waiting.push(None, Message::Binary(vec![0; MOST_BYTES + 1].into())), "it is alone");
        assert!(!waiting.push(None, text("x")));
    }
}
