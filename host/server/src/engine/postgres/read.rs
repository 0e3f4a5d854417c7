//! Jobs of every state as clients ask for them; settings and assets.

use super::{Parameters, Postgres, Row};
use crate::engine::Result;
use crate::store::{
    Asset, Entry, HistoryRange, JobQuery, JobRow, SortBy, State, V2Query, V2Row, push_tuple,
};
use serde_json::{Map, Value as Json};
use tokio_postgres::types::ToSql;

const ENTRY: &str = "id, state, number, prompt, extra, targets, outputs, messages";

pub(super) fn entry(row: &Row) -> Entry {
    Entry {
        id: row.get(0),
        state: State::of_number(row.get(1)),
        number: row.get(2),
        prompt: row.get(3),
        extra: row.get(4),
        targets: row.get(5),
        outputs: row.get::<_, Option<String>>(6).unwrap_or_else(|| "{}".into()),
        messages: row.get::<_, Option<String>>(7).unwrap_or_else(|| "[]".into()),
    }
}

pub(super) fn one(engine: &Postgres, id: &str, condition: &str) -> Result<Option<Entry>> {
    let sql = format!("SELECT {ENTRY} FROM jobs WHERE id = $1 {condition}");
    let rows = engine.ask(async |session| session.query(&sql, &[&id]).await)?;
    Ok(rows.first().map(entry))
}

pub(super) fn history(engine: &Postgres, range: HistoryRange) -> Result<Vec<Entry>> {
    let most = range.max_items.and_then(|most| i64::try_from(most).ok());
    let (order, offset) = match range.offset {
        Some(offset) => ("ASC", i64::try_from(offset).unwrap_or(i64::MAX)),
        // The newest are looked for, and turned round below.
        None => ("DESC", 0),
    };
    let sql = format!(
        "SELECT {ENTRY} FROM jobs WHERE finished IS NOT NULL ORDER BY finished {order} LIMIT $1 OFFSET $2"
    );
    let rows = engine.ask(async |session| session.query(&sql, &[&most, &offset]).await)?;
    let mut found: Vec<Entry> = rows.iter().map(entry).collect();
    if range.offset.is_none() {
        found.reverse();
    }
    Ok(found)
}

/// One question for both lists: a job is in one of them.
pub(super) fn queue(engine: &Postgres) -> Result<String> {
    let sql = "SELECT number, id, prompt, extra, targets, state FROM jobs WHERE state < 2 \
               ORDER BY number, seq";
    let rows = engine.ask(async |session| session.query(sql, &[]).await)?;
    let list = |state: State| {
        let mut list = String::new();
        for row in rows.iter().filter(|row| row.get::<_, i64>(5) == state as i64) {
            if !list.is_empty() {
                list.push(',');
            }
            push_tuple(&mut list, row.get(0), row.get(1), [row.get(2), row.get(3), row.get(4)]);
        }
        list
    };
    let (running, pending) = (list(State::Running), list(State::Pending));
    Ok(format!("{{\"queue_running\":[{running}],\"queue_pending\":[{pending}]}}"))
}

const ROW: &str = "id, state, number, created, started, ended, workflow_id, outputs, error";

fn job_row(row: &Row) -> JobRow {
    JobRow {
        id: row.get(0),
        state: State::of_number(row.get(1)),
        number: row.get(2),
        created: row.get(3),
        started: row.get(4),
        ended: row.get(5),
        workflow_id: row.get(6),
        outputs: row.get(7),
        error: row.get(8),
    }
}

fn numbers(states: &[State]) -> Vec<i64> {
    let states = if states.is_empty() { &State::ALL } else { states };
    states.iter().map(|state| *state as i64).collect()
}

pub(super) fn list(engine: &Postgres, query: &JobQuery) -> Result<(Vec<JobRow>, u64)> {
    let states = numbers(&query.states);
    let condition = "state = ANY($1) AND ($2::text IS NULL OR workflow_id = $2)";
    let (way, by) = match (query.ascending, query.sort_by) {
        (true, SortBy::Created) => ("ASC", "created"),
        (false, SortBy::Created) => ("DESC", "created"),
        (true, SortBy::Duration) => ("ASC NULLS FIRST", "ended - started"),
        (false, SortBy::Duration) => ("DESC NULLS LAST", "ended - started"),
    };
    let seq = if query.ascending { "ASC" } else { "DESC" };
    let limit = query.limit.and_then(|limit| i64::try_from(limit).ok());
    let offset = i64::try_from(query.offset).unwrap_or(i64::MAX);
    let count = format!("SELECT count(*) FROM jobs WHERE {condition}");
    let sql = format!(
        "SELECT {ROW} FROM jobs WHERE {condition} ORDER BY {by} {way}, seq {seq} LIMIT $3 OFFSET $4"
    );
    engine.ask(async |session| {
        let counted = session.query(&count, &[&states, &query.workflow_id]).await?;
        let total: i64 = counted[0].get(0);
        let with: Parameters = &[&states, &query.workflow_id, &limit, &offset];
        let rows = session.query(&sql, with).await?;
        Ok((rows.iter().map(job_row).collect(), u64::try_from(total).unwrap_or(0)))
    })
}

pub(super) fn row(engine: &Postgres, id: &str) -> Result<Option<JobRow>> {
    let sql = format!("SELECT {ROW} FROM jobs WHERE id = $1");
    let rows = engine.ask(async |session| session.query(&sql, &[&id]).await)?;
    Ok(rows.first().map(job_row))
}

const V2: &str =
    "seq, id, state, created, started, ended, outputs, messages, error, metadata, priority";

fn v2_row(row: &Row) -> V2Row {
    V2Row {
        seq: row.get(0),
        id: row.get(1),
        state: State::of_number(row.get(2)),
        created: row.get(3),
        started: row.get(4),
        ended: row.get(5),
        outputs: row.get(6),
        messages: row.get(7),
        error: row.get(8),
        metadata: row.get(9),
        priority: row.get(10),
    }
}

pub(super) fn list_v2(engine: &Postgres, query: &V2Query) -> Result<Vec<V2Row>> {
    let states = numbers(&query.states);
    let before = query.before.unwrap_or(i64::MAX);
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let mut sql = format!("SELECT {V2} FROM jobs WHERE state = ANY($1) AND seq < $2");
    let mut with: Vec<&(dyn ToSql + Sync)> = vec![&states, &before, &limit];
    for (key, value) in &query.labels {
        with.extend([key as &(dyn ToSql + Sync), value]);
        sql += &format!(" AND metadata::json ->> ${} = ${}", with.len() - 1, with.len());
    }
    sql += " ORDER BY seq DESC LIMIT $3";
    let rows = engine.ask(async |session| session.query(&sql, &with).await)?;
    Ok(rows.iter().map(v2_row).collect())
}

pub(super) fn job_v2(engine: &Postgres, id: &str) -> Result<Option<V2Row>> {
    let sql = format!("SELECT {V2} FROM jobs WHERE id = $1");
    let rows = engine.ask(async |session| session.query(&sql, &[&id]).await)?;
    Ok(rows.first().map(v2_row))
}

pub(super) fn settings(engine: &Postgres) -> Result<Map<String, Json>> {
    let sql = "SELECT key, value FROM settings ORDER BY seq";
    let rows = engine.ask(async |session| session.query(sql, &[]).await)?;
    let pair = |row: &Row| {
        let text: String = row.get(1);
        (row.get(0), serde_json::from_str(&text).unwrap_or_default())
    };
    Ok(rows.iter().map(pair).collect())
}

pub(super) fn set(engine: &Postgres, settings: &Map<String, Json>) -> Result<()> {
    let sql = "INSERT INTO settings (key, value) SELECT * FROM unnest($1::text[], $2::text[]) \
               ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    let keys: Vec<String> = settings.keys().map(|key| super::text(key)).collect();
    let values: Vec<String> = settings.values().map(Json::to_string).collect();
    engine.ask(async |session| session.execute(sql, &[&keys, &values]).await).map(drop)
}

const ASSET: &str = "id, hash, size, content_type, file_path, name, owned, created";

fn asset_of(row: &Row) -> Asset {
    Asset {
        id: row.get(0),
        hash: row.get(1),
        size: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
        content_type: row.get(3),
        file_path: row.get(4),
        name: row.get(5),
        owned: row.get(6),
        created: row.get(7),
    }
}

pub(super) fn asset(engine: &Postgres, by: &str, value: &str) -> Result<Option<Asset>> {
    let sql = format!("SELECT {ASSET} FROM assets WHERE {by} = $1");
    let rows = engine.ask(async |session| session.query(&sql, &[&value]).await)?;
    Ok(rows.first().map(asset_of))
}

pub(super) fn add_asset(engine: &Postgres, new: &Asset) -> Result<Asset> {
    let sql = format!(
        "INSERT INTO assets ({ASSET}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (hash) \
         DO UPDATE SET size = excluded.size, content_type = excluded.content_type, \
         file_path = excluded.file_path, name = excluded.name, owned = excluded.owned RETURNING {ASSET}"
    );
    let size = i64::try_from(new.size).unwrap_or(i64::MAX);
    let (kind, path, name) =
        (super::text(&new.content_type), super::text(&new.file_path), super::text(&new.name));
    let with: Parameters =
        &[&new.id, &new.hash, &size, &kind, &path, &name, &new.owned, &new.created];
    engine.ask(async |session| Ok(asset_of(&session.query(&sql, with).await?[0])))
}
