//! Where a workflow is read from: a JSON file, a PNG that carries one, or standard input.
//!
//! A PNG saved by ComfyUI, or by our own SaveImage, holds the API-format workflow in the text chunk
//! `prompt` and the editor's graph, where there was one, in `workflow`; so every picture can be
//! drawn again. A picture of AUTOMATIC1111's has the chunk `parameters`, of which a graph is made
//! (`a1111`). `prompt` is what was run, seed and all, and is taken where there are both, unless it is
//! damaged.

use crate::a1111::{self, Converted};
use crate::graph::{self, Graph};
use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The longest workflow that is read, in bytes. The largest ones people share have a few hundred
/// kilobytes; what is longer is not a workflow, and reading it would only take memory.
pub const LONGEST: u64 = 64 << 20;

/// A workflow's text and where it came from.
#[derive(Debug)]
pub struct WorkflowFile {
    /// JSON, not yet parsed: the API format, or the editor's where the file has nothing else.
    pub prompt: String,
    /// The editor's own graph, where the file carried one.
    pub editor: Option<String>,
    /// The folder the file is in; none for standard input.
    pub folder: Option<PathBuf>,
    /// What of the file the workflow does not have, where it had to be converted.
    pub notes: Vec<String>,
}

/// Why there is no workflow to read. Each sentence names the file.
#[derive(Debug, Error)]
pub enum ReadError {
    #[error("{path}: cannot be read: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("{path}: is a folder; a workflow file was expected")]
    Folder { path: String },
    #[error("{path}: is longer than {} MB, the most a workflow may have", LONGEST >> 20)]
    TooLong { path: String },
    #[error(
        "{path}: is not UTF-8 text (byte {offset}); a JSON workflow, or a PNG that carries one, was expected"
    )]
    NotText { path: String, offset: usize },
    #[error("{path}: is a {format} picture; a workflow is carried by a PNG")]
    OtherPicture { path: String, format: &'static str },
    #[error("{path}: this PNG cannot be read: {reason}")]
    BrokenPng { path: String, reason: String },
    #[error("{path}: the text of this picture's parameters, as AUTOMATIC1111 writes it, {reason}")]
    Parameters { path: String, reason: String },
    #[error(
        "{path}: this PNG carries no workflow (it has no text chunk \"prompt\" or \"workflow\"); pictures that SaveImage wrote do"
    )]
    NoWorkflow { path: String },
}

impl WorkflowFile {
    /// Reads `path`; `-` is standard input, which may be JSON or a PNG, too.
    ///
    /// # Errors
    /// [`ReadError`]; a file longer than [`LONGEST`] is refused before it is read.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        if path == Path::new("-") {
            return Self::from_stream(std::io::stdin().lock(), "standard input");
        }
        let name = path.display().to_string();
        let io = |source| ReadError::Io { path: name.clone(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.is_dir() {
            return Err(ReadError::Folder { path: name });
        }
        let mut this = if metadata.is_file() {
            let mut file = BufReader::new(file);
            let mut signature = Vec::new();
            (&mut file).take(8).read_to_end(&mut signature).map_err(io)?;
            if signature == PNG_SIGNATURE {
                // Only its chunks are looked at, so a picture may be as long as it likes.
                from_png(BufReader::new(File::open(path).map_err(io)?), &name)?
            } else if metadata.len() > LONGEST {
                return Err(ReadError::TooLong { path: name });
            } else {
                Self::from_stream(Cursor::new(signature).chain(file), &name)?
            }
        } else {
            // A pipe or the like, which has no length.
            Self::from_stream(file, &name)?
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        this.folder = Some(parent.unwrap_or(Path::new(".")).to_owned());
        Ok(this)
    }

    /// As [`Self::read`], of bytes that somebody sent; sentences call them `name`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Self, ReadError> {
        Self::from_stream(Cursor::new(bytes), name)
    }

    fn from_stream(stream: impl Read, name: &str) -> Result<Self, ReadError> {
        let mut bytes = Vec::new();
        stream
            .take(LONGEST + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| ReadError::Io { path: name.to_owned(), source })?;
        if bytes.len() as u64 > LONGEST {
            return Err(ReadError::TooLong { path: name.to_owned() });
        }
        if bytes.starts_with(PNG_SIGNATURE) {
            return from_png(Cursor::new(bytes), name);
        }
        if let Some(format) = other_picture(&bytes) {
            return Err(ReadError::OtherPicture { path: name.to_owned(), format });
        }
        let prompt = String::from_utf8(bytes).map_err(|error| ReadError::NotText {
            path: name.to_owned(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        Ok(Self { prompt, editor: None, folder: None, notes: Vec::new() })
    }
}

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

fn other_picture(bytes: &[u8]) -> Option<&'static str> {
    let webp = bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP");
    match bytes {
        _ if webp => Some("WebP"),
        [0xff, 0xd8, 0xff, ..] => Some("JPEG"),
        [b'G', b'I', b'F', b'8', ..] => Some("GIF"),
        _ => None,
    }
}

fn from_png(
    stream: impl std::io::BufRead + std::io::Seek,
    name: &str,
) -> Result<WorkflowFile, ReadError> {
    let broken = |error: png::DecodingError| ReadError::BrokenPng {
        path: name.to_owned(),
        reason: error.to_string(),
    };
    let limits = png::Limits { bytes: 4 * LONGEST as usize };
    let mut reader = png::Decoder::new_with_limits(stream, limits).read_info().map_err(broken)?;
    let mut prompt = text_chunk(reader.info(), "prompt", name)?;
    if prompt.is_none() {
        // Text may also stand behind the picture. If that part is cut off there is none to find.
        let rest = reader.finish();
        prompt = text_chunk(reader.info(), "prompt", name)?;
        if let (None, Err(error)) = (&prompt, rest) {
            return Err(broken(error));
        }
    }
    let editor = text_chunk(reader.info(), "workflow", name)?;
    let parameters = match (&prompt, &editor) {
        (None, None) => text_chunk(reader.info(), "parameters", name)?,
        // Only where those are no workflows, and then it may be none either.
        _ => text_chunk(reader.info(), "parameters", name).unwrap_or_default(),
    };
    chosen(prompt, editor, parameters, name)
}

/// Of what a picture carries, what is run: the first of the three that is a workflow.
fn chosen(
    prompt: Option<String>,
    editor: Option<String>,
    parameters: Option<String>,
    name: &str,
) -> Result<WorkflowFile, ReadError> {
    let file = |prompt, editor, notes| WorkflowFile { prompt, editor, folder: None, notes };
    let converted = |text: &str| {
        a1111::convert(text)
            .map_err(|reason| ReadError::Parameters { path: name.to_owned(), reason })
    };
    let of_prompt = prompt.as_deref().map(why_unusable);
    let of_editor = editor.as_deref().map(why_unusable);
    if let (Some(prompt), Some(None)) = (&prompt, &of_prompt) {
        // A damaged graph of the editor's is nothing to hand on.
        return Ok(file(prompt.clone(), editor.filter(|_| of_editor == Some(None)), Vec::new()));
    }
    let note = |chunk: &str, why: &Option<Option<String>>, instead: &str| {
        why.as_ref().and_then(Option::as_ref).map(|why| {
            format!(
                "its text chunk \"{chunk}\" is no workflow ({why}); \"{instead}\" is taken instead"
            )
        })
    };
    if let (Some(editor), Some(None)) = (&editor, &of_editor) {
        let notes = note("prompt", &of_prompt, "workflow").into_iter().collect();
        return Ok(file(editor.clone(), None, notes));
    }
    if let Some(Ok(Converted { prompt, notes })) = parameters.as_deref().map(converted) {
        let said = note("prompt", &of_prompt, "parameters");
        let said = said.into_iter().chain(note("workflow", &of_editor, "parameters"));
        return Ok(file(prompt, None, said.chain(notes).collect()));
    }
    // What is wrong with the first is told by who reads it.
    match (prompt, editor, parameters) {
        (Some(prompt), editor, _) => Ok(file(prompt, editor, Vec::new())),
        (None, Some(editor), _) => Ok(file(editor, None, Vec::new())),
        (None, None, Some(text)) => {
            let Converted { prompt, notes } = converted(&text)?;
            Ok(file(prompt, None, notes))
        }
        (None, None, None) => Err(ReadError::NoWorkflow { path: name.to_owned() }),
    }
}

/// Why a text chunk cannot be run as a workflow; none where it can.
fn why_unusable(text: &str) -> Option<String> {
    let opened = match graph::open(text) {
        Ok(opened) => opened,
        Err(error) => return Some(error.to_string()),
    };
    if opened.has_no_nodes() {
        return Some("the workflow has no nodes".to_owned());
    }
    if graph::is_editor_format(&opened.object) {
        return None;
    }
    Graph::from_object(opened.object).err().map(|error| error.to_string())
}

/// The text of the first tEXt, zTXt or iTXt chunk with this keyword. Compressed ones are unpacked
/// up to [`LONGEST`] bytes.
fn text_chunk(info: &png::Info, keyword: &str, name: &str) -> Result<Option<String>, ReadError> {
    let unpacked = |text: Result<String, png::DecodingError>| {
        text.map(Some).map_err(|error| ReadError::BrokenPng {
            path: name.to_owned(),
            reason: format!("its text chunk \"{keyword}\": {error}"),
        })
    };
    let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword);
    if let Some(chunk) = plain {
        return Ok(Some(latin1_or_utf8(&chunk.text)));
    }
    if let Some(chunk) = info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword) {
        let mut chunk = chunk.clone();
        return unpacked(
            chunk.decompress_text_with_limit(LONGEST as usize).and_then(|()| chunk.get_text()),
        )
        .map(|text| text.map(|text| latin1_or_utf8(&text)));
    }
    if let Some(chunk) = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword) {
        let mut chunk = chunk.clone();
        return unpacked(
            chunk.decompress_text_with_limit(LONGEST as usize).and_then(|()| chunk.get_text()),
        );
    }
    Ok(None)
}

/// tEXt is Latin-1 by its standard, and UTF-8 in many of the files there are. Bytes that read as
/// UTF-8 are UTF-8: no sensible Latin-1 text does, unless it is ASCII.
fn latin1_or_utf8(latin1: &str) -> String {
    let bytes: Option<Vec<u8>> = latin1.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_else(|| latin1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn png(write: impl FnOnce(&mut png::Encoder<&mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
        encoder.set_color(png::ColorType::Grayscale);
        write(&mut encoder);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[1, 2]).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<WorkflowFile, ReadError> {
        WorkflowFile::from_stream(bytes, "x.png")
    }

    #[test]
    fn all_three_text_chunks_carry_a_workflow() {
        let text = png(|e| e.add_text_chunk("prompt".into(), "{\"ä\": 1}".into()).unwrap());
        let ztxt = png(|e| e.add_ztxt_chunk("prompt".into(), "{\"ä\": 1}".into()).unwrap());
        let itxt = png(|e| {
            e.add_itxt_chunk("prompt".into(), "{\"ä\": 1}".into()).unwrap();
            e.add_itxt_chunk("workflow".into(), "{\"nodes\": []}".into()).unwrap();
        });
        for bytes in [&text, &ztxt, &itxt] {
            assert_eq!(read(bytes).unwrap().prompt, "{\"ä\": 1}");
        }
        assert_eq!(read(&itxt).unwrap().editor.as_deref(), Some("{\"nodes\": []}"));
    }

    #[test]
    fn the_editors_graph_stands_in_for_a_missing_prompt() {
        let editor =
            png(|e| e.add_text_chunk("workflow".into(), "{\"nodes\": []}".into()).unwrap());
        assert_eq!(read(&editor).unwrap().prompt, "{\"nodes\": []}");
    }

    #[test]
    fn a_chunk_that_is_no_workflow_is_passed_over_with_a_note() {
        let carrying = |chunks: &[(&str, &str)]| {
            read(&png(|e| {
                for (keyword, text) in chunks {
                    e.add_text_chunk((*keyword).into(), (*text).into()).unwrap();
                }
            }))
        };
        let editor = r#"{"nodes": [{"id": 1, "type": "A"}], "links": []}"#;
        let parameters =
            "x\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Model: m";
        let broken = r#"{"1": {"inputs": {}}}"#;
        for prompt in ["garbage", "", "null", "{}", "[]", "{\"a\": 1}", broken, "{\"nodes\": []}"] {
            let file = carrying(&[("prompt", prompt), ("workflow", editor)]).unwrap();
            assert_eq!((file.prompt.as_str(), file.editor), (editor, None), "{prompt}");
            assert!(
                file.notes[0].starts_with("its text chunk \"prompt\" is no workflow (")
                    && file.notes[0].ends_with("\"workflow\" is taken instead"),
                "{:?}",
                file.notes
            );
            let chunks = [("prompt", prompt), ("workflow", "{"), ("parameters", parameters)];
            let file = carrying(&chunks).unwrap();
            assert!(file.prompt.contains("m.safetensors"), "{}", file.prompt);
            assert!(file.notes[1].contains("\"workflow\" is no workflow"), "{:?}", file.notes);
            // Where nothing else is there it is told what is wrong with it.
            let alone = carrying(&[("prompt", prompt), ("workflow", "{")]).unwrap();
            assert_eq!((alone.prompt.as_str(), alone.notes.len()), (prompt, 0));
        }
        let api = r#"{"1": {"class_type": "A"}}"#;
        let file = carrying(&[("prompt", api), ("workflow", editor)]).unwrap();
        assert_eq!((file.prompt.as_str(), file.editor.as_deref()), (api, Some(editor)));
        assert_eq!(carrying(&[("prompt", api), ("workflow", "{")]).unwrap().editor, None);
    }

    #[test]
    fn a_text_chunk_behind_the_picture_is_found() {
        let mut bytes = Vec::new();
        let mut writer = {
            let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
            encoder.set_color(png::ColorType::Grayscale);
            encoder.write_header().unwrap()
        };
        writer.write_image_data(&[1, 2]).unwrap();
        writer.write_text_chunk(&png::text_metadata::TEXtChunk::new("prompt", "{}")).unwrap();
        writer.finish().unwrap();
        assert_eq!(read(&bytes).unwrap().prompt, "{}");
    }

    #[test]
    fn what_carries_none_is_named() {
        let sentence = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert!(sentence(&png(|_| ())).contains("carries no workflow"));
        assert!(sentence(b"\xff\xd8\xff\xe0").contains("JPEG"));
        assert!(sentence(b"abc\xff").contains("byte 3"));
        assert!(sentence(&png(|_| ())[..20]).contains("cannot be read"));
    }

    #[test]
    fn a_long_file_is_refused_by_its_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.json");
        // Sparse: it has the length and none of the bytes.
        File::create(&path).unwrap().set_len(100 << 20).unwrap();
        let error = WorkflowFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("longer than 64 MB"), "{error}");
        let error = WorkflowFile::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is a folder"), "{error}");
        let error = WorkflowFile::read(&folder.path().join("none.json")).unwrap_err().to_string();
        assert!(error.contains("none.json: cannot be read"), "{error}");
    }

    proptest! {
        #[test]
        fn a_damaged_png_is_a_workflow_or_a_sentence(at in 0usize..200, byte: u8, cut in 8usize..200) {
            let mut bytes = png(|e| e.add_ztxt_chunk("prompt".into(), "{\"1\": 2}".into()).unwrap());
            let (at, cut) = (at % bytes.len(), cut.min(bytes.len()));
            bytes[at] = byte;
            if let Err(error) = read(&bytes[..cut]) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
