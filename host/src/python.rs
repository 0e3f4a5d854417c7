//! Nodes written in Python: `--python-nodes DIR`.
//!
//! A pack is a folder with an `__init__.py`, or one file, that has `NODE_CLASS_MAPPINGS`, as ComfyUI loads it. It runs
//! unmodified in a process of the user's own Python, one process for each pack, which a worker starts when the first
//! of its nodes is due ([`process`]) and which a crash or a hang of the pack costs alone. To the rest of the host a pack is
//! a library: it has an entry in the catalogue, with its descriptor, which is asked for in a process of its own.
//!
//! The other side, in Python, lies in `nodes/python/bridge`; it travels in this program.

mod find;
mod hear;
mod process;
mod values;

pub use find::{Packs, PacksError};
pub use process::Pack;
pub use values::is_lost;

use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The other side, file by file.
const BRIDGE: [(&str, &str); 6] = [
    ("bridge", include_str!("../../nodes/python/bridge/bridge.py")),
    ("describe", include_str!("../../nodes/python/bridge/describe.py")),
    ("extras", include_str!("../../nodes/python/bridge/extras.py")),
    ("schema", include_str!("../../nodes/python/bridge/schema.py")),
    ("shim", include_str!("../../nodes/python/bridge/shim.py")),
    ("values", include_str!("../../nodes/python/bridge/values.py")),
];

/// What Python is told to do first: read the rest from standard input.
const START: &str = include_str!("../../nodes/python/bridge/start.py");

/// A pack, and the Python that runs it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PythonPack {
    /// The interpreter's own file.
    pub program: PathBuf,
    /// The folder with its `__init__.py`, or the file: absolute.
    pub path: PathBuf,
    /// The folder's or the file's name.
    pub name: String,
    /// A hash of its files.
    pub version: String,
    /// Where pictures and models are, for `folder_paths`, as JSON.
    pub folders: String,
    /// What the interpreter reads, wherever a pack lies: its own folders.
    pub reads: Vec<PathBuf>,
}

/// What a process of Python is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// It writes what the pack says of itself to standard output.
    Describe,
    /// Standard output is a socket, for calls.
    Run,
}

impl PythonPack {
    /// The command that starts Python; standard output and standard error are the caller's to set.
    ///
    /// # Errors
    /// There is no memory for what it is told.
    fn command(&self, mode: Mode) -> io::Result<Command> {
        let mode = match mode {
            Mode::Describe => "describe",
            Mode::Run => "run",
        };
        let folders: serde_json::Value = serde_json::from_str(&self.folders)?;
        let mut told = json!({"given": {"mode": mode, "pack": self.path, "name": self.name,
            "version": self.version, "folders": folders}});
        for (name, text) in BRIDGE {
            told[name] = text.into();
        }
        let mut command = Command::new(&self.program);
        // Unbuffered: what it prints before it crashes is told.
        command
            .args(["-u", "-X", "utf8", "-c", START])
            .stdin(Stdio::from(memory(told.to_string().as_bytes())?));
        Ok(command)
    }

    /// Tells this bridge from that of another build.
    pub fn bridge(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        BRIDGE.iter().for_each(|(_, text)| {
            hasher.update(text.as_bytes());
        });
        hasher.finalize().to_hex()[..16].to_owned()
    }

    /// Becomes the process that describes the pack. Returns only where it cannot.
    pub fn describe_here(&self) -> io::Error {
        use std::os::unix::process::CommandExt;
        match self.command(Mode::Describe) {
            Ok(mut command) => command.exec(),
            Err(error) => error,
        }
    }
}

/// A file in memory with these bytes, to be read from its beginning.
#[cfg(target_os = "linux")]
fn memory(bytes: &[u8]) -> io::Result<File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let mut file = File::from(memfd_create("kosmograph", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// Elsewhere there are no descriptors of memory.
#[cfg(not(target_os = "linux"))]
fn memory(_: &[u8]) -> io::Result<File> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "nodes in Python need Linux"))
}
