//! Jobs of every state as clients ask for them. Redis sorts by one number; what is asked for otherwise is read
//! and sorted here, ten thousand jobs at most as the history has them.

use super::{Redis, key};
use crate::engine::Result;
use crate::store::{
    Entry, HistoryRange, JobQuery, JobRow, SortBy, State, V2Query, V2Row, push_tuple,
};
use redis::{Connection, RedisResult};
use serde_json::Value as Json;

/// Fields of a job.
pub(super) type Fields = Vec<Option<String>>;

/// These fields of each of these jobs, in their order; a job that went in between has none.
pub(super) fn fields(
    connection: &mut Connection,
    ids: &[String],
    names: &[&str],
) -> RedisResult<Vec<Fields>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipe = redis::pipe();
    for id in ids {
        pipe.cmd("HMGET").arg(key(&format!("job:{id}"))).arg(names);
    }
    pipe.query(connection)
}

pub(super) fn whole(field: &Option<String>) -> Option<i64> {
    field.as_deref()?.parse().ok()
}

fn decimal(field: &Option<String>) -> f64 {
    field.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

fn state(field: &Option<String>) -> State {
    State::of_number(whole(field).unwrap_or(State::Failed as i64))
}

pub(super) const ENTRY: [&str; 9] =
    ["id", "state", "number", "prompt", "extra", "targets", "outputs", "messages", "client"];

pub(super) fn entry(fields: &Fields) -> Option<Entry> {
    let text = |at: usize| fields[at].clone();
    Some(Entry {
        id: text(0)?,
        state: state(&fields[1]),
        number: decimal(&fields[2]),
        prompt: text(3)?,
        extra: text(4)?,
        targets: text(5)?,
        outputs: text(6).unwrap_or_else(|| "{}".into()),
        messages: text(7).unwrap_or_else(|| "[]".into()),
    })
}

pub(super) fn history(engine: &Redis, range: HistoryRange) -> Result<Vec<Entry>> {
    let most = range.max_items.and_then(|most| i64::try_from(most).ok()).unwrap_or(i64::MAX);
    if most == 0 {
        return Ok(Vec::new());
    }
    let mut command = redis::cmd("ZRANGE");
    match range.offset.map(|offset| i64::try_from(offset).unwrap_or(i64::MAX)) {
        Some(offset) => command.arg(key("done")).arg(offset).arg(offset.saturating_add(most - 1)),
        None => command.arg(key("done")).arg(-most.min(1 << 40)).arg(-1),
    };
    engine.ask(|connection| {
        let ids: Vec<String> = command.query(connection)?;
        let all = fields(connection, &ids, &ENTRY)?;
        Ok(all.iter().filter_map(entry).collect())
    })
}

pub(super) fn job(engine: &Redis, id: &str) -> Result<Option<Entry>> {
    let all = engine.ask(|connection| fields(connection, &[id.to_owned()], &ENTRY))?;
    Ok(all.first().and_then(entry))
}

/// The ids in the names of those that wait.
pub(super) fn ids_of(names: &[String]) -> Vec<String> {
    names.iter().filter_map(|name| Some(name.split_once(':')?.1.to_owned())).collect()
}

pub(super) fn queue(engine: &Redis) -> Result<String> {
    let names = ["number", "id", "prompt", "extra", "targets", "state", "seq"];
    let mut all = engine.ask(|connection| {
        let (waiting, running): (Vec<String>, Vec<String>) = redis::pipe()
            .atomic()
            .zrange(key("waiting"), 0, -1)
            .zrange(key("running"), 0, -1)
            .query(connection)?;
        let ids: Vec<String> = running.into_iter().chain(ids_of(&waiting)).collect();
        fields(connection, &ids, &names)
    })?;
    all.sort_by(|one, other| {
        let order = decimal(&one[0]).total_cmp(&decimal(&other[0]));
        order.then(whole(&one[6]).cmp(&whole(&other[6])))
    });
    let list = |wanted: State| {
        let mut list = String::new();
        for job in all.iter().filter(|job| state(&job[5]) == wanted) {
            let text = |at: usize| job[at].as_deref().unwrap_or("null");
            if !list.is_empty() {
                list.push(',');
            }
            push_tuple(&mut list, decimal(&job[0]), text(1), [text(2), text(3), text(4)]);
        }
        list
    };
    let (running, pending) = (list(State::Running), list(State::Pending));
    Ok(format!("{{\"queue_running\":[{running}],\"queue_pending\":[{pending}]}}"))
}

const ROW: [&str; 10] = [
    "id",
    "state",
    "number",
    "created",
    "started",
    "ended",
    "workflow_id",
    "outputs",
    "error",
    "seq",
];

fn job_row(fields: &Fields) -> Option<(i64, JobRow)> {
    let row = JobRow {
        id: fields[0].clone()?,
        state: state(&fields[1]),
        number: decimal(&fields[2]),
        created: whole(&fields[3])?,
        started: whole(&fields[4]),
        ended: whole(&fields[5]),
        workflow_id: fields[6].clone(),
        outputs: fields[7].clone(),
        error: fields[8].clone(),
    };
    Some((whole(&fields[9])?, row))
}

pub(super) fn list(engine: &Redis, query: &JobQuery) -> Result<(Vec<JobRow>, u64)> {
    let all = engine.ask(|connection| {
        let ids: Vec<String> =
            redis::cmd("ZRANGE").arg(key("all")).arg(0).arg(-1).query(connection)?;
        fields(connection, &ids, &ROW)
    })?;
    let mut rows: Vec<(i64, JobRow)> = all.iter().filter_map(job_row).collect();
    rows.retain(|(_, row)| {
        let is_asked = query.states.is_empty() || query.states.contains(&row.state);
        is_asked && (query.workflow_id.is_none() || row.workflow_id == query.workflow_id)
    });
    let by = |(seq, row): &(i64, JobRow)| match query.sort_by {
        SortBy::Created => (Some(row.created), *seq),
        SortBy::Duration => (row.ended.zip(row.started).map(|(end, start)| end - start), *seq),
    };
    rows.sort_by_key(by);
    if !query.ascending {
        rows.reverse();
    }
    let total = rows.len() as u64;
    let offset = usize::try_from(query.offset).unwrap_or(usize::MAX);
    let limit = query.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    Ok((rows.into_iter().skip(offset).take(limit).map(|(_, row)| row).collect(), total))
}

pub(super) fn row(engine: &Redis, id: &str) -> Result<Option<JobRow>> {
    let all = engine.ask(|connection| fields(connection, &[id.to_owned()], &ROW))?;
    Ok(all.first().and_then(job_row).map(|(_, row)| row))
}

const V2: [&str; 11] = [
    "seq", "id", "state", "created", "started", "ended", "outputs", "messages", "error",
    "metadata", "priority",
];

fn v2_row(fields: &Fields) -> Option<V2Row> {
    Some(V2Row {
        seq: whole(&fields[0])?,
        id: fields[1].clone()?,
        state: state(&fields[2]),
        created: whole(&fields[3])?,
        started: whole(&fields[4]),
        ended: whole(&fields[5]),
        outputs: fields[6].clone(),
        messages: fields[7].clone(),
        error: fields[8].clone(),
        metadata: fields[9].clone(),
        priority: whole(&fields[10]),
    })
}

pub(super) fn list_v2(engine: &Redis, query: &V2Query) -> Result<Vec<V2Row>> {
    let is_asked = |row: &V2Row| {
        let metadata: Json = row
            .metadata
            .as_deref()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        let has = |(label, value): &(String, String)| metadata[label.as_str()] == value.as_str();
        (query.states.is_empty() || query.states.contains(&row.state))
            && query.labels.iter().all(has)
    };
    let mut found = Vec::new();
    let mut before = query.before.map_or_else(|| "+inf".to_owned(), |seq| format!("({seq}"));
    while found.len() < query.limit {
        let rows = engine.ask(|connection| {
            let mut command = redis::cmd("ZREVRANGEBYSCORE");
            command.arg(key("all")).arg(&before).arg("-inf").arg("LIMIT").arg(0).arg(256);
            let ids: Vec<String> = command.query(connection)?;
            fields(connection, &ids, &V2)
        })?;
        let Some(last) = rows.iter().filter_map(v2_row).next_back() else { break };
        before = format!("({}", last.seq);
        found.extend(rows.iter().filter_map(v2_row).filter(is_asked));
    }
    found.truncate(query.limit);
    Ok(found)
}

pub(super) fn job_v2(engine: &Redis, id: &str) -> Result<Option<V2Row>> {
    let all = engine.ask(|connection| fields(connection, &[id.to_owned()], &V2))?;
    Ok(all.first().and_then(v2_row))
}
