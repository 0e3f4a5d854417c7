//! `--keep-outputs`: the output folder holds so much and no more. `--store-cache`: nor does the copy of a bucket.

use crate::app::App;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

/// What is younger stays: whoever asked for it has so long to fetch it.
const YOUNG: Duration = Duration::from_secs(60);

/// How often it looks where nobody tells it.
const EVERY: Duration = Duration::from_secs(60);

/// Looks at a folder whenever it is told that a job is done.
#[derive(Debug)]
pub struct Keeper {
    wake: SyncSender<()>,
}

impl Keeper {
    /// A keeper and the work of its thread.
    pub fn new(option: &'static str, folder: PathBuf, most: u64) -> (Self, impl FnOnce(&App)) {
        let (wake, woken) = sync_channel(1);
        let work = move |app: &App| {
            // A server that runs nothing is not told; what it shows comes into its folder all the same.
            while !matches!(woken.recv_timeout(EVERY), Err(RecvTimeoutError::Disconnected)) {
                let begin = Instant::now();
                let running = app.queue.running();
                let longest = running.iter().map(|job| job.since.elapsed()).max();
                let young = longest.unwrap_or_default().max(YOUNG);
                let before = SystemTime::now().checked_sub(young).unwrap_or(SystemTime::UNIX_EPOCH);
                match bound(&folder, most, before) {
                    Ok(0) => (),
                    Ok(count) => tracing::info!("{option}: {count} old files were deleted"),
                    Err(error) => tracing::warn!("{option}: {}: {error}", folder.display()),
                }
                // A large folder takes a while: a fifth of the time at most goes into looking.
                std::thread::sleep(begin.elapsed() * 4);
            }
        };
        (Self { wake }, work)
    }

    /// There may be more in the folder by now.
    pub fn wake(&self) {
        // Full: it looks soon anyway.
        let _ = self.wake.try_send(());
    }
}

/// Starts a keeper if one is asked for.
///
/// # Errors
/// No thread can be started.
pub fn start(app: &Arc<App>, outputs: Option<u64>, copy: u64) -> io::Result<()> {
    let (keeper, work) = match (&app.bucket, outputs) {
        (Some(bucket), _) => Keeper::new("--store-cache", bucket.root().to_owned(), copy),
        (None, Some(most)) => {
            Keeper::new("--keep-outputs", app.surroundings.folders.output.clone(), most)
        }
        (None, None) => return Ok(()),
    };
    keeper.wake();
    let _ = app.keeper.set(keeper);
    let app = app.clone();
    std::thread::Builder::new().name("outputs".into()).spawn(move || work(&app))?;
    Ok(())
}

/// A file that may go.
struct Old {
    modified: SystemTime,
    size: u64,
    path: PathBuf,
}

/// Deletes the oldest files of `folder` until it holds `most` bytes, but none that is not older than `before`.
/// Links are neither followed nor counted, and hidden files are somebody's work. Returns how many went.
fn bound(folder: &Path, most: u64, before: SystemTime) -> io::Result<usize> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    let mut total = 0u64;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)?.flatten() {
            // What somebody else deleted in this moment is not there any more.
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && !is_hidden(&entry) {
                let Ok(metadata) = entry.metadata() else { continue };
                total = total.saturating_add(metadata.len());
                let modified = metadata.modified()?;
                if modified < before {
                    files.push(Old { modified, size: metadata.len(), path: entry.path() });
                }
            }
        }
    }
    files.sort_by(|one, other| (one.modified, &one.path).cmp(&(other.modified, &other.path)));
    let mut gone = 0;
    for Old { size, path, .. } in files {
        if total <= most {
            break;
        }
        match fs::remove_file(&path) {
            Ok(()) => gone += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => {
                tracing::warn!("{}: {error}", path.display());
                continue;
            }
        }
        total = total.saturating_sub(size);
    }
    Ok(gone)
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_the_young_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("sub")).unwrap();
        let now = SystemTime::now();
        for (name, age) in [("a", 500), ("sub/b", 400), ("c", 300), (".d", 600), ("e", 1)] {
            fs::write(path(name), [0; 100]).unwrap();
            let file = fs::File::options().write(true).open(path(name)).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        }
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("theirs"), [0; 1000]).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), path("link")).unwrap();
        let before = now - Duration::from_secs(60);
        assert_eq!(bound(folder.path(), 400, before).unwrap(), 0);
        assert_eq!(bound(folder.path(), 250, before).unwrap(), 2);
        assert!(!path("a").exists() && !path("sub/b").exists() && path("c").exists());
        assert_eq!(bound(folder.path(), 0, before).unwrap(), 1);
        assert!(path(".d").exists() && path("e").exists() && path("link/theirs").exists());
    }
}
