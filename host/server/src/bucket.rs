//! `--store s3://BUCKET/PREFIX`: pictures go in and out through a bucket that all machines reach.
//!
//! Nodes read and write files, so each process has a folder of its own that is a copy of what it needs of the
//! bucket: `input`, `output`, `temp` and `user` below one root, under the keys that the bucket has them by. Whoever is
//! about to read a file asks for it first ([`Bucket::bring`]), by its entity tag, so that a picture that another machine
//! replaced is never an old one. What is written goes into the bucket before anybody is told of it. The copy begins
//! empty with each process, and is bounded as it grows ([`crate::keep`]).

#[cfg(test)]
mod tests;

use crate::routes::{Existing, write};
use kosmograph::folders::Elsewhere;
use nix::fcntl::{Flock, FlockArg};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as Key;
use object_store::{
    ClientOptions, Error, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    WriteMultipart,
};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Runtime;

/// The folders of the copy; nothing else of a root is the bucket's.
const FOLDERS: [&str; 4] = ["input", "output", "temp", "user"];

/// The file of a copy that says that it is one, and whose.
const LOCK: &str = "bucket.lock";

/// A file larger than this is sent in parts of this size.
const PART: usize = 16 << 20;

/// How many parts are on their way at once.
const PARTS: usize = 4;

/// The most files that a list of a folder names.
const MOST: usize = 10_000;

/// How long a list of names is taken for what it is: a catalogue asks for the same one many times.
const LISTED: Duration = Duration::from_secs(2);

/// How long one request may take, and a connection to be made. The library tries again for longer.
const REQUEST: Duration = Duration::from_secs(60);
const CONNECTING: Duration = Duration::from_secs(5);

/// How long an object store that does not answer, or says that it is too busy, is asked again.
const PATIENCE: Duration = Duration::from_secs(20);

/// Names of files, and when each was written.
type Names = Vec<(String, SystemTime)>;

/// See the module.
pub struct Bucket {
    objects: Arc<dyn ObjectStore>,
    runtime: Runtime,
    /// The folder that is a copy.
    root: PathBuf,
    /// What keys begin with; may be empty.
    prefix: String,
    /// For people.
    name: String,
    /// The entity tags of the files of the copy.
    tags: Mutex<HashMap<PathBuf, String>>,
    lists: Mutex<HashMap<PathBuf, (Instant, Names)>>,
    /// Nobody else has this folder for a copy as long as this is held.
    _lock: Flock<File>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Bucket({})", self.name)
    }
}

/// Whether what `--store` says is an object store.
pub fn is_bucket(text: &str) -> bool {
    text.contains("://")
}

/// `s3://BUCKET/PREFIX` in its parts.
fn parts(address: &str) -> Result<(&str, &str), String> {
    let wrong = || {
        format!(
            "--store: \"{address}\" is no object store; s3://BUCKET or s3://BUCKET/PREFIX is one, and a folder is a path"
        )
    };
    let rest = address.strip_prefix("s3://").ok_or_else(wrong)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if bucket.is_empty() || !bucket.bytes().all(is_plain) {
        return Err(wrong());
    }
    let prefix = prefix.trim_matches('/');
    let is_normal = |part: &str| !matches!(part, "" | "." | "..");
    if !prefix.is_empty() && !prefix.split('/').all(is_normal) {
        return Err(wrong());
    }
    Ok((bucket, prefix))
}

/// Takes a folder for a copy, whose files are about to be deleted: one that is empty, or was a copy before.
fn claim(root: &Path) -> Result<Flock<File>, String> {
    let shown = root.display();
    let path = root.join(LOCK);
    let is_anybodys = || fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some());
    if !path.exists() && is_anybodys() {
        return Err(format!(
            "{shown}: has files, and is no copy of a bucket; move them away, or name another folder with --state DIR"
        ));
    }
    let unwritten = |error: &dyn std::fmt::Display| format!("{shown}: cannot be written: {error}");
    fs::create_dir_all(root).map_err(|error| unwritten(&error))?;
    let file = File::options().create(true).write(true).truncate(false).open(&path);
    let file = file.map_err(|error| unwritten(&error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::Error::EWOULDBLOCK => format!(
            "{shown}: another kosmograph has its copy of a bucket there; give each its own with --state DIR"
        ),
        error => unwritten(&error),
    })
}

impl Bucket {
    /// Opens the bucket that `address` names, with the credentials of the environment (`AWS_ACCESS_KEY_ID` and so
    /// on), and asks for one file of it. The folder `root` becomes its copy: what lies in it is deleted.
    ///
    /// # Errors
    /// A sentence: the address is none, or nobody answers there.
    pub fn open(address: &str, root: PathBuf) -> Result<Self, String> {
        let (bucket, prefix) = parts(address)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("objects")
            .enable_all()
            .build()
            .map_err(|error| format!("--store: no thread can be started: {error}"))?;
        crate::listen::use_ring();
        let is_plain = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"]
            .iter()
            .any(|name| std::env::var(name).is_ok_and(|url| url.starts_with("http://")));
        let client = ClientOptions::new()
            .with_allow_http(is_plain)
            .with_timeout(REQUEST)
            .with_connect_timeout(CONNECTING);
        let retry = object_store::RetryConfig { retry_timeout: PATIENCE, ..Default::default() };
        let objects = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_client_options(client)
            .with_retry(retry)
            .build()
            .map_err(|error| format!("--store {address}: {error}"))?;
        let this = Self::with(Arc::new(objects), runtime, root, prefix, address)?;
        this.prepare().map_err(|error| format!("--store {address}: {error}"))?;
        Ok(this)
    }

    fn with(
        objects: Arc<dyn ObjectStore>,
        runtime: Runtime,
        root: PathBuf,
        prefix: &str,
        name: &str,
    ) -> Result<Self, String> {
        let _lock = claim(&root)?;
        let (prefix, name) = (prefix.to_owned(), name.to_owned());
        let (tags, lists) = (Mutex::default(), Mutex::default());
        Ok(Self { objects, runtime, root, prefix, name, tags, lists, _lock })
    }

    /// An empty copy, and whether there is a bucket at all.
    fn prepare(&self) -> io::Result<()> {
        for folder in FOLDERS.map(|name| self.root.join(name)) {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => fs::create_dir_all(&folder)?,
            }
        }
        // A list of a bucket that is not there is refused; of one that has nothing it is empty.
        let key = self.needs_key(&self.root.join("input"))?;
        let asked = self.objects.list_with_delimiter(Some(&key));
        self.runtime.block_on(asked).map(drop).map_err(|error| unreached(&error))
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn tags(&self) -> MutexGuard<'_, HashMap<PathBuf, String>> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn know(&self, path: &Path, tag: Option<String>) {
        match tag {
            Some(tag) => self.tags().insert(path.to_owned(), tag),
            None => self.tags().remove(path),
        };
    }

    /// `None` for a name that no key may have.
    fn key_of(&self, relative: &str) -> Option<Key> {
        // Parsed, not converted: signs that are unusual in keys are kept as they are.
        match self.prefix.as_str() {
            "" => Key::parse(relative).ok(),
            prefix => Key::parse(format!("{prefix}/{relative}")).ok(),
        }
    }

    /// The key of a file of the copy; `None` for every other path.
    fn key(&self, path: &Path) -> Option<Key> {
        let relative = path.strip_prefix(&self.root).ok()?;
        let first = relative.components().next()?.as_os_str().to_str()?;
        self.key_of(relative.to_str().filter(|_| FOLDERS.contains(&first))?)
    }

    fn needs_key(&self, path: &Path) -> io::Result<Key> {
        let none = || {
            io::Error::new(
                ErrorKind::InvalidFilename,
                "this name cannot be kept in an object store",
            )
        };
        self.key(path).ok_or_else(none)
    }

    /// Writes a file here and in the bucket; `false` where there is one that is to be kept.
    ///
    /// # Errors
    /// It cannot be written in one of them.
    pub fn write(&self, path: &Path, bytes: &[u8], existing: Existing) -> io::Result<bool> {
        let key = self.needs_key(path)?;
        let mode = match existing {
            Existing::Keep => PutMode::Create,
            Existing::Replace => PutMode::Overwrite,
        };
        let payload = PutPayload::from(bytes.to_vec());
        let put = self.objects.put_opts(&key, payload, mode.into());
        match self.runtime.block_on(put) {
            Ok(put) => {
                write(path, bytes, Existing::Replace)?;
                self.know(path, put.e_tag);
                self.forget_lists();
                Ok(true)
            }
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(unreached(&error)),
        }
    }

    /// Puts a file that is here into the bucket.
    ///
    /// # Errors
    /// It cannot be read here or written there.
    pub fn send(&self, path: &Path) -> io::Result<()> {
        let key = self.needs_key(path)?;
        let file = fs::File::open(path)?;
        let mut part = Vec::new();
        (&file).take(PART as u64).read_to_end(&mut part)?;
        let tag = if part.len() < PART {
            let put =
                self.objects.put_opts(&key, PutPayload::from(part), PutMode::Overwrite.into());
            self.runtime.block_on(put).map_err(|error| unreached(&error))?.e_tag
        } else {
            self.runtime.block_on(self.send_parts(&key, part, file))?
        };
        self.know(path, tag);
        self.forget_lists();
        Ok(())
    }

    async fn send_parts(
        &self,
        key: &Key,
        mut part: Vec<u8>,
        file: fs::File,
    ) -> io::Result<Option<String>> {
        let upload = self.objects.put_multipart_opts(key, Default::default()).await;
        let upload = upload.map_err(|error| unreached(&error))?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PART);
        while !part.is_empty() {
            writer.wait_for_capacity(PARTS).await.map_err(|error| unreached(&error))?;
            writer.put(part.into());
            part = Vec::new();
            (&file).take(PART as u64).read_to_end(&mut part)?;
        }
        Ok(writer.finish().await.map_err(|error| unreached(&error))?.e_tag)
    }

    /// Deletes a file here and there.
    ///
    /// # Errors
    /// As of `std::fs::remove_file`, or it cannot be deleted there.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.bring(path)?;
        let key = self.needs_key(path)?;
        fs::remove_file(path)?;
        self.know(path, None);
        self.forget_lists();
        match self.runtime.block_on(self.objects.delete(&key)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(unreached(&error)),
        }
    }

    /// Gives a file another name; there is no file of that name, or it makes room.
    ///
    /// # Errors
    /// As of `std::fs::rename`, or it cannot be done there.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.bring(from)?;
        self.write(to, &fs::read(from)?, Existing::Replace)?;
        self.remove(from)
    }

    /// Brings everything in a folder of the copy, and in those below it; what is not there any more goes.
    ///
    /// # Errors
    /// It cannot be listed, or a file cannot be brought.
    pub fn bring_all(&self, folder: &Path) -> io::Result<()> {
        let there = self.list(folder)?;
        for path in &there {
            self.bring(path)?;
        }
        let there: HashSet<&PathBuf> = there.iter().collect();
        let is_gone = |path: &&PathBuf| path.starts_with(folder) && !there.contains(path);
        let gone: Vec<PathBuf> = self.tags().keys().filter(is_gone).cloned().collect();
        for path in gone {
            self.let_go(&path)?;
        }
        Ok(())
    }

    /// The files below a folder, by the paths of their copies.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        use futures_util::StreamExt;
        let prefix = self.needs_key(folder)?;
        let relative = |key: &Key| {
            let text = key.as_ref().strip_prefix(&self.prefix)?.trim_start_matches('/');
            // Keys may be anybody's; only those that are plain paths have files.
            let is_plain = text.split('/').all(|part| !matches!(part, "" | "." | ".."));
            (is_plain && !text.contains('\0')).then(|| self.root.join(text))
        };
        self.runtime.block_on(async {
            let mut all = self.objects.list(Some(&prefix));
            let mut paths = Vec::new();
            while let Some(object) = all.next().await {
                let object = object.map_err(|error| unreached(&error))?;
                paths.extend(relative(&object.location));
                if paths.len() >= MOST {
                    tracing::warn!("{}: only {MOST} files below {prefix} are shown", self.name);
                    break;
                }
            }
            Ok(paths)
        })
    }

    /// The files that lie in a folder there, not those in folders below; none where it cannot be listed.
    pub fn listed(&self, folder: &Path) -> Names {
        let lists = || self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, names)) = lists().get(folder)
            && when.elapsed() < LISTED
        {
            return names.clone();
        }
        let Some(prefix) = self.key(folder) else { return Vec::new() };
        let listed = match self.runtime.block_on(self.objects.list_with_delimiter(Some(&prefix))) {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!("{}: {}", self.name, sentence(&error));
                return Vec::new();
            }
        };
        let named = |object: &ObjectMeta| {
            Some((object.location.filename()?.to_owned(), object.last_modified.into()))
        };
        let names: Names = listed.objects.iter().filter_map(named).take(MOST).collect();
        lists().insert(folder.to_owned(), (Instant::now(), names.clone()));
        names
    }

    /// How many bytes a file has there.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        let key = self.needs_key(path)?;
        match self.runtime.block_on(self.objects.head(&key)) {
            Ok(object) => Ok(Some(object.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(unreached(&error)),
        }
    }

    /// A file of the copy is not there any more.
    fn let_go(&self, path: &Path) -> io::Result<()> {
        self.know(path, None);
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn forget_lists(&self) {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn fetch(&self, path: &Path, got: object_store::GetResult) -> io::Result<()> {
        use futures_util::StreamExt;
        let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
        fs::create_dir_all(folder)?;
        let fresh = folder.join(format!(".{}.tmp", uuid::Uuid::new_v4().simple()));
        let mut stream = got.into_stream();
        let fetched = async {
            let mut file = fs::File::create_new(&fresh)?;
            while let Some(bytes) = stream.next().await {
                file.write_all(&bytes.map_err(|error| unreached(&error))?)?;
            }
            fs::rename(&fresh, path)
        };
        let fetched = fetched.await;
        if fetched.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        fetched
    }
}

impl Elsewhere for Bucket {
    fn bring(&self, path: &Path) -> io::Result<()> {
        let Some(key) = self.key(path) else { return Ok(()) };
        let known = self.tags().get(path).cloned().filter(|_| path.is_file());
        let options = GetOptions { if_none_match: known, ..GetOptions::default() };
        self.runtime.block_on(async {
            match self.objects.get_opts(&key, options).await {
                Ok(got) => {
                    let tag = got.meta.e_tag.clone();
                    self.fetch(path, got).await?;
                    self.know(path, tag);
                    Ok(())
                }
                Err(Error::NotModified { .. }) => Ok(()),
                // What is here and was never there is about to be sent.
                Err(Error::NotFound { .. }) if !self.tags().contains_key(path) => Ok(()),
                Err(Error::NotFound { .. }) => self.let_go(path),
                Err(error) => Err(unreached(&error)),
            }
        })
    }

    fn names(&self, folder: &Path) -> Vec<String> {
        self.listed(folder).into_iter().map(|(name, _)| name).collect()
    }
}

/// An error and what it came of.
fn sentence(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    without_markup(&text)
}

/// What a store answers is XML, of which a person wants the message.
fn without_markup(text: &str) -> String {
    let part = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0)
    };
    match (text.find("<?xml").or(text.find("<Error>")), part("Message")) {
        (Some(at), Some(message)) => {
            let before = text[..at].trim_end().trim_end_matches(':');
            format!("{before}: {message}")
        }
        _ => text.to_owned(),
    }
}

/// The object store did not do what it was asked to.
fn unreached(error: &Error) -> io::Error {
    let kind = match error {
        Error::NotFound { .. } => ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            ErrorKind::PermissionDenied
        }
        _ => ErrorKind::HostUnreachable,
    };
    io::Error::new(kind, format!("the object store: {}", sentence(error)))
}
