//! The folder of what is not whole yet, beside where it is going to be.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};

/// What such a folder says of how it is made; who makes it holds a lock on it.
const SAID: &str = "data.json";

/// A folder that nobody else writes to at this time.
pub(super) struct Unfinished {
    folder: PathBuf,
    _said: File,
}

impl Unfinished {
    /// Makes the folder, or finds it as this configuration left it.
    ///
    /// # Errors
    /// It is another configuration's, or somebody else's, or another process writes to it; it cannot be made.
    pub(super) fn begin(config: &Config) -> Result<Unfinished> {
        let refuse = |sentence: String| Err(Error::Config(sentence));
        let Some(name) = config.output.file_name() else {
            return refuse(format!(
                "\"output\" is {}, which has no name of its own; the path of a folder that is not there yet would be right",
                config.output.display()
            ));
        };
        let name = name.to_string_lossy();
        let folder = config.output.with_file_name(format!("{name}.unfinished"));
        let said = folder.join(SAID);
        let failed = |source| Error::Write { path: folder.clone(), source };
        let is_ours = match folder.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&folder).map_err(failed)?;
                true
            }
            Err(error) => return Err(failed(error)),
            Ok(found) => {
                let is_empty = || Ok(folder.read_dir()?.next().is_none());
                found.is_dir() && (said.is_file() || is_empty().map_err(failed)?)
            }
        };
        if !is_ours {
            return refuse(format!(
                "{} is there, and this command did not make it; moving it away, or another \"output\", would be right",
                folder.display()
            ));
        }
        let failed = |source| Error::Write { path: said.clone(), source };
        let mut opened = OpenOptions::new();
        opened.read(true).write(true).create(true).truncate(false);
        let mut file = opened.open(&said).map_err(failed)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return refuse(format!(
                "another process is making {} at this moment; waiting for it, or another \"output\", would be right",
                config.output.display()
            ));
        }
        // Whoever had the lock may have made it.
        config.output_is_free()?;
        let mut before = String::new();
        file.read_to_string(&mut before).map_err(failed)?;
        let mut text = serde_json::json!({
            "pictures": config.pictures, "caption": config.caption, "seed": config.seed, "data": config.data,
        })
        .to_string();
        text.push('\n');
        if !text.starts_with(&before) {
            return refuse(format!(
                "{} is of another configuration; removing it, or another \"output\", would be right",
                folder.display()
            ));
        }
        // Nothing, or what somebody was killed at.
        if before != text {
            let written = file.rewind().and_then(|()| file.write_all(text.as_bytes()));
            written.map_err(failed)?;
        }
        Ok(Unfinished { folder, _said: file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder
    }

    /// Gives it its name.
    pub(super) fn finish(self, config: &Config) -> Result<()> {
        let failed = |source| Error::Write { path: config.output.clone(), source };
        std::fs::rename(&self.folder, &config.output).map_err(failed)
    }

    /// Removes it, if nothing else was written.
    pub(super) fn remove_empty(self) {
        let _ = std::fs::remove_file(self.folder.join(SAID));
        let _ = std::fs::remove_dir(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_process_s_and_goes_on_from_half_a_description() {
        let folder = tempfile::tempdir().unwrap();
        let text =
            r#"{"task": "data", "pictures": "in", "output": "out", "data": {"subjects": ["dog"]}}"#;
        let config = Config::read(text, folder.path()).unwrap();
        let first = Unfinished::begin(&config).unwrap();
        let told = Unfinished::begin(&config).err().unwrap().to_string();
        assert!(told.contains("another process is making"), "{told}");
        let said = first.path().join(SAID);
        drop(first);
        // Somebody was killed while this was written.
        let whole = std::fs::read_to_string(&said).unwrap();
        std::fs::write(&said, &whole[..whole.len() / 2]).unwrap();
        std::fs::write(folder.path().join("out.unfinished/a-0.png"), "a document").unwrap();
        Unfinished::begin(&config).unwrap().remove_empty();
        assert!(folder.path().join("out.unfinished/a-0.png").is_file());
        // Without it nobody knows whose the rest is.
        let told = Unfinished::begin(&config).err().unwrap().to_string();
        assert!(told.contains("did not make it"), "{told}");
        let other = Config::read(&text.replace("\"out\"", "\"..\""), folder.path()).unwrap();
        assert!(Unfinished::begin(&other).is_err());
    }
}
