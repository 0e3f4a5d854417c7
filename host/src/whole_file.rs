//! Files that are either whole or as they were: what is written over may be the only copy, and a disk may be full.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `file` anew under a temporary name beside it, brings it to the disk and gives it its own name. What is no ordinary file, a
/// pipe or /dev/stdout, is written as it is.
///
/// # Errors
/// Those of `body` and of the file system; `file` is what it was then.
pub fn write<E: From<io::Error>>(
    file: &Path,
    body: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    put(file, true, body)
}

/// As [`write`], of what is soon written anew: nobody waits for the disk.
///
/// # Errors
/// Those of [`write`].
pub fn write_passing<E: From<io::Error>>(
    file: &Path,
    body: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    put(file, false, body)
}

fn put<E: From<io::Error>>(
    file: &Path,
    to_disk: bool,
    body: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    // A link stays one, and what it leads to is replaced.
    let real = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let old = fs::metadata(&real).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        let mut to = BufWriter::new(OpenOptions::new().write(true).open(file)?);
        body(&mut to)?;
        return Ok(to.flush()?);
    }
    if old.as_ref().is_some_and(|old| old.permissions().readonly()) {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied).into());
    }
    let unfinished = Unfinished(beside(&real));
    let mut to =
        BufWriter::new(OpenOptions::new().write(true).create_new(true).open(&unfinished.0)?);
    body(&mut to)?;
    to.flush()?;
    let new = to.get_ref();
    if let Some(old) = old {
        // Where that is not allowed it is a new file's.
        let _ = new.set_permissions(old.permissions());
    }
    if to_disk {
        new.sync_all()?;
    }
    Ok(fs::rename(&unfinished.0, &real)?)
}

/// A name in the folder of `file` that is nobody else's.
fn beside(file: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = file.parent().unwrap_or(Path::new(""));
    folder.join(format!(".kosmograph-{}-{count}.tmp", std::process::id()))
}

/// A file that goes when it was not given its name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is not there when all went well.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(file: &Path, text: &str) -> io::Result<()> {
        write(file, |to| to.write_all(text.as_bytes()))
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.lock");
        text(&file, "one").unwrap();
        text(&file, "two").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        let full = write(&file, |to| {
            to.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        assert!(text(&folder.path().join("none/a"), "x").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        text(&file, "one").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        text(&link, "two").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        text(Path::new("/dev/null"), "x").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let mut permissions = fs::metadata(&file).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&file, permissions).unwrap();
        assert!(text(&file, "three").is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
    }
}
