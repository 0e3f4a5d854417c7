//! What is told across machines: `NOTIFY` carries what is short; what is longer, pictures above all, lies in a
//! table without a log for a minute, and `NOTIFY` carries its number.

use super::{Error, PATIENCE, Session, Shared, sentence};
use crate::engine::{Bulletin, Hear, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// PostgreSQL refuses 8000 bytes.
const SHORT: usize = 7000;

/// What has the number of a longer one begins with this sign, which no JSON does.
const MARK: char = '#';

/// A silent connection is asked whether it is there.
const PING: Duration = Duration::from_secs(5);

/// Between two attempts to listen again.
const PAUSE: Duration = Duration::from_millis(500);

/// Old ones are deleted now and then.
const CLEANED_EVERY: u64 = 64;

pub(super) fn publish(shared: &Shared, bulletins: &[Bulletin]) -> Result<()> {
    if bulletins.is_empty() {
        return Ok(());
    }
    // A bulletin is plain data: it always has a text.
    let texts =
        bulletins.iter().map(|bulletin| serde_json::to_string(bulletin).unwrap_or_default());
    let mut payloads: Vec<String> = texts.collect();
    let is_long = |text: &&mut String| text.len() > SHORT;
    let long: Vec<String> = payloads.iter_mut().filter(is_long).map(|text| text.clone()).collect();
    let notify = "SELECT pg_notify('kosmograph', payload) FROM \
                  unnest($1::text[]) WITH ORDINALITY AS all_of (payload, place) ORDER BY place";
    let keep = "INSERT INTO bulletins (body) SELECT body FROM \
                unnest($1::text[]) WITH ORDINALITY AS all_of (body, place) ORDER BY place RETURNING id";
    let clean = "DELETE FROM bulletins WHERE made < clock_timestamp() - interval '1 minute'";
    shared.ask(async |session: &mut Session| {
        if !long.is_empty() {
            let kept = session.query(keep, &[&long]).await?;
            let mut numbers = kept.iter().map(|row| row.get::<_, i64>(0));
            for text in payloads.iter_mut().filter(|text| text.len() > SHORT) {
                *text = format!("{MARK}{}", numbers.next().unwrap_or(0));
            }
            if shared.published.fetch_add(1, Ordering::Relaxed).is_multiple_of(CLEANED_EVERY) {
                session.execute(clean, &[]).await?;
            }
        }
        session.query(notify, &[&payloads]).await.map(drop)
    })
}

/// Listens until the process ends; a connection that is lost is made again.
pub(super) fn listen(shared: &Arc<Shared>, mut hear: Hear) {
    let listening = shared.clone();
    shared.runtime.spawn(async move {
        loop {
            if let Err(error) = hear_until_cut(&listening, &mut hear).await {
                tracing::warn!("the queue is not heard: {}", sentence(&error));
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
}

async fn hear_until_cut(shared: &Shared, hear: &mut Hear) -> std::result::Result<(), Error> {
    let (sender, mut payloads) = unbounded_channel();
    let (mut session, driver) = shared.connector.connect(Some(sender)).await?;
    let result = hear_all(&mut session, &mut payloads, hear).await;
    driver.abort();
    result
}

async fn hear_all(
    session: &mut Session,
    payloads: &mut UnboundedReceiver<String>,
    hear: &mut Hear,
) -> std::result::Result<(), Error> {
    session.client.batch_execute("LISTEN kosmograph").await?;
    // From here on nothing is missed; what was told before is looked for.
    hear(None);
    loop {
        match tokio::time::timeout(PING, payloads.recv()).await {
            Ok(Some(payload)) => {
                let body = match payload.strip_prefix(MARK) {
                    None => Some(payload),
                    Some(number) => {
                        let number: i64 = number.parse().unwrap_or(0);
                        let sql = "SELECT body FROM bulletins WHERE id = $1";
                        let rows = session.query(sql, &[&number]).await?;
                        rows.first().map(|row| row.get(0))
                    }
                };
                // One of a newer version that this one does not know is passed over.
                let bulletin = body.and_then(|body| serde_json::from_str(&body).ok());
                if bulletin.is_some() {
                    hear(bulletin);
                }
            }
            Ok(None) => return Ok(()),
            Err(_) => {
                let ping = session.client.simple_query("SELECT 1");
                match tokio::time::timeout(PATIENCE, ping).await {
                    Ok(answer) => drop(answer?),
                    Err(_) => return Ok(()),
                }
            }
        }
    }
}
