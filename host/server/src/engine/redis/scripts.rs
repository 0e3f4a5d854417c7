//! What must happen at once, in Redis's own language: a script runs whole, and nothing in between.
//!
//! Every time in them is Redis's own. Jobs are hashes, `job:ID`. Those that wait are in one sorted set by their number
//! (equal ones by their sequence number, which their names there begin with), those that run in another by the
//! end of their lease, those that are done in a third in the order in which they ended.

use redis::Script;
use std::sync::LazyLock;

/// What all scripts begin with.
const BEGIN: &str = "\
local P = 'kosmograph:'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function place(id)
  return string.format('%016d:%s', redis.call('HGET', P .. 'job:' .. id, 'seq'), id)
end
local function delete(id)
  redis.call('DEL', P .. 'job:' .. id)
  redis.call('ZREM', P .. 'all', id)
  redis.call('ZREM', P .. 'done', id)
end
local function wait(id)
  local job = P .. 'job:' .. id
  redis.call('ZREM', P .. 'running', id)
  redis.call('HSET', job, 'state', 0)
  redis.call('HDEL', job, 'started', 'token', 'worker')
  redis.call('ZADD', P .. 'waiting', redis.call('HGET', job, 'number'), place(id))
end
";

fn script(text: &str) -> Script {
    Script::new(&format!("{BEGIN}{text}"))
}

/// How many arguments a job is to [`INSERT`].
pub const FIELDS: usize = 13;

/// key, passes, most keys, then for each job: id, number, client, prompt, extra, targets, workflow, metadata,
/// priority, kind, needs, models, webhook. Absent ones are empty. Answers `{word, …}`.
pub static INSERT: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local key, passes, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if key ~= '' then
  local used = redis.call('HGET', P .. 'keys', key)
  if used then return {'used', used} end
end
for at = 4, #ARGV, 13 do
  local state = redis.call('HGET', P .. 'job:' .. ARGV[at], 'state')
  if state and tonumber(state) < 2 then return {'taken', ARGV[at]} end
end
local added = {'added'}
local claims = tonumber(redis.call('GET', P .. 'claims') or '0')
for at = 4, #ARGV, 13 do
  local id = ARGV[at]
  delete(id)
  local seq = redis.call('INCR', P .. 'seq')
  local job = P .. 'job:' .. id
  local due = claims + redis.call('ZCARD', P .. 'waiting') + passes
  redis.call('HSET', job, 'seq', seq, 'id', id, 'state', 0, 'number', ARGV[at + 1], 'prompt', ARGV[at + 3],
    'extra', ARGV[at + 4], 'targets', ARGV[at + 5], 'created', now, 'attempts', 0, 'kind', ARGV[at + 9],
    'models', ARGV[at + 11], 'due', due)
  local optional = {client = 2, workflow_id = 6, metadata = 7, priority = 8, webhook = 12}
  for name, offset in pairs(optional) do
    if ARGV[at + offset] ~= '' then redis.call('HSET', job, name, ARGV[at + offset]) end
  end
  redis.call('HSETNX', P .. 'kinds', ARGV[at + 9], ARGV[at + 10])
  redis.call('ZADD', P .. 'waiting', ARGV[at + 1], place(id))
  redis.call('ZADD', P .. 'all', seq, id)
  added[#added + 1] = tostring(seq)
end
if key ~= '' then
  redis.call('HSET', P .. 'keys', key, ARGV[4])
  redis.call('RPUSH', P .. 'keys:order', key)
  if redis.call('LLEN', P .. 'keys:order') > most then
    redis.call('HDEL', P .. 'keys', redis.call('LPOP', P .. 'keys:order'))
  end
end
return added",
    )
});

/// worker, token, lease, ids. The id that was taken, or nothing.
pub static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
for at = 4, #ARGV do
  local id = ARGV[at]
  local job = P .. 'job:' .. id
  if redis.call('HGET', job, 'state') == '0' and redis.call('ZREM', P .. 'waiting', place(id)) == 1 then
    redis.call('HSET', job, 'state', 1, 'started', now, 'worker', ARGV[1], 'token', ARGV[2])
    redis.call('HDEL', job, 'stop')
    redis.call('HINCRBY', job, 'attempts', 1)
    redis.call('ZADD', P .. 'running', now + ARGV[3], id)
    redis.call('INCR', P .. 'claims')
    return id
  end
end
return false",
    )
});

/// lease, then id and token of each. 0 lost, 1 held, 2 to stop.
pub static RENEW: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local standings = {}
for at = 2, #ARGV, 2 do
  local job = redis.call('HMGET', P .. 'job:' .. ARGV[at], 'state', 'token', 'stop')
  if job[1] == '1' and job[2] == ARGV[at + 1] then
    redis.call('ZADD', P .. 'running', now + ARGV[1], ARGV[at])
    standings[#standings + 1] = job[3] and 2 or 1
  else
    standings[#standings + 1] = 0
  end
end
return standings",
    )
});

/// id, token.
pub static PUT_BACK: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local job = redis.call('HMGET', P .. 'job:' .. ARGV[1], 'state', 'token', 'attempts')
if job[1] == '1' and job[2] == ARGV[2] then
  redis.call('HSET', P .. 'job:' .. ARGV[1], 'attempts', math.max(job[3] - 1, 0))
  wait(ARGV[1])
end
return 0",
    )
});

/// id, token (empty for one that waits), state, outputs, messages, error, most, and of the delivery to a webhook, if the
/// job asks for one, its id and its body. 1 if it ended, now or before.
pub static FINISH: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local id, token = ARGV[1], ARGV[2]
local job = P .. 'job:' .. id
local known = redis.call('HMGET', job, 'state', 'token')
if token == '' then
  if known[1] ~= '0' then return 0 end
  redis.call('ZREM', P .. 'waiting', place(id))
else
  if known[2] ~= token then return 0 end
  if tonumber(known[1]) >= 2 then return 1 end
  redis.call('ZREM', P .. 'running', id)
end
-- By the clock, so that it grows even where Redis lost what it had.
local last = tonumber(redis.call('GET', P .. 'finished') or '0')
local finished = string.format('%.0f', math.max(last + 1, now * 1000))
redis.call('SET', P .. 'finished', finished)
redis.call('HSET', job, 'state', ARGV[3], 'ended', now, 'finished', finished, 'outputs', ARGV[4], 'messages', ARGV[5])
if ARGV[6] ~= '' then redis.call('HSET', job, 'error', ARGV[6]) end
redis.call('ZADD', P .. 'done', finished, id)
local asked = redis.call('HMGET', job, 'webhook', 'metadata')
if asked[1] then
  local delivery = P .. 'delivery:' .. ARGV[8]
  redis.call('HSET', delivery, 'id', ARGV[8], 'url', asked[1], 'body', ARGV[9], 'attempts', 0)
  if asked[2] then redis.call('HSET', delivery, 'metadata', asked[2]) end
  redis.call('ZADD', P .. 'deliveries', now, ARGV[8])
end
local more = redis.call('ZCARD', P .. 'done') - tonumber(ARGV[7])
if more > 0 then
  for _, old in ipairs(redis.call('ZRANGE', P .. 'done', 0, more - 1)) do delete(old) end
end
return 1",
    )
});

/// most attempts, token. How many wait again, then id, attempts and whether it was to stop, of each that does not.
pub static REAP: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local again, left = 0, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'running', '-inf', '(' .. now)) do
  local job = P .. 'job:' .. id
  local known = redis.call('HMGET', job, 'attempts', 'stop')
  if not known[1] then
    redis.call('ZREM', P .. 'running', id)
  elseif known[2] or tonumber(known[1]) >= tonumber(ARGV[1]) then
    redis.call('HSET', job, 'token', ARGV[2])
    redis.call('ZADD', P .. 'running', now + 30000, id)
    left[#left + 1] = id
    left[#left + 1] = known[1]
    left[#left + 1] = known[2] and '1' or '0'
  else
    wait(id)
    again = again + 1
  end
end
table.insert(left, 1, tostring(again))
return left",
    )
});

/// ids; none are all. Those that waited and are deleted.
pub static DELETE_WAITING: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local ids, deleted = ARGV, {}
if ids[1] == '*' then
  ids = {}
  for _, name in ipairs(redis.call('ZRANGE', P .. 'waiting', 0, -1)) do ids[#ids + 1] = string.sub(name, 18) end
end
for _, id in ipairs(ids) do
  if redis.call('HGET', P .. 'job:' .. id, 'state') == '0' then
    redis.call('ZREM', P .. 'waiting', place(id))
    delete(id)
    deleted[#deleted + 1] = id
  end
end
return deleted",
    )
});

/// ids of jobs that are to be forgotten if they are done; `*` are all.
pub static FORGET: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local ids = ARGV
if ids[1] == '*' then ids = redis.call('ZRANGE', P .. 'done', 0, -1) end
for _, id in ipairs(ids) do
  if redis.call('ZSCORE', P .. 'done', id) then delete(id) end
end
return 0",
    )
});

/// ids.
pub static STOP: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
for _, id in ipairs(ARGV) do
  if redis.call('HGET', P .. 'job:' .. id, 'state') == '1' then redis.call('HSET', P .. 'job:' .. id, 'stop', 1) end
end
return 0",
    )
});

/// id, hash, the asset as JSON without its id. The id that the hash has now.
pub static ADD_ASSET: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local id = redis.call('HGET', P .. 'hashes', ARGV[2]) or ARGV[1]
redis.call('HSET', P .. 'hashes', ARGV[2], id)
redis.call('HSET', P .. 'assets', id, ARGV[3])
return id",
    )
});

/// id.
pub static REMOVE_ASSET: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local asset = redis.call('HGET', P .. 'assets', ARGV[1])
if asset then redis.call('HDEL', P .. 'hashes', cjson.decode(asset).hash) end
redis.call('HDEL', P .. 'assets', ARGV[1])
return 0",
    )
});

/// most, hold. Of each that is due and taken: id, address, body, metadata (may be empty), attempts.
pub static TAKE_DELIVERIES: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deliveries', '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local delivery = P .. 'delivery:' .. id
  local known = redis.call('HMGET', delivery, 'url', 'body', 'metadata')
  if known[1] then
    redis.call('ZADD', P .. 'deliveries', now + ARGV[2], id)
    local attempts = redis.call('HINCRBY', delivery, 'attempts', 1)
    for _, part in ipairs({id, known[1], known[2], known[3] or '', tostring(attempts)}) do taken[#taken + 1] = part end
  else
    redis.call('ZREM', P .. 'deliveries', id)
  end
end
return taken",
    )
});

/// id, and in how many milliseconds it is due again; empty for never.
pub static SETTLE_DELIVERY: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
if ARGV[2] == '' then
  redis.call('ZREM', P .. 'deliveries', ARGV[1])
  redis.call('DEL', P .. 'delivery:' .. ARGV[1])
elseif redis.call('ZSCORE', P .. 'deliveries', ARGV[1]) then
  redis.call('ZADD', P .. 'deliveries', now + ARGV[2], ARGV[1])
end
return 0",
    )
});

/// name, what it is, how many milliseconds it stays.
pub static ANNOUNCE: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', now)) do
  redis.call('ZREM', P .. 'workers', gone)
  redis.call('DEL', P .. 'worker:' .. gone)
end
redis.call('ZADD', P .. 'workers', now + ARGV[3], ARGV[1])
redis.call('HSET', P .. 'worker:' .. ARGV[1], 'about', ARGV[2], 'seen', now)
return 0",
    )
});

/// name.
pub static RETIRE: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
redis.call('ZREM', P .. 'workers', ARGV[1])
redis.call('DEL', P .. 'worker:' .. ARGV[1])
return 0",
    )
});

/// Of each that is there: name, what it is, how many milliseconds ago it said so.
pub static WORKERS: LazyLock<Script> = LazyLock::new(|| {
    script(
        "
local there = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '(' .. now, '+inf')) do
  local known = redis.call('HMGET', P .. 'worker:' .. name, 'about', 'seen')
  if known[1] then
    for _, part in ipairs({name, known[1], tostring(now - known[2])}) do there[#there + 1] = part end
  end
end
return there",
    )
});
