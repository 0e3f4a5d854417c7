//! Opening the database: who may, which version it is of, what becomes of older ones.

use nix::fcntl::{Flock, FlockArg};
use rusqlite::Connection;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// One step for each version; a database of version N has had the first N.
pub(super) const STEPS: &[&str] = &[
    "\
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    number REAL NOT NULL,
    client TEXT,
    prompt TEXT NOT NULL,
    extra TEXT NOT NULL,
    targets TEXT NOT NULL,
    workflow_id TEXT,
    created INTEGER NOT NULL,
    started INTEGER,
    ended INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    finished INTEGER,
    outputs TEXT,
    messages TEXT,
    error TEXT
);
CREATE INDEX jobs_waiting ON jobs (state, number, seq);
CREATE INDEX jobs_finished ON jobs (finished) WHERE finished IS NOT NULL;
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE idempotency (key TEXT PRIMARY KEY, job TEXT NOT NULL, created INTEGER NOT NULL);
",
    "\
ALTER TABLE jobs ADD COLUMN metadata TEXT;
ALTER TABLE jobs ADD COLUMN priority INTEGER;
CREATE TABLE assets (
    id TEXT PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    file_path TEXT NOT NULL,
    name TEXT NOT NULL,
    owned INTEGER NOT NULL,
    created INTEGER NOT NULL
);
",
    "\
ALTER TABLE jobs ADD COLUMN webhook TEXT;
CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    body TEXT NOT NULL,
    metadata TEXT,
    due INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX deliveries_due ON deliveries (due);
",
];

/// Why a store cannot be opened. Each sentence names the file or folder.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{}: the folder cannot be made: {error}", .0.display(), error = .1)]
    Folder(PathBuf, io::Error),
    #[error("{}: another kosmograph serve uses this folder; give each its own with --state DIR", .0.display())]
    Taken(PathBuf),
    #[error("{}: cannot be written: {error}", .0.display(), error = .1)]
    Lock(PathBuf, io::Error),
    #[error(
        "{}: is of version {found}, made by a newer kosmograph; this one knows up to {known}. It was left as it is", .path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "{}: is damaged: {reason}. Put a backup in its place, or move it away to begin with an empty queue", .path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("{}: cannot be opened: {reason}", .path.display())]
    Sqlite { path: PathBuf, reason: String },
}

pub(super) fn lock(folder: &Path) -> Result<Flock<File>, OpenError> {
    let path = folder.join("lock");
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| OpenError::Lock(path.clone(), error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::Error::EWOULDBLOCK => OpenError::Taken(folder.to_owned()),
        error => OpenError::Lock(path, error.into()),
    })
}

/// A second connection, which only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        // Long lists are read from the system's own pages, and not copied into a cache that the next commit
        // of the other connection empties.
        connection.execute_batch(
            "PRAGMA query_only = ON; PRAGMA cache_size = -4096; PRAGMA mmap_size = 268435456;",
        )?;
        Ok(connection)
    };
    open().map_err(|error| OpenError::Sqlite { path: path.to_owned(), reason: error.to_string() })
}

pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let sentence = |error: rusqlite::Error| {
        let (path, reason) = (path.to_owned(), error.to_string());
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => OpenError::Damaged { path, reason },
            _ => OpenError::Sqlite { path, reason },
        }
    };
    let mut connection = Connection::open(path).map_err(sentence)?;
    let known = STEPS.len() as i64;
    let prepare = |connection: &mut Connection| -> rusqlite::Result<Result<(), OpenError>> {
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found > known {
            return Ok(Err(OpenError::Newer { path: path.to_owned(), found, known }));
        }
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        connection.execute_batch(
            "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -4096;",
        )?;
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Ok(Err(OpenError::Damaged { path: path.to_owned(), reason: check }));
        }
        for (number, step) in STEPS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0)) {
            let transaction = connection.transaction()?;
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "user_version", number as i64 + 1)?;
            transaction.commit()?;
        }
        Ok(Ok(()))
    };
    prepare(&mut connection).map_err(sentence)??;
    Ok(connection)
}
