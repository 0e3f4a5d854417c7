//! Where saved files go: ComfyUI's file names, and files that are either whole or not there.
//!
//! A picture is called `{prefix}_{counter:05}_.png`. It is written under a temporary name in its folder, brought to the disk, and then
//! given its own name by a call that never replaces a file; where another process was faster, the next counter is taken.
//!
//! A temporary file is locked for as long as it is written. One that nobody holds a lock on was left by a run that was killed, and goes
//! when the next one begins to save into its folder.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Component, Path, PathBuf};

use chrono::{Datelike, NaiveDateTime, Timelike};

/// Why a picture is not saved.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The prefix names a place outside of the folder for output.
    #[error("\"{prefix}\" leads out of {}; pictures are saved inside of it", root.display())]
    Outside { prefix: String, root: PathBuf },
    #[error("the folder {} cannot be written to: {cause}", folder.display())]
    Folder { folder: PathBuf, cause: io::Error },
    #[error("{} cannot be written: {cause}", path.display())]
    Write { path: PathBuf, cause: Cause },
}

/// What whoever writes a file reports.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The local time, as [`Patterns`] take it.
pub fn now() -> NaiveDateTime {
    chrono::Local::now().naive_local()
}

/// What the patterns in a prefix stand for.
#[derive(Clone, Copy, Debug)]
pub struct Patterns {
    /// Of the first picture, in pixels.
    pub width: usize,
    pub height: usize,
    /// Local time.
    pub now: NaiveDateTime,
}

impl Patterns {
    /// Replaces `%width%`, `%height%`, `%year%`, `%month%`, `%day%`, `%hour%`, `%minute%`, `%second%` and `%date:yyyy-MM-dd%` (d, M, h,
    /// m, s once or twice, yy or yyyy; 24 hours). Any other text stays.
    pub fn apply(&self, prefix: &str) -> String {
        let now = self.now;
        let mut text = prefix
            .replace("%width%", &self.width.to_string())
            .replace("%height%", &self.height.to_string())
            .replace("%year%", &now.year().to_string())
            .replace("%month%", &format!("{:02}", now.month()))
            .replace("%day%", &format!("{:02}", now.day()))
            .replace("%hour%", &format!("{:02}", now.hour()))
            .replace("%minute%", &format!("{:02}", now.minute()))
            .replace("%second%", &format!("{:02}", now.second()));
        const DATE: &str = "%date:";
        let mut from = 0;
        while let Some(start) = text[from..].find(DATE).map(|i| from + i) {
            let Some(length) = text[start + DATE.len()..].find('%') else { break };
            let end = start + DATE.len() + length;
            let date = format_date(&text[start + DATE.len()..end], now);
            text.replace_range(start..=end, &date);
            from = start + date.len();
        }
        text
    }
}

fn format_date(format: &str, now: NaiveDateTime) -> String {
    let mut date = String::new();
    let mut rest = format;
    while let Some(letter) = rest.chars().next() {
        let longest = if letter == 'y' { 4 } else { 2 };
        let count = rest.chars().take(longest).take_while(|c| *c == letter).count();
        let (part, after) = rest.split_at(count * letter.len_utf8());
        let number = match letter {
            'd' => now.day(),
            'M' => now.month(),
            'h' => now.hour(),
            'm' => now.minute(),
            's' => now.second(),
            'y' if count == 4 => now.year().unsigned_abs(),
            'y' if count == 2 => now.year().unsigned_abs() % 100,
            _ => {
                date.push_str(part);
                rest = after;
                continue;
            }
        };
        date.push_str(&format!("{number:0count$}"));
        rest = after;
    }
    date
}

/// The files that one call of a node saves.
#[derive(Debug)]
pub struct Series {
    folder: PathBuf,
    /// Below the root, with `/` between; empty for the root itself.
    subfolder: String,
    /// May hold `%batch_num%`.
    name: String,
    counter: u64,
    /// Without its dot.
    ending: &'static str,
}

impl Series {
    /// Prepares for `batch` pictures called `prefix`, its patterns applied, below the folder `root`: makes the folders that the prefix
    /// names and begins to count above the highest picture of that name which is there.
    ///
    /// # Errors
    /// A prefix that leads out of `root`, and folders that cannot be made or read.
    pub fn begin(root: &Path, prefix: &str, batch: usize) -> Result<Series, OutputError> {
        let mut parts = relative_parts(root, prefix).ok_or_else(|| OutputError::Outside {
            prefix: prefix.to_owned(),
            root: root.to_owned(),
        })?;
        let name = parts.pop().unwrap_or_default();
        let folder = parts.iter().fold(root.to_owned(), |folder, part| folder.join(part));
        let failed = |cause| OutputError::Folder { folder: folder.clone(), cause };
        fs::create_dir_all(&folder).map_err(failed)?;
        remove_left_behind(&folder).map_err(failed)?;
        let names: Vec<String> = if name.contains(BATCH_NUMBER) {
            (0..batch).map(|i| batch_name(&name, i)).collect()
        } else {
            vec![name.clone()]
        };
        let counter = highest_counter(&folder, &names).map_err(failed)? + 1;
        Ok(Series { folder, subfolder: parts.join("/"), name, counter, ending: "png" })
    }

    /// The same for files of another kind than PNG.
    pub fn ending(self, ending: &'static str) -> Series {
        Series { ending, ..self }
    }

    /// The folder below the root, as the output's event tells it.
    pub fn subfolder(&self) -> &str {
        &self.subfolder
    }

    /// Saves picture number `index` of the batch; `write` is given the open file. Returns the file's name.
    /// `making` hears the temporary name before anything has another.
    ///
    /// # Errors
    /// Those of the file system and of `write`; nothing is left behind then.
    pub fn save<E: Into<Cause>>(
        &mut self,
        index: usize,
        making: impl FnOnce(&str),
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<String, OutputError> {
        let name = batch_name(&self.name, index);
        let failed = |cause: io::Error| OutputError::Folder { folder: self.folder.clone(), cause };
        let mut file = temporary(&self.folder).map_err(failed)?;
        if let Some(name) = file.path().file_name().and_then(|name| name.to_str()) {
            making(name);
        }
        let mut buffer = BufWriter::new(file.as_file_mut());
        let written = write(&mut buffer).map_err(Into::into);
        let written: Result<(), Cause> = written.and_then(|()| Ok(buffer.flush()?));
        drop(buffer);
        // A name that survives a crash of the machine must not lead to a file that did not.
        let written = written.and_then(|()| Ok(file.as_file().sync_all()?));
        written.map_err(|cause| OutputError::Write { path: self.file(&name).1, cause })?;
        loop {
            let (file_name, path) = self.file(&name);
            self.counter += 1;
            match file.persist_noclobber(&path) {
                Ok(_) => {
                    // The name, too. Not every file system can, and the picture is there.
                    let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
                    return Ok(file_name);
                }
                Err(taken) if taken.error.kind() == ErrorKind::AlreadyExists => file = taken.file,
                Err(error) => {
                    return Err(OutputError::Write { path, cause: error.error.into() });
                }
            }
        }
    }

    fn file(&self, name: &str) -> (String, PathBuf) {
        let file_name = format!("{name}_{:05}_.{}", self.counter, self.ending);
        let path = self.folder.join(&file_name);
        (file_name, path)
    }
}

const TEMPORARY: (&str, &str) = (".kosmograph-", ".tmp");

/// A locked file under a temporary name.
fn temporary(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    // The default would keep the picture from everybody else; the user's umask still holds.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    loop {
        let file = builder.tempfile_in(folder)?;
        // Where files cannot be locked, none is ever taken for one that was left behind.
        let _ = file.as_file().lock();
        // Between its making and its locking another run may have taken it for one.
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes the temporary files of runs that were killed.
fn remove_left_behind(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_temporary = name
            .to_str()
            .is_some_and(|name| name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1));
        if !is_temporary || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        // What cannot be opened, locked or removed is somebody else's.
        if let Ok(file) = File::options().read(true).write(true).open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

const BATCH_NUMBER: &str = "%batch_num%";

fn batch_name(name: &str, index: usize) -> String {
    name.replace(BATCH_NUMBER, &index.to_string())
}

/// The parts of `prefix` below `root`, without `.` and `..`; `None` when it leads out of it. Links inside of `root` are followed: their
/// owner made them.
fn relative_parts(root: &Path, prefix: &str) -> Option<Vec<String>> {
    let path = Path::new(prefix);
    let path = if path.is_absolute() { path.strip_prefix(root).ok()? } else { path };
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?.to_owned()),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts)
}

/// The highest N of the files `{name}_{N}_…` for any of `names`; 0 when there are none.
fn highest_counter(folder: &Path, names: &[String]) -> io::Result<u64> {
    // Far above any picture, and far from where counting on would overflow.
    const ABSURD: u64 = 1_000_000_000_000;
    let mut highest = 0;
    for entry in fs::read_dir(folder)? {
        let file = entry?.file_name();
        let Some(file) = file.to_str() else { continue };
        for name in names {
            let counter = file.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('_'));
            let counter = counter.and_then(|rest| rest.split('_').next()?.parse().ok());
            highest = highest.max(counter.filter(|counter| *counter < ABSURD).unwrap_or(0));
        }
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::NaiveDate;
    use proptest::prelude::*;

    fn patterns() -> Patterns {
        let now = NaiveDate::from_ymd_opt(2026, 3, 7).unwrap().and_hms_opt(9, 5, 59).unwrap();
        Patterns { width: 512, height: 768, now }
    }

    #[test]
    fn patterns_are_replaced() {
        let cases = [
            ("ComfyUI", "ComfyUI"),
            ("%width%x%height%", "512x768"),
            ("%year%-%month%-%day%/%hour%%minute%%second%", "2026-03-07/090559"),
            ("%date:yyyy-MM-dd%_%date:hhmmss%", "2026-03-07_090559"),
            ("%date:d.M.yy h%", "7.3.26 9"),
            ("%date:yyyy", "%date:yyyy"),
            ("%date:ü–y%", "ü–y"),
            ("%KSampler.seed%", "%KSampler.seed%"),
            ("a%batch_num%", "a%batch_num%"),
        ];
        for (prefix, expected) in cases {
            assert_eq!(patterns().apply(prefix), expected, "{prefix}");
        }
    }

    fn save(series: &mut Series, index: usize, bytes: &[u8]) -> Result<String, OutputError> {
        series.save(index, |_| (), |file| file.write_all(bytes))
    }

    fn listing(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn counting_goes_on_above_the_highest() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a_00007_.png", "a_00012_x.jpg", "ab_00099_.png", "a_30.png", "a_x_.png"] {
            fs::write(root.path().join(name), "").unwrap();
        }
        let mut series = Series::begin(root.path(), "a", 2).unwrap();
        assert_eq!(save(&mut series, 0, b"one").unwrap(), "a_00013_.png");
        assert_eq!(save(&mut series, 1, b"two").unwrap(), "a_00014_.png");
        assert_eq!(fs::read(root.path().join("a_00014_.png")).unwrap(), b"two");
        let mut huge = Series::begin(root.path(), "ab", 1).unwrap();
        assert_eq!(save(&mut huge, 0, b"").unwrap(), "ab_00100_.png");
    }

    #[test]
    fn the_number_in_the_batch_is_part_of_the_name() {
        let root = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let mut series = Series::begin(root.path(), "x/y%batch_num%", 2).unwrap();
            assert_eq!(series.subfolder(), "x");
            save(&mut series, 0, b"").unwrap();
            save(&mut series, 1, b"").unwrap();
        }
        let names = ["y0_00001_.png", "y0_00003_.png", "y1_00002_.png", "y1_00004_.png"];
        assert_eq!(listing(&root.path().join("x")), names);
    }

    #[test]
    fn no_file_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let mut first = Series::begin(root.path(), "a", 1).unwrap();
        let mut second = Series::begin(root.path(), "a", 1).unwrap();
        assert_eq!(save(&mut first, 0, b"first").unwrap(), "a_00001_.png");
        assert_eq!(save(&mut second, 0, b"second").unwrap(), "a_00002_.png");
        assert_eq!(fs::read(root.path().join("a_00001_.png")).unwrap(), b"first");
    }

    #[test]
    fn many_at_once_lose_nothing() {
        let root = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let root = root.path();
                scope.spawn(move || {
                    let mut series = Series::begin(root, "sub/a", 1).unwrap();
                    (0..20u8).for_each(|i| drop(save(&mut series, 0, &[thread, i]).unwrap()));
                });
            }
        });
        let folder = root.path().join("sub");
        let mut contents: Vec<Vec<u8>> =
            listing(&folder).iter().map(|name| fs::read(folder.join(name)).unwrap()).collect();
        contents.sort();
        contents.dedup();
        assert_eq!(contents.len(), 160);
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_is_being_written_is_not() {
        let root = tempfile::tempdir().unwrap();
        let dead = root.path().join(".kosmograph-dead.tmp");
        fs::write(&dead, "half a picture").unwrap();
        fs::write(root.path().join(".kosmograph-notes.txt"), "").unwrap();
        let alive = temporary(root.path()).unwrap();
        Series::begin(root.path(), "a", 1).unwrap();
        assert!(!dead.exists() && alive.path().exists());
        assert_eq!(listing(root.path()).len(), 2);
        // Written by another run meanwhile, and whole.
        let mut series = Series::begin(root.path(), "b", 1).unwrap();
        let saved = series.save(
            0,
            |_| (),
            |file| {
                Series::begin(root.path(), "c", 1).map_err(io::Error::other)?;
                file.write_all(b"whole")
            },
        );
        assert_eq!(fs::read(root.path().join(saved.unwrap())).unwrap(), b"whole");
    }

    #[test]
    fn an_error_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut series = Series::begin(root.path(), "a", 1).unwrap();
        let error = series.save(
            0,
            |_| (),
            |file| {
                file.write_all(&[0; 100_000])?;
                Err(io::Error::other("the disk is full"))
            },
        );
        let sentence = error.unwrap_err().to_string();
        assert!(sentence.contains("a_00001_.png") && sentence.contains("the disk is full"));
        assert!(listing(root.path()).is_empty());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let error = Series::begin(root.path(), "file/a", 1).unwrap_err();
        assert!(error.to_string().contains("/file cannot be written to"), "{error}");
    }

    #[test]
    fn prefixes_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for prefix in ["../a", "a/../../b", "/etc/a", "a/../../../b", ".."] {
            let error = Series::begin(root, prefix, 1).unwrap_err();
            assert!(matches!(error, OutputError::Outside { .. }), "{prefix}: {error}");
        }
        for (prefix, subfolder) in [("a/../b/c", "b"), ("./x", ""), ("d/e/", "d"), ("", "")] {
            assert_eq!(Series::begin(root, prefix, 1).unwrap().subfolder(), subfolder, "{prefix}");
        }
        let absolute = root.join("f/g");
        let inside = Series::begin(root, absolute.to_str().unwrap(), 1).unwrap();
        assert_eq!(inside.subfolder(), "f");
    }

    proptest! {
        #[test]
        fn any_prefix_stays_inside(prefix in "[a-z./%:dyMü_]{0,24}") {
            let prefix = patterns().apply(&prefix);
            if let Some(parts) = relative_parts(Path::new("/made/up"), &prefix) {
                prop_assert!(parts.iter().all(|part| part != ".." && !part.contains('/')));
            }
        }
    }
}
