//! What is to be told to webhooks, and which workers there are.

use super::{Redis, scripts};
use crate::engine::{Announced, Result};
use crate::webhook::Delivery;
use std::time::Duration;

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn take(this: &Redis, most: usize, hold: Duration) -> Result<Vec<Delivery>> {
    let mut ready = scripts::TAKE_DELIVERIES.prepare_invoke();
    ready.arg(most).arg(milliseconds(hold));
    let parts: Vec<String> = this.ask(|connection| ready.invoke(connection))?;
    let delivery = |parts: &[String]| Delivery {
        id: parts[0].clone(),
        url: parts[1].clone(),
        body: parts[2].clone(),
        metadata: Some(parts[3].clone()).filter(|metadata| !metadata.is_empty()),
        attempts: parts[4].parse().unwrap_or(1),
    };
    Ok(parts.chunks_exact(5).map(delivery).collect())
}

pub(super) fn settle(this: &Redis, id: &str, again: Option<Duration>) -> Result<()> {
    let mut ready = scripts::SETTLE_DELIVERY.prepare_invoke();
    let again = again.map(|again| milliseconds(again).to_string());
    ready.arg(id).arg(again.unwrap_or_default());
    this.ask(|connection| ready.invoke(connection))
}

pub(super) fn announce(this: &Redis, worker: &str, about: &str, stays: Duration) -> Result<()> {
    let mut ready = scripts::ANNOUNCE.prepare_invoke();
    ready.arg(worker).arg(about).arg(milliseconds(stays));
    this.ask(|connection| ready.invoke(connection))
}

pub(super) fn workers(this: &Redis) -> Result<Vec<Announced>> {
    let parts: Vec<String> =
        this.ask(|connection| scripts::WORKERS.prepare_invoke().invoke(connection))?;
    let worker = |parts: &[String]| Announced {
        name: parts[0].clone(),
        about: parts[1].clone(),
        ago: parts[2].parse().unwrap_or(0),
    };
    let mut workers: Vec<Announced> = parts.chunks_exact(3).map(worker).collect();
    workers.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(workers)
}
