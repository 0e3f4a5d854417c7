//! Files by the names that requests give them: none leaves its folder.

use crate::app::App;
use crate::fault::Fault;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;
use tower::ServiceExt;
use tower_http::services::ServeFile;

/// `name` as a path that stays where it begins; `None` for one that does not, or names nothing.
pub fn inside(name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    let stays = path.components().all(|part| matches!(part, Component::Normal(_)));
    (!name.is_empty() && !name.contains('\0') && stays).then(|| path.to_owned())
}

/// The folders that requests may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    Input,
    Output,
    Temp,
}

impl Root {
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "input" => Some(Self::Input),
            "output" => Some(Self::Output),
            "temp" => Some(Self::Temp),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Temp => "temp",
        }
    }

    /// Where its files are; the first is where new ones are put.
    pub fn folders(self, app: &App) -> &[PathBuf] {
        let folders = &app.surroundings.folders;
        match self {
            Self::Input => &folders.input,
            Self::Output => std::slice::from_ref(&folders.output),
            Self::Temp => std::slice::from_ref(&folders.temp),
        }
    }

    /// The file there, if there is one. Nodes write into the output folders: a link that one of them put
    /// there leads nowhere. One among the inputs is the owner's own.
    ///
    /// # Errors
    /// The folders are copies, and what they are copies of cannot be asked.
    pub fn find(self, app: &App, relative: &Path) -> Result<Option<PathBuf>, Fault> {
        for folder in self.folders(app) {
            let path = folder.join(relative);
            app.bring(&path).map_err(|error| io_fault(&relative.display().to_string(), &error))?;
            let is_inside = || -> Option<bool> {
                Some(path.canonicalize().ok()?.starts_with(folder.canonicalize().ok()?))
            };
            if path.is_file() && (self == Self::Input || is_inside() == Some(true)) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Whether a new file at `relative` would lie elsewhere, by a link on the way; see [`Self::find`].
    pub fn leads_out(self, folder: &Path, relative: &Path) -> bool {
        let path = folder.join(relative);
        let is_there = |path: &&Path| path.symlink_metadata().is_ok();
        let nearest = path.parent().and_then(|parent| parent.ancestors().find(is_there));
        let is_inside = || -> Option<bool> {
            let nearest = nearest?;
            // The folder itself may not be there yet.
            Some(nearest.canonicalize().ok()?.starts_with(folder.canonicalize().ok()?))
        };
        self != Self::Input && folder.is_dir() && is_inside() != Some(true)
    }

    /// How many bytes a file has, which need not be brought for that.
    pub fn size(self, app: &App, relative: &Path) -> Option<u64> {
        match (&app.bucket, self.folders(app).first()) {
            (Some(bucket), Some(folder)) => bucket.size(&folder.join(relative)).ok()?,
            _ => Some(self.find(app, relative).ok()??.metadata().ok()?.len()),
        }
    }

    /// The names of the files that lie in it, and when each was written.
    pub fn list(self, app: &App) -> Vec<(Option<SystemTime>, String)> {
        let mut files = Vec::new();
        for folder in self.folders(app) {
            if let Some(bucket) = &app.bucket {
                files.extend(bucket.listed(folder).into_iter().map(|(n, when)| (Some(when), n)));
                continue;
            }
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(metadata) = fs::metadata(entry.path()) else { continue };
                let Ok(name) = entry.file_name().into_string() else { continue };
                if metadata.is_file() && !name.starts_with('.') {
                    files.push((metadata.modified().ok(), name));
                }
            }
        }
        files
    }
}

/// A name without the ` [output]` that says where it is, and what that says.
pub fn annotated(name: &str) -> (&str, Option<Root>) {
    let split = name.strip_suffix(']').and_then(|name| name.rsplit_once(" ["));
    match split.and_then(|(plain, root)| Some((plain, Root::of_name(root)?))) {
        Some((plain, root)) => (plain, Some(root)),
        None => (name, None),
    }
}

/// What a file is, by its extension. What may act in a page when it is opened is only ever handed out as
/// a file to keep, unless it belongs to a frontend.
pub fn media_type(path: &Path) -> &'static str {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "gif" => "image/gif",
        "bmp" => "image/bmp",
        "avif" => "image/avif",
        "tif" | "tiff" => "image/tiff",
        "svg" => "image/svg+xml",
        "ico" => "image/x-icon",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "flac" => "audio/flac",
        "ogg" => "audio/ogg",
        "txt" | "md" | "csv" => "text/plain; charset=utf-8",
        "json" | "map" => "application/json",
        "html" | "htm" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "xml" => "application/xml",
        "wasm" => "application/wasm",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "webmanifest" => "application/manifest+json",
        _ => "application/octet-stream",
    }
}

/// Whether a browser would run what is in a file of this type, or take it for a page.
fn is_active(media_type: &str) -> bool {
    let plain = media_type.split(';').next().unwrap_or_default();
    matches!(
        plain,
        "text/html" | "text/javascript" | "text/css" | "application/xml" | "message/rfc822"
    ) || plain.ends_with("+xml")
}

/// A file as an answer: whole or in part, or that it is the one the client has.
pub async fn serve(path: &Path, headers: &HeaderMap, media_type: &str) -> Response {
    let Ok(metadata) = tokio::fs::metadata(path).await else {
        return Fault::not_found("there is no such file").into_response();
    };
    let tag =
        format!("\"{:x}-{:x}-{:x}\"", metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    let is_same = |value: &HeaderValue| {
        let tags = value.to_str().unwrap_or_default().split(',');
        tags.map(|tag| tag.trim().trim_start_matches("W/")).any(|one| one == tag || one == "*")
    };
    let tag_value = HeaderValue::from_str(&tag).ok();
    if headers.get(header::IF_NONE_MATCH).is_some_and(is_same) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        tag_value.map(|tag| response.headers_mut().insert(header::ETAG, tag));
        return response;
    }
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::GET;
    for name in [header::RANGE, header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE] {
        // Whoever knows the tag has asked by the tag.
        let by_tag = name != header::RANGE && headers.contains_key(header::IF_NONE_MATCH);
        if let Some(value) = headers.get(&name).filter(|_| !by_tag) {
            request.headers_mut().insert(name, value.clone());
        }
    }
    let served = match ServeFile::new(path).oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    };
    let mut response = served.into_response();
    let kind = HeaderValue::from_str(media_type);
    if let Ok(kind) = kind.map_err(|error| tracing::warn!("{media_type}: {error}")) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    tag_value.map(|tag| response.headers_mut().insert(header::ETAG, tag));
    response
}

/// As [`serve`], of a file that anybody may have put there: nothing in it acts.
pub async fn serve_passive(path: &Path, name: &str, headers: &HeaderMap) -> Response {
    let media = media_type(path);
    let wanted_for = headers.get("sec-fetch-dest").and_then(|value| value.to_str().ok());
    let is_shown = media == "image/svg+xml" && wanted_for == Some("image");
    let is_kept = is_active(media) && !is_shown;
    let media = if is_kept { "application/octet-stream" } else { media };
    let mut response = serve(path, headers, media).await;
    let plain = name.replace(['"', '=', '\\'], "_");
    let plain: String = plain.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    let way = if is_kept { "attachment; " } else { "" };
    let answer = response.headers_mut();
    if let Ok(value) = HeaderValue::from_bytes(format!("{way}filename=\"{plain}\"").as_bytes()) {
        answer.insert(header::CONTENT_DISPOSITION, value);
    }
    if is_active(media_type(path)) {
        answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer.insert(header::VARY, HeaderValue::from_static("Sec-Fetch-Dest"));
    }
    response
}

/// Whether a file may be put where another one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Replace,
    Keep,
}

/// Writes a file whole or not at all; `false` where there is one that is to be kept.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, bytes: &[u8], existing: Existing) -> io::Result<bool> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let fresh = folder.join(format!(".{}.tmp", uuid::Uuid::new_v4().simple()));
    let put = || -> io::Result<bool> {
        let mut file = fs::File::create_new(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        if existing == Existing::Replace {
            fs::rename(&fresh, path)?;
            return Ok(true);
        }
        // A second name for the file is given only where there is none of that name.
        match fs::hard_link(&fresh, path) {
            Ok(()) => {
                let _ = fs::remove_file(&fresh);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            // File systems without links.
            Err(_) if path.exists() => Ok(false),
            Err(_) => fs::rename(&fresh, path).map(|()| true),
        }
    };
    let result = put();
    if !matches!(result, Ok(true)) {
        let _ = fs::remove_file(&fresh);
    }
    result
}

/// A file that cannot be written or read, as an answer.
pub fn io_fault(name: &str, error: &io::Error) -> Fault {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound, PermissionDenied};
    let status = match error.kind() {
        NotFound => StatusCode::NOT_FOUND,
        InvalidFilename | NotADirectory | io::ErrorKind::IsADirectory => StatusCode::BAD_REQUEST,
        PermissionDenied => StatusCode::FORBIDDEN,
        // The object store, which may be back in a moment.
        io::ErrorKind::HostUnreachable => StatusCode::SERVICE_UNAVAILABLE,
        _ if error.raw_os_error() == Some(nix::libc::ENAMETOOLONG) => StatusCode::BAD_REQUEST,
        FileTooLarge | QuotaExceeded | ReadOnlyFilesystem | StorageFull => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Fault::plain(status, format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_leave_their_folder() {
        for name in ["", "..", "../a", "a/../../b", "/etc/passwd", "./a", "a\0b"] {
            assert_eq!(inside(name), None, "{name:?}");
        }
        assert_eq!(inside("a/b.png"), Some(PathBuf::from("a/b.png")));
        assert_eq!(inside("..a"), Some(PathBuf::from("..a")));
        assert_eq!(annotated("a [b].png [temp]"), ("a [b].png", Some(Root::Temp)));
        assert_eq!(annotated("a [models]"), ("a [models]", None));
    }

    proptest! {
        #[test]
        fn no_name_leaves_its_folder(name in "[./a\\\\\0~ ]{0,12}") {
            if let Some(path) = inside(&name) {
                let normal = path.components().all(|part| matches!(part, Component::Normal(_)));
                prop_assert!(normal && path.is_relative());
            }
        }
    }

    #[test]
    fn links_lead_new_files_out_of_what_nodes_write() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (folder, link) = (root.path(), root.path().join("link"));
        std::os::unix::fs::symlink(other.path(), &link).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.join("broken")).unwrap();
        let leads = |name: &str| Root::Output.leads_out(folder, Path::new(name));
        assert!(leads("link/a.png") && leads("link/new/a.png") && leads("broken/a.png"));
        assert!(!leads("a.png") && !leads("new/a.png") && !leads("link"));
        assert!(!Root::Input.leads_out(folder, Path::new("link/a.png")), "the owner's own");
        assert!(!Root::Output.leads_out(&folder.join("not yet"), Path::new("a.png")));
    }

    #[test]
    fn failures_are_told_apart() {
        let status = |kind: io::ErrorKind| io_fault("a", &kind.into()).status.as_u16();
        assert_eq!(status(io::ErrorKind::StorageFull), 507);
        assert_eq!(status(io::ErrorKind::UnexpectedEof), 500);
    }

    #[test]
    fn files_are_written_whole_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/a.txt");
        assert!(write(&path, b"one", Existing::Keep).unwrap());
        assert!(!write(&path, b"two", Existing::Keep).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert!(write(&path, b"two", Existing::Replace).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::read_dir(folder.path().join("sub")).unwrap().count(),
            1,
            "nothing is left over"
        );
    }

    #[tokio::test]
    async fn what_acts_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let answer = async |name: &str, headers: &HeaderMap| {
            let path = folder.path().join(name);
            fs::write(&path, "<script>").unwrap();
            let response = serve_passive(&path, name, headers).await;
            let text = |name: &str| {
                let value =
                    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
                value.unwrap_or_default()
            };
            (text("content-type"), text("content-disposition"))
        };
        let none = HeaderMap::new();
        for name in ["a.html", "a.js", "a.css", "a.svg", "a.xml", "A.HTM"] {
            let (kind, disposition) = answer(name, &none).await;
            assert_eq!(kind, "application/octet-stream", "{name}");
            assert_eq!(disposition, format!("attachment; filename=\"{name}\""));
        }
        let (kind, disposition) = answer("a.png", &none).await;
        assert_eq!((kind.as_str(), disposition.as_str()), ("image/png", "filename=\"a.png\""));
        let mut image = HeaderMap::new();
        image.insert("sec-fetch-dest", HeaderValue::from_static("image"));
        assert_eq!(answer("b.svg", &image).await.0, "image/svg+xml");
        let (_, disposition) = answer("x=y\"z.png", &none).await;
        assert_eq!(disposition.matches(['=', '"']).count(), 3, "clients cut it at its only sign");
    }

    #[tokio::test]
    async fn parts_and_tags() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        fs::write(&path, "0123456789").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=2-4"));
        let part = serve(&path, &headers, "image/png").await;
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        let tag = part.headers()[header::ETAG].clone();
        let bytes = axum::body::to_bytes(part.into_body(), 100).await.unwrap();
        assert_eq!(&bytes[..], b"234");
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, tag);
        let same = serve(&path, &headers, "image/png").await;
        assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
    }
}
