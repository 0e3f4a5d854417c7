//! What a library says of itself, asked in a process of its own.
//!
//! Loading a library runs its constructors, and reading its descriptor reads whatever it points to: a
//! stranger's code, before any node is run. So a child does it, `kosmograph describe PATH`, and a
//! library that crashes, exits, hangs or says too much there costs itself alone. The answer is kept
//! under the file's identity, so that it is asked once.

use super::Asked;
use crate::folders::Folders;
use crate::plugin::Library;
use crate::process;
use crate::python::PythonPack;
use crate::sandbox::Sandbox;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// A library that has not described itself after this time hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read, in bytes: a thousand times what our largest library says.
const LONGEST: u64 = 32 << 20;

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Descriptor(Json),
    /// A sentence that names the file.
    Refused(String),
}

/// A pack of nodes in Python may have to import torch first, from a slow disk.
const PATIENCE_WITH_PYTHON: Duration = Duration::from_secs(120);

/// The child's part for a pack: becomes the Python that describes it.
pub fn answer_of_pack(pack: &str, confined: bool) -> ! {
    process::end_with_parent();
    process::bound_memory(None);
    let failed = |sentence: String| -> ! {
        let answer = serde_json::to_vec(&Answer::Refused(sentence)).unwrap_or_default();
        let written = std::io::stdout().write_all(&answer);
        process::end_at_once(i32::from(written.is_err()))
    };
    let pack: PythonPack = match serde_json::from_str(pack) {
        Ok(pack) => pack,
        Err(error) => failed(format!("what is said of the pack is wrong: {error}")),
    };
    let shown = pack.path.display();
    if confined {
        let sandbox = Sandbox::of(&Folders::default(), &[]).with_packs([&pack]);
        if let Err(error) = sandbox.enter() {
            failed(format!("{shown}: the process that asks it cannot be confined: {error}"));
        }
    }
    let error = pack.describe_here();
    failed(format!("{shown}: {} cannot be started: {error}", pack.program.display()))
}

/// The descriptor of a pack, from the store or from its Python. A list of files that stands in it is asked for each time.
///
/// # Errors
/// A sentence that names the pack.
pub(super) fn describe_pack(
    pack: &PythonPack,
    store: Option<&Store>,
    asked: Asked,
) -> Result<Json, String> {
    let shown = pack.path.display();
    let told = serde_json::to_string(pack).map_err(|error| format!("{shown}: {error}"))?;
    // What is installed decides what can be imported.
    let installed = pack.reads.iter().map(|folder| identity(folder).unwrap_or_default());
    let identity = format!(
        "{} {told} {} {}",
        env!("CARGO_PKG_VERSION"),
        pack.bridge(),
        installed.collect::<Vec<_>>().join(" ")
    );
    if let Some(kept) = store.and_then(|store| store.get(&pack.path, &identity)) {
        return Ok(kept);
    }
    let program = std::env::current_exe()
        .map_err(|error| format!("{shown}: the program's own file: {error}"))?;
    let mut command = Command::new(program);
    command.arg("describe").arg(&pack.path).arg("--python").arg(&told);
    if asked == Asked::Confined {
        process::keep_secrets(&mut command);
        command.arg("--confined");
    }
    let descriptor = ask(command, &pack.path, PATIENCE_WITH_PYTHON)?;
    if let Some(store) = store.filter(|_| descriptor["lists"] == false) {
        store.put(&pack.path, &identity, &descriptor);
    }
    Ok(descriptor)
}

/// The child's part: loads the library and writes the answer to standard output.
pub fn answer(path: &Path, confined: bool) -> ! {
    process::end_with_parent();
    process::bound_memory(None);
    let Ok(mut out) = process::take_stdout() else { process::end_at_once(1) };
    let entered = match confined {
        true => Sandbox::of(&Folders::default(), &[path.to_owned()]).enter(),
        false => Ok(()),
    };
    let answer = match entered {
        Err(error) => {
            let shown = path.display();
            Answer::Refused(format!(
                "{shown}: the process that asks it cannot be confined: {error}"
            ))
        }
        Ok(()) => match Library::load(path) {
            Ok(library) => Answer::Descriptor(library.descriptor),
            Err(error) => Answer::Refused(error.to_string()),
        },
    };
    let written = serde_json::to_vec(&answer).is_ok_and(|json| out.write_all(&json).is_ok());
    // What the library registered for the end of the process is its worker's business, not ours.
    process::end_at_once(i32::from(!written))
}

/// The descriptor of the library at `path`, from the store or from a child.
///
/// # Errors
/// A sentence that names the file.
pub(super) fn describe(path: &Path, store: Option<&Store>, asked: Asked) -> Result<Json, String> {
    let identity = identity(path);
    if let Some(kept) = store.zip(identity.as_deref()).and_then(|(store, id)| store.get(path, id)) {
        return Ok(kept);
    }
    let program = std::env::current_exe()
        .map_err(|error| format!("{}: the program's own file: {error}", path.display()))?;
    let mut command = Command::new(program);
    command.arg("describe").arg(path);
    if asked == Asked::Confined {
        process::keep_secrets(&mut command);
        command.arg("--confined");
    }
    let descriptor = ask(command, path, PATIENCE)?;
    if let Some((store, identity)) = store.zip(identity.as_deref()) {
        store.put(path, identity, &descriptor);
    }
    Ok(descriptor)
}

/// Starts `command` and reads its answer about the library at `path`.
fn ask(mut command: Command, path: &Path, patience: Duration) -> Result<Json, String> {
    let shown = path.display();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let cannot = |error| format!("{shown}: the process that asks it cannot be started: {error}");
    let mut child = command.spawn().map_err(cannot)?;
    let (sender, answer) = channel();
    let stdout = child.stdout.take();
    let reader = std::thread::Builder::new().name("answer".into()).spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.map(|stdout| stdout.take(LONGEST + 1).read_to_end(&mut bytes));
        let _ = sender.send(matches!(read, Some(Ok(_))).then_some(bytes));
    });
    if let Err(error) = reader {
        let _ = child.kill().and_then(|()| child.wait());
        return Err(format!(
            "{shown}: what it says of itself cannot be heard, as no thread can be started: {error}"
        ));
    }
    let bytes = match answer.recv_timeout(patience) {
        Ok(bytes) => bytes.unwrap_or_default(),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let _ = child.kill().and_then(|()| child.wait());
            let seconds = patience.as_secs_f32();
            return Err(format!("{shown}: it had not described itself after {seconds} s"));
        }
    };
    if bytes.len() as u64 > LONGEST {
        let _ = child.kill().and_then(|()| child.wait());
        let most = LONGEST >> 20;
        return Err(format!("{shown}: what it says of itself has more than {most} MiB"));
    }
    let status = child.wait().map_err(|error| format!("{shown}: {error}"))?;
    match serde_json::from_slice(&bytes) {
        Ok(Answer::Descriptor(json)) if status.success() => Ok(json),
        Ok(Answer::Refused(sentence)) if status.success() => Err(sentence),
        _ => Err(format!(
            "{shown}: asked what it offers, it ended its process with {}",
            process::ending(status)
        )),
    }
}

/// What tells one state of a library's file from another, and the program that asked it.
fn identity(path: &Path) -> Option<String> {
    let file = path.canonicalize().ok()?;
    let metadata = fs::metadata(&file).ok()?;
    Some(format!(
        "{} {} {} {} {}.{:09} {}.{:09} {}",
        env!("CARGO_PKG_VERSION"),
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
        file.display()
    ))
}

/// The folder where answers are kept, one file for each library's path.
pub(super) struct Store(PathBuf);

#[derive(Serialize, Deserialize)]
struct Kept {
    identity: String,
    descriptor: Json,
}

impl Store {
    /// In the user's folder for what can be made again, `$XDG_CACHE_HOME` or `~/.cache`. `None` where
    /// there is no such user: then each start asks.
    pub fn of_user() -> Option<Self> {
        let absolute = |name| {
            let path = PathBuf::from(std::env::var_os(name)?);
            path.is_absolute().then_some(path)
        };
        let caches =
            absolute("XDG_CACHE_HOME").or(absolute("HOME").map(|home| home.join(".cache")));
        Some(Self(caches?.join("kosmograph/libraries")))
    }

    fn file(&self, path: &Path) -> PathBuf {
        let hash = blake3::hash(path.as_os_str().as_encoded_bytes());
        self.0.join(format!("{}.json", &hash.to_hex()[..32]))
    }

    fn get(&self, path: &Path, identity: &str) -> Option<Json> {
        let kept: Kept = serde_json::from_slice(&fs::read(self.file(path)).ok()?).ok()?;
        (kept.identity == identity).then_some(kept.descriptor)
    }

    /// A folder that cannot be written costs time at the next start and no more.
    fn put(&self, path: &Path, identity: &str, descriptor: &Json) {
        let kept = Kept { identity: identity.to_owned(), descriptor: descriptor.clone() };
        let put = || -> std::io::Result<()> {
            fs::create_dir_all(&self.0)?;
            let file = self.file(path);
            // Two programs may be at it; whoever reads finds one answer or the other, whole.
            let new = file.with_extension(format!("{}.new", std::process::id()));
            let written = fs::write(&new, serde_json::to_vec(&kept)?);
            written.and_then(|()| fs::rename(&new, &file)).inspect_err(|_| {
                let _ = fs::remove_file(&new);
            })
        };
        if let Err(error) = put() {
            tracing::debug!("{}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A child played by a shell.
    fn child(script: &str, patience: Duration) -> Result<Json, String> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        ask(command, Path::new("x.so"), patience)
    }

    #[test]
    fn every_end_is_a_sentence() {
        let answer = r#"printf '{"descriptor":{"name":"a"}}'"#;
        assert_eq!(child(answer, PATIENCE), Ok(json!({"name": "a"})));
        let refused = child(r#"printf '{"refused":"x.so: no"}'"#, PATIENCE);
        assert_eq!(refused, Err("x.so: no".to_owned()));
        for (script, ending) in [
            ("exit 0", "exit code 0"),
            ("exit 3", "exit code 3"),
            ("kill -SEGV $$", "SIGSEGV (segmentation fault)"),
            // Half an answer, or one that was followed by a crash, is none.
            (r#"printf '{"descriptor":'"#, "exit code 0"),
            (&format!("{answer}; kill -ABRT $$"), "SIGABRT (abort)"),
        ] {
            let sentence = child(script, PATIENCE).unwrap_err();
            assert!(sentence.starts_with("x.so: ") && sentence.ends_with(ending), "{sentence}");
        }
        let hangs = child("exec sleep 100", Duration::from_millis(200)).unwrap_err();
        assert!(hangs.contains("had not described itself after 0.2 s"), "{hangs}");
        let endless = child("exec cat /dev/zero", PATIENCE).unwrap_err();
        assert!(endless.contains("more than 32 MiB"), "{endless}");
    }

    #[test]
    fn an_answer_is_kept_for_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (store, library) = (Store(folder.path().join("store")), folder.path().join("libx.so"));
        fs::write(&library, "1").unwrap();
        let before = identity(&library).unwrap();
        assert_eq!(store.get(&library, &before), None);
        store.put(&library, &before, &json!({"name": "x"}));
        assert_eq!(store.get(&library, &before), Some(json!({"name": "x"})));
        fs::write(&library, "two").unwrap();
        let after = identity(&library).unwrap();
        assert_ne!(before, after);
        assert_eq!(store.get(&library, &after), None);
        fs::write(store.file(&library), "{\"identity").unwrap();
        assert_eq!(store.get(&library, &before), None);
    }
}
