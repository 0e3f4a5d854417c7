//! `GET /ws`: a client's socket, from its first words to its end.

use super::Shared;
use super::info::offered;
use crate::app::App;
use crate::fault::Fault;
use crate::hub::{Connection, Flags};
use crate::message::{text, welcome};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{interval, timeout};

/// The longest message that a client may send: they only say who they are.
const LONGEST: usize = 1 << 20;

/// A client that takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(30);

const LONGEST_NAME: usize = 256;

pub async fn open(
    State(app): Shared,
    Query(parameters): Query<HashMap<String, String>>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let given = parameters.get("clientId").filter(|id| !id.is_empty());
    let sid = match given {
        Some(id) if id.len() > LONGEST_NAME => {
            return Fault::bad("this clientId is too long to be one").into_response();
        }
        Some(id) => id.clone(),
        None => uuid::Uuid::new_v4().simple().to_string(),
    };
    let Some(connection) = app.hub.connect(&sid) else {
        let sentence = "too many sockets are open";
        return Fault::new(StatusCode::SERVICE_UNAVAILABLE, "too_many", sentence).into_response();
    };
    // Dropped where the upgrade fails, too.
    let guest = Guest { app, sid, connection };
    let upgrade = upgrade.max_message_size(LONGEST).max_frame_size(LONGEST).write_buffer_size(0);
    upgrade.on_upgrade(move |socket| guest.stay(socket))
}

/// A client, as long as its socket is open.
struct Guest {
    app: Arc<App>,
    sid: String,
    connection: Connection,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.app.hub.disconnect(&self.sid, self.connection.number);
    }
}

impl Guest {
    async fn stay(self, mut socket: WebSocket) {
        let remaining = self.app.queue.remaining();
        let mut first = vec![welcome(remaining, &self.sid)];
        let running = self.app.queue.running();
        let own = running.iter().filter(|job| job.client.as_deref() == Some(self.sid.as_str()));
        for job in own {
            let node = job.live().node.clone();
            if node.is_some() {
                first.push(text("executing", &json!({"node": node})));
            }
        }
        for message in first {
            if !send(&mut socket, Message::Text(message)).await {
                return;
            }
        }
        let kicked = self.connection.kicked.clone();
        let mut pings = interval(PATIENCE);
        let mut is_first = true;
        loop {
            let goes_on = tokio::select! {
                message = self.connection.messages.next() => tokio::select! {
                    taken = send(&mut socket, message) => taken,
                    // Nobody reads: what it holds is not kept until its patience ends.
                    () = kicked.notified() => return,
                },
                heard = socket.recv() => match heard {
                    Some(Ok(Message::Text(message))) => {
                        let answer = std::mem::take(&mut is_first).then(|| self.answer(&message));
                        match answer.flatten() {
                            Some(answer) => send(&mut socket, answer).await,
                            None => true,
                        }
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => false,
                    Some(Ok(_)) => true,
                },
                () = kicked.notified() => false,
                _ = pings.tick() => send(&mut socket, Message::Ping("".into())).await,
            };
            if !goes_on {
                // Who is gone takes no farewell; nobody waits for it.
                let _ = timeout(Duration::from_secs(1), socket.send(Message::Close(None))).await;
                return;
            }
        }
    }

    /// The answer to a client's first message.
    fn answer(&self, message: &str) -> Option<Message> {
        let message: Json = serde_json::from_str(message).ok()?;
        if message["type"] != "feature_flags" {
            return None;
        }
        let preview_metadata = message["data"]["supports_preview_metadata"] == true;
        self.app.hub.set_flags(&self.sid, Flags { preview_metadata });
        let offered = offered(self.app.options.upload_limit);
        Some(Message::Text(text("feature_flags", &offered)))
    }
}

/// Whether the client took it.
async fn send(socket: &mut WebSocket, message: Message) -> bool {
    matches!(timeout(PATIENCE, socket.send(message)).await, Ok(Ok(())))
}
