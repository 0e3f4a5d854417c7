//! What a job writes, where folders are copies of a bucket: into a folder of its own, and into the bucket before
//! anybody is told.
//!
//! Nodes choose the next free number of the folder they write into, and here each machine has another folder. So that
//! no two jobs choose one name, each try of a job has its own: `output/JOB-TOKEN/ComfyUI_00001_.png`.

use crate::app::App;
use crate::queue::Running;
use serde_json::Value as Json;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long an object store that is away is waited for, and between two tries.
const AWAY: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_secs(1);

/// The folder of one try of a job, below output and temp.
pub fn folder(app: &App, job: &Running) -> Option<String> {
    app.bucket.as_ref()?;
    // Another worker may be at the same job, which it has lost and does not know yet.
    let token: String = job.claim.token.chars().take(8).collect();
    Some(if token.is_empty() { job.id.clone() } else { format!("{}-{token}", job.id) })
}

/// Puts the files that a node told of into the bucket, and has `output` name them by the job's own folder.
///
/// # Errors
/// A sentence about the first that cannot be put there.
pub fn send(app: &App, job: &Running, files: &[PathBuf], output: &mut Json) -> Result<(), String> {
    let (Some(bucket), Some(folder)) = (&app.bucket, folder(app, job)) else { return Ok(()) };
    for path in files {
        gather(app, path, &folder).map_err(|error| format!("{}: {error}", path.display()))?;
        let since = Instant::now();
        while let Err(error) = bucket.send(path) {
            let is_hopeless = error.kind() != ErrorKind::HostUnreachable
                || since.elapsed() >= AWAY
                || app.is_stopping()
                || job.cancel.load(Ordering::SeqCst);
            if is_hopeless {
                let name = path.file_name().unwrap_or_default().display();
                return Err(format!("{name} cannot be kept: {error}"));
            }
            tracing::warn!(job = job.id, "{error}; it is tried again");
            std::thread::sleep(PAUSE);
        }
    }
    name(output, &folder);
    Ok(())
}

/// A node that does not ask where files go (one written in Python that knows the folder from its start) has put its
/// file beside the job's folder.
fn gather(app: &App, path: &Path, folder: &str) -> io::Result<()> {
    let folders = &app.surroundings.folders;
    if path.exists() {
        return Ok(());
    }
    for root in [&folders.output, &folders.temp] {
        if let Ok(relative) = path.strip_prefix(root.join(folder))
            && root.join(relative).is_file()
        {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            return fs::rename(root.join(relative), path);
        }
    }
    Ok(())
}

/// `{"images": [{"filename", "subfolder", "type"}]}`, with the folder before each `subfolder`.
pub fn name(output: &mut Json, folder: &str) {
    let lists = output.as_object_mut().into_iter().flat_map(|object| object.values_mut());
    for item in lists.filter_map(Json::as_array_mut).flatten() {
        let is_file = item["filename"].is_string();
        let is_ours = is_file && matches!(item["type"].as_str(), None | Some("output" | "temp"));
        if is_ours {
            let below = item["subfolder"].as_str().unwrap_or_default();
            let named =
                if below.is_empty() { folder.to_owned() } else { format!("{folder}/{below}") };
            item["subfolder"] = named.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_are_named_by_the_jobs_folder() {
        let item = |subfolder: &str, kind: &str| json!({"filename": "a.png", "subfolder": subfolder, "type": kind});
        let mut output = json!({"images": [item("", "output"), item("s", "temp"), item("", "input"), 3, {"a": 1}],
            "text": ["a"], "animated": [true]});
        name(&mut output, "job-1");
        let expected = json!({"images": [item("job-1", "output"), item("job-1/s", "temp"), item("", "input"), 3, {"a": 1}],
            "text": ["a"], "animated": [true]});
        assert_eq!(output, expected);
    }
}
