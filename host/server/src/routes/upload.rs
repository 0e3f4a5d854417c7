//! Uploads: a picture, or a mask for one.

use super::files::{Existing, Root, inside, io_fault};
use super::{Shared, blocking, picture, too_large};
use crate::app::App;
use crate::fault::Fault;
use axum::Json as JsonBody;
use axum::body::Bytes;
use axum::extract::multipart::MultipartRejection;
use axum::extract::{Multipart, State};
use axum::http::StatusCode;
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// How many other names are tried before an upload is refused.
const MOST_NAMES: u32 = 10_000;

/// A form as it was sent.
#[derive(Default)]
struct Form {
    file: Option<(String, Bytes)>,
    texts: HashMap<String, String>,
}

impl Form {
    async fn read(
        app: &App,
        multipart: Result<Multipart, MultipartRejection>,
    ) -> Result<Self, Fault> {
        let mut multipart = multipart.map_err(|error| Fault::bad(error.body_text()))?;
        let mut form = Self::default();
        let fault = |error: axum::extract::multipart::MultipartError| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Fault::plain(error.status(), too_large(app.options.upload_limit))
            }
            status => Fault::plain(status, error.body_text()),
        };
        while let Some(field) = multipart.next_field().await.map_err(fault)? {
            let name = field.name().unwrap_or_default().to_owned();
            if name == "image" {
                let file = field.file_name().unwrap_or_default().to_owned();
                form.file = Some((file, field.bytes().await.map_err(fault)?));
            } else if form.texts.len() < 64 {
                form.texts.insert(name, field.text().await.map_err(fault)?);
            }
        }
        Ok(form)
    }

    fn text(&self, name: &str) -> &str {
        self.texts.get(name).map_or("", String::as_str)
    }

    /// The file's own name, as a browser or a client gives it.
    fn name(&self) -> Result<PathBuf, Fault> {
        let Some((name, _)) = &self.file else {
            return Err(Fault::bad("no file \"image\" was sent"));
        };
        let name = inside(name).filter(|name| name.file_name().is_some_and(|own| own != "."));
        name.ok_or_else(|| Fault::bad("the file sent as \"image\" has no name that can be used"))
    }

    fn root(&self) -> Result<Root, Fault> {
        match self.text("type") {
            "" => Ok(Root::Input),
            name => Root::of_name(name)
                .ok_or_else(|| Fault::bad(format!("\"{name}\" is no folder of the server"))),
        }
    }

    fn subfolder(&self) -> Result<PathBuf, Fault> {
        match self.text("subfolder").trim_end_matches('/') {
            "" => Ok(PathBuf::new()),
            name => inside(name).ok_or_else(|| Fault::bad(format!("\"{name}\" leaves its folder"))),
        }
    }

    /// Puts `bytes` where the form says, under a name that is free.
    fn put(&self, app: &App, bytes: &[u8]) -> Result<JsonBody<Json>, Fault> {
        let (name, root) = (self.name()?, self.root()?);
        let subfolder = self.subfolder()?;
        let Some(folder) = root.folders(app).first() else {
            return Err(Fault::bad("the server has no folder of this kind"));
        };
        if root.leads_out(folder, &subfolder.join(&name)) {
            let shown = subfolder.join(&name);
            let shown = shown.parent().unwrap_or(&shown).display();
            return Err(Fault::forbidden(format!(
                "{shown} is reached by a link that leads out of the {} folder; nothing is written \
                 through one",
                root.name()
            )));
        }
        let folder = folder.join(&subfolder);
        let replace = matches!(self.text("overwrite"), "true" | "1");
        let (name, _) = place(app, &folder, &name, bytes, replace)?;
        let subfolder = subfolder.display().to_string();
        Ok(JsonBody(json!({"name": name, "subfolder": subfolder, "type": root.name()})))
    }
}

/// Writes a file under `name`, or the next name that is free; one of the same bytes is that one. Returns its
/// name, and whether it was written.
pub fn place(
    app: &App,
    folder: &Path,
    name: &Path,
    bytes: &[u8],
    replace: bool,
) -> Result<(String, bool), Fault> {
    let bring = |path: &Path| app.bring(path);
    let write = |path: &Path, bytes: &[u8], existing| app.write(path, bytes, existing);
    place_by(bring, write, folder, name, bytes, replace)
}

fn place_by(
    bring: impl Fn(&Path) -> std::io::Result<()>,
    write: impl Fn(&Path, &[u8], Existing) -> std::io::Result<bool>,
    folder: &Path,
    name: &Path,
    bytes: &[u8],
    replace: bool,
) -> Result<(String, bool), Fault> {
    let text =
        |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let stem = text(name.file_stem()).unwrap_or_default();
    let extension =
        text(name.extension()).map_or(String::new(), |extension| format!(".{extension}"));
    for number in 0..MOST_NAMES {
        let own = match number {
            0 => format!("{stem}{extension}"),
            number => format!("{stem} ({number}){extension}"),
        };
        let path = folder.join(name.with_file_name(&own));
        let shown = name.with_file_name(&own).display().to_string();
        let existing = if replace { Existing::Replace } else { Existing::Keep };
        if !replace {
            bring(&path).map_err(|error| io_fault(&shown, &error))?;
            if is_same(&path, bytes) {
                return Ok((shown, false));
            }
        }
        match write(&path, bytes, existing) {
            Ok(true) => return Ok((shown, true)),
            Ok(false) => (),
            Err(error) => return Err(io_fault(&shown, &error)),
        }
    }
    Err(Fault::bad(format!("there are {MOST_NAMES} files of the name {} already", name.display())))
}

/// A link is no file of its own: what it leads to is not compared.
fn is_same(path: &Path, bytes: &[u8]) -> bool {
    let length =
        path.symlink_metadata().ok().filter(|metadata| metadata.is_file()).map(|data| data.len());
    length == Some(bytes.len() as u64) && std::fs::read(path).is_ok_and(|there| there == bytes)
}

pub async fn image(
    State(app): Shared,
    multipart: Result<Multipart, MultipartRejection>,
) -> Result<JsonBody<Json>, Fault> {
    let form = Form::read(&app, multipart).await?;
    blocking(app, move |app| {
        let bytes = form.file.as_ref().map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        form.put(app, &bytes)
    })
    .await
}

pub async fn mask(
    State(app): Shared,
    multipart: Result<Multipart, MultipartRejection>,
) -> Result<JsonBody<Json>, Fault> {
    let form = Form::read(&app, multipart).await?;
    blocking(app, move |app| {
        form.name()?;
        let original: Json = serde_json::from_str(form.text("original_ref"))
            .map_err(|error| Fault::bad(format!("\"original_ref\" is no JSON: {error}")))?;
        let text = |key: &str| original[key].as_str().unwrap_or_default();
        let kind = if text("type").is_empty() { "output" } else { text("type") };
        let root = Root::of_name(kind);
        let root =
            root.ok_or_else(|| Fault::bad(format!("\"{kind}\" is no folder of the server")))?;
        let whole = format!("{}/{}", text("subfolder").trim_end_matches('/'), text("filename"));
        let path = inside(whole.trim_start_matches('/')).filter(|_| !text("filename").is_empty());
        let path = path.ok_or_else(|| Fault::bad("\"original_ref\" names no file"))?;
        let found = root.find(app, &path)?.ok_or_else(|| {
            Fault::bad(format!("\"original_ref\": there is no {} in {kind}", path.display()))
        })?;
        let original =
            std::fs::read(&found).map_err(|error| io_fault(&path.display().to_string(), &error))?;
        let bytes = form.file.as_ref().map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        form.put(app, &picture::masked(&original, &bytes)?)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::super::files::write;
    use super::*;

    #[test]
    fn names_that_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let put = |bytes: &[u8], replace| {
            let bring = |_: &Path| Ok(());
            place_by(bring, write, folder.path(), Path::new("a.png"), bytes, replace).unwrap().0
        };
        assert_eq!(put(b"one", false), "a.png");
        assert_eq!(put(b"one", false), "a.png", "the same bytes");
        assert_eq!(put(b"two", false), "a (1).png");
        assert_eq!(put(b"six", false), "a (2).png");
        assert_eq!(put(b"two", false), "a (1).png");
        std::os::unix::fs::symlink("a.png", folder.path().join("link.png")).unwrap();
        let bring = |_: &Path| Ok(());
        let linked = place_by(bring, write, folder.path(), Path::new("link.png"), b"one", false);
        assert_eq!(linked.unwrap().0, "link (1).png", "what a link leads to is not told");
        assert_eq!(put(b"ten", true), "a.png");
        assert_eq!(std::fs::read(folder.path().join("a.png")).unwrap(), b"ten");
    }
}
