//! Sending what is due, again and again until somebody takes it or it is too old.

use super::{Delivery, Webhooks};
use crate::app::App;
use crate::message::now;
use reqwest::{Client, StatusCode, Url, header};
use std::sync::Arc;
use std::time::Duration;

/// How often to look for what is due.
const LOOK: Duration = Duration::from_millis(500);

/// How many are sent at once.
const MOST: usize = 16;

/// How long one try may take, and how long nobody else tries the same.
const PATIENCE: Duration = Duration::from_secs(15);
const HOLD: Duration = Duration::from_secs(60);

/// How long to wait after each failed try, in seconds: ten tries in 29 hours.
const WAITS: [u64; 9] = [5, 30, 120, 600, 1800, 7200, 18_000, 36_000, 36_000];

/// The longest wait that a receiver may ask for, in seconds.
const LONGEST_WAIT: u64 = 3600;

/// What became of a try.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Taken,
    /// The receiver does not want it, now or ever.
    Gone,
    /// A sentence, and after how many seconds the receiver wants to be asked again.
    Failed(String, Option<u64>),
}

/// Sends what is due, as long as the server lives.
pub async fn deliver(app: Arc<App>, webhooks: Arc<Webhooks>) {
    let client = Client::builder()
        .user_agent(concat!("kosmograph/", env!("CARGO_PKG_VERSION")))
        .timeout(PATIENCE)
        .connect_timeout(Duration::from_secs(5))
        // Where a redirection leads nobody has allowed.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .dns_resolver(Arc::new(webhooks.hosts.clone()))
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return tracing::error!("webhooks cannot be sent: {error}"),
    };
    let mut is_away = false;
    let mut sending = tokio::task::JoinSet::new();
    loop {
        while sending.try_join_next().is_some() {}
        let (store, room) = (app.clone(), MOST - sending.len());
        let due = move || store.store.take_deliveries(room, HOLD);
        let due = match tokio::task::spawn_blocking(due).await {
            Ok(Ok(due)) => {
                is_away = false;
                due
            }
            Ok(Err(error)) => {
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!("webhooks wait: {error}");
                }
                Vec::new()
            }
            Err(error) => return tracing::error!("webhooks are not sent any more: {error}"),
        };
        for delivery in due {
            let (app, webhooks, client) = (app.clone(), webhooks.clone(), client.clone());
            sending.spawn(async move {
                let outcome = send(&client, &webhooks, &delivery).await;
                let settle = move || settle(&app, &delivery, &outcome);
                // It is tried again where it could not be settled.
                let _ = tokio::task::spawn_blocking(settle).await;
            });
        }
        if sending.len() < MOST {
            tokio::time::sleep(LOOK).await;
        } else {
            sending.join_next().await;
        }
    }
}

async fn send(client: &Client, webhooks: &Webhooks, delivery: &Delivery) -> Outcome {
    let failed = |sentence: String| Outcome::Failed(sentence, None);
    let url = match Url::parse(&delivery.url) {
        Ok(url) => url,
        Err(error) => return failed(error.to_string()),
    };
    // The operator may have allowed less since then.
    if let Err(sentence) = webhooks.hosts.check(&url) {
        return failed(sentence);
    }
    let (seconds, body) = (now() / 1000, webhooks.body(delivery));
    let sent = client
        .post(url)
        .header(header::CONTENT_TYPE, "application/json")
        .header("webhook-id", &delivery.id)
        .header("webhook-timestamp", seconds)
        .header("webhook-signature", webhooks.signature(&delivery.id, seconds, &body))
        .body(body)
        .send()
        .await;
    match sent {
        Ok(answer) if answer.status().is_success() => Outcome::Taken,
        Ok(answer) if answer.status() == StatusCode::GONE => Outcome::Gone,
        Ok(answer) => {
            let after = answer.headers().get(header::RETRY_AFTER);
            let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Outcome::Failed(format!("it answers {}", answer.status()), after)
        }
        Err(error) => failed(sentence(&error)),
    }
}

/// What went wrong, without the address, which may have a secret in it.
fn sentence(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
        source = error.source();
    }
    match (error.is_timeout(), text.is_empty()) {
        (true, _) => format!("it did not answer within {} s", PATIENCE.as_secs()),
        (false, true) => "it cannot be reached".into(),
        (false, false) => text,
    }
}

/// When a delivery is tried again, in seconds; `None` where it is given up.
fn wait(attempts: i64, asked: Option<u64>) -> Option<u64> {
    let at = usize::try_from(attempts - 1).unwrap_or(0);
    let wait = WAITS.get(at)?;
    Some(asked.map_or(*wait, |asked| asked.min(LONGEST_WAIT).max(*wait)))
}

/// Writes down what became of a try.
fn settle(app: &App, delivery: &Delivery, outcome: &Outcome) {
    let host = Url::parse(&delivery.url).ok().and_then(|url| url.host_str().map(str::to_owned));
    let (host, id) = (host.unwrap_or_default(), &delivery.id);
    let settled = match outcome {
        Outcome::Taken => {
            app.metrics.webhook("delivered");
            app.store.settle_delivery(id, None)
        }
        Outcome::Gone => {
            app.metrics.webhook("gone");
            tracing::info!(webhook = id, "{host} does not want it any more");
            app.store.settle_delivery(id, None)
        }
        Outcome::Failed(why, asked) => match wait(delivery.attempts, *asked) {
            Some(seconds) => {
                app.metrics.webhook("failed");
                tracing::warn!(webhook = id, "{host}: {why}; it is tried again in {seconds} s");
                app.store.settle_delivery(id, Some(Duration::from_secs(seconds)))
            }
            None => {
                app.metrics.webhook("given_up");
                tracing::error!(
                    webhook = id,
                    "{host}: {why}; given up after {} tries",
                    delivery.attempts
                );
                app.store.settle_delivery(id, None)
            }
        },
    };
    if let Err(error) = settled {
        tracing::warn!(webhook = id, "{error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let waits: Vec<u64> = (1..).map_while(|attempts| wait(attempts, None)).collect();
        assert_eq!(waits, WAITS);
        assert!(waits.is_sorted());
        assert_eq!(wait(1, Some(60)), Some(60), "a receiver may ask for more");
        assert_eq!(wait(3, Some(1)), Some(120), "and not for less");
        assert_eq!(wait(1, Some(1_000_000)), Some(LONGEST_WAIT));
        assert_eq!(wait(10, Some(5)), None);
    }
}
