//! What the process of a pack says: messages with descriptors of memory, and lines that it prints.

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::Value as Json;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Mutex, PoisonError};

/// The longest message, in bytes.
const LONGEST: usize = 64 << 20;
/// Most descriptors that wait for their message.
const MOST_DESCRIPTORS: usize = 1024;
/// The longest line that is passed on, in bytes.
const LONGEST_LINE: u64 = 8 << 10;
/// How many of the last lines are kept, for the sentence about how a process ended.
const LAST_LINES: usize = 200;

/// Something that was said.
pub(super) enum Heard {
    Message(Json, Vec<Option<OwnedFd>>),
    Printed(String),
    /// It says no more, and why where that is known.
    End(Option<String>),
}

/// Whole lines, without their ends; half a line at the end is one, too. Of a long one the beginning.
pub(super) fn read_lines(
    stderr: impl Read,
    to: &SyncSender<Heard>,
    kept: &Mutex<VecDeque<String>>,
) {
    let mut stderr = BufReader::with_capacity(64 << 10, stderr);
    loop {
        let mut line = Vec::new();
        match stderr.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(1..) => (),
            _ => return,
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            continue;
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(line.clone());
        if kept.len() > LAST_LINES {
            kept.pop_front();
        }
        drop(kept);
        // Nobody waits for what a pack prints.
        if let Err(TrySendError::Disconnected(_)) = to.try_send(Heard::Printed(line)) {
            return;
        }
    }
}

/// Messages with their descriptors, until there are no more or one is none.
pub(super) fn read_messages(socket: &UnixStream, to: &SyncSender<Heard>) {
    let (mut bytes, mut fds) = (Vec::new(), VecDeque::new());
    let why = loop {
        match receive(socket, &mut bytes, &mut fds) {
            Ok(true) => (),
            Ok(false) => break None,
            Err(error) => break Some(format!("cannot be heard: {error}")),
        }
        if fds.len() > MOST_DESCRIPTORS {
            break Some("sent more descriptors than belong to any message".to_owned());
        }
        while let Some(&[a, b, c, d]) = bytes.get(..4).and_then(|head| head.first_chunk()) {
            let length = u32::from_le_bytes([a, b, c, d]) as usize;
            if length > LONGEST {
                let _ = to.send(Heard::End(Some(format!(
                    "said more than {} MiB at once",
                    LONGEST >> 20
                ))));
                return;
            }
            let Some(body) = bytes.get(4..4 + length) else { break };
            let Ok(message) = serde_json::from_slice::<Json>(body) else {
                let _ = to.send(Heard::End(Some("said what is no message".to_owned())));
                return;
            };
            bytes.drain(..4 + length);
            let count = message["fds"]
                .as_u64()
                .map_or(0, |count| usize::try_from(count).unwrap_or(usize::MAX));
            let of_message = fds.drain(..count.min(fds.len())).map(Some).collect();
            if to.send(Heard::Message(message, of_message)).is_err() {
                return;
            }
        }
    };
    let _ = to.send(Heard::End(why));
}

/// Reads what there is, and the descriptors that come with it; false at the end.
fn receive(
    socket: &UnixStream,
    bytes: &mut Vec<u8>,
    fds: &mut VecDeque<OwnedFd>,
) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    let mut space = nix::cmsg_space!([RawFd; 253]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Err(nix::errno::Errno::EINTR) => return Ok(true),
        received => received?,
    };
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = control {
            // SAFETY: the kernel made these descriptors for this message, and nobody else knows their numbers.
            fds.extend(rights.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = received.bytes;
    bytes.extend_from_slice(&buffer[..length]);
    Ok(length > 0)
}
