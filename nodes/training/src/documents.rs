//! What Kosmos-G learns from: prompts with pictures, of the authors' TSV shards or of a folder.
//!
//! A row of a shard gives another document each time: captions and words of objects are dropped half of the time, an object
//! is shown cropped or on white. Chance is given to the functions, so that a test can say what it was.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use base64::Engine;
use kosmograph_models::text::clip_tokens::ClipTokenizer;
use kosmograph_models::text::kosmos_tokens::KosmosTokenizer;
use serde::{Deserialize, Serialize};

use crate::data;
use crate::draws::Draws;
use crate::error::{Error, Result};

/// What the rows of a shard are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Number, caption, picture, width, height.
    Laion,
    /// Caption, instruction, then pairs of a picture before and after.
    Instructpix2pix,
    /// Caption, names of objects, the whole picture, then each object cropped and on white.
    Openimage,
}

/// A prompt with `<i>` marks, the pictures of its marks, and the picture that it is to give.
#[derive(Clone, Debug)]
pub struct Document {
    pub prompt: String,
    pub sources: Vec<image::RgbImage>,
    pub target: Option<image::RgbImage>,
    /// All that `target` shows, in words; of a folder's documents, where that lies beside them.
    pub caption: Option<String>,
}

/// What the file with a document's caption is called, after the picture's name without its end.
const CAPTION: &str = "caption.txt";

/// The share of the time that the authors drop a caption, or the words of an object.
const DROPPED: f64 = 0.5;
/// Rows of LAION with a shorter side are left out, but for `align`, which sees no pictures.
const SHORTEST: u64 = 384;
/// The most pieces of a caption; and for `align` of pieces and of CLIP's tokens.
const MOST_PIECES: usize = 128;
const MOST_ALIGNED: (usize, usize) = (85, 75);

/// The mark of a picture in a prompt.
pub(crate) const MARK: &str = "<i>";

/// The columns of a row, as the authors' loaders split it: white space around the whole row is gone, and with it a first
/// column that is empty.
pub fn columns(row: &str) -> Vec<&str> {
    row.trim().split('\t').collect()
}

/// A row of LAION; for `align` the caption alone. None where the row is left out.
///
/// # Errors
/// A sentence: what is wrong with the row.
pub fn laion(
    columns: &[&str],
    align: Option<&ClipTokenizer>,
    tokenizer: &KosmosTokenizer,
) -> Result<Option<Document>, String> {
    let [_, caption, picture, width, height, ..] = columns[..] else {
        return Err(format!("{} columns, where LAION's rows have 5", columns.len()));
    };
    let is_number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    if !is_number(width) || !is_number(height) {
        return Ok(None);
    }
    // A number too large for 64 bits is no short side.
    let is_short = |text: &str| text.parse::<u64>().is_ok_and(|side| side < SHORTEST);
    let pieces = tokenizer.snippet(caption).len();
    let is_left_out = match align {
        Some(clip) => {
            let tokens = clip.tokens(caption).map_err(|error| error.to_string())?.len();
            pieces > MOST_ALIGNED.0 || tokens > MOST_ALIGNED.1
        }
        None => is_short(width) || is_short(height) || pieces > MOST_PIECES,
    };
    if is_left_out {
        return Ok(None);
    }
    let target = match align {
        Some(_) => None,
        None => Some(decode(picture)?),
    };
    // A mark in a caption is characters like others.
    Ok(Some(Document { prompt: caption.to_owned(), sources: Vec::new(), target, caption: None }))
}

/// A row of InstructPix2Pix; `draw` gives a number in 0..1 and then one below what it is told.
///
/// # Errors
/// A sentence: what is wrong with the row.
pub fn instructpix2pix(columns: &[&str], draw: &mut dyn Chance) -> Result<Document, String> {
    let is_dropped = draw.share() < DROPPED;
    let [caption, instruction, pairs @ ..] = columns else {
        return Err(format!("{} columns, where such rows have 4 or more", columns.len()));
    };
    if pairs.len() < 2 {
        return Err("no pair of pictures".to_owned());
    }
    let pair = 2 * draw.below(pairs.len() / 2);
    let (before, after) = (decode(pairs[pair])?, decode(pairs[pair + 1])?);
    let caption = if is_dropped { "" } else { caption };
    let prompt = format!("{caption}{MARK}{instruction}");
    Ok(Document { prompt, sources: vec![before], target: Some(after), caption: None })
}

/// Words that the authors take for no object.
const COLOURS: [&str; 16] = [
    "yellow", "blue", "red", "green", "white", "black", "brown", "grey", "gray", "purple", "pink",
    "orange", "cyan", "silver", "gold", "golden",
];
/// Where the word of an object ends.
const ENDS: [char; 10] = [' ', ',', '.', '!', '?', ';', ':', ')', ']', '}'];

/// A row of OpenImages; `draw` gives a number in 0..1, and one more for each object that is in the caption.
///
/// # Errors
/// A sentence: what is wrong with the row; also that it would begin with a dropped word, which the authors leave out.
pub fn openimage(columns: &[&str], draw: &mut dyn Chance) -> Result<Document, String> {
    let is_dropped = draw.share() < DROPPED;
    let [caption, tags, whole, objects @ ..] = columns else {
        return Err(format!("{} columns, where such rows have 3 or more", columns.len()));
    };
    let tags: Vec<&str> = tags.split(',').collect();
    let is_object = |tag: &str| {
        let holding = tags.iter().filter(|other| find_word(other, tag, false).is_some()).count();
        !tag.is_empty() && !COLOURS.contains(&tag) && holding <= 1
    };
    let mut found: Vec<(usize, &str, usize)> = Vec::new();
    for (number, tag) in tags.iter().enumerate().filter(|(_, tag)| is_object(tag)) {
        if let Some((_, end)) = find_word(caption, tag, true) {
            found.push((end, tag, number));
        }
    }
    found.sort_by_key(|(end, ..)| *end);
    let (mut rest, mut prompt, mut sources) = (*caption, String::new(), Vec::new());
    for (_, tag, number) in found {
        let Some((start, end)) = find_word(rest, tag, true) else { continue };
        let end = end + rest[end..].find(ENDS).unwrap_or(rest.len() - end);
        let said = &rest[..if is_dropped { start } else { end }];
        if said.is_empty() {
            return Err("an object that is dropped begins the caption".to_owned());
        }
        prompt.push_str(said);
        prompt.push_str(MARK);
        rest = &rest[end..];
        let on_white = draw.share() <= 0.5;
        let column = 2 * number + usize::from(on_white);
        let object = objects.get(column).ok_or("a picture of an object is missing")?;
        sources.push(decode(object)?);
    }
    prompt.push_str(rest);
    Ok(Document { prompt, sources, target: Some(decode(whole)?), caption: None })
}

/// Where `word` first stands in `text` as a word of its own, as Python's `\bword\b` finds it.
pub(crate) fn find_word(text: &str, word: &str, ignores_case: bool) -> Option<(usize, usize)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let is_edge = |at: usize| {
        let before = text[..at].chars().next_back().is_some_and(is_word);
        before != text[at..].chars().next().is_some_and(is_word)
    };
    let alike =
        |a: char, b: char| a == b || (ignores_case && a.to_lowercase().eq(b.to_lowercase()));
    text.char_indices().map(|(at, _)| at).find_map(|start| {
        let mut rest = text[start..].chars();
        let fits = word.chars().all(|c| rest.next().is_some_and(|other| alike(c, other)));
        let end = text.len() - rest.as_str().len();
        (fits && is_edge(start) && is_edge(end)).then_some((start, end))
    })
}

/// Where a loader's chance comes from.
pub trait Chance {
    /// In 0..1.
    fn share(&mut self) -> f64;
    /// In 0..`end`.
    fn below(&mut self, end: usize) -> usize;
}

impl Chance for Draws {
    fn share(&mut self) -> f64 {
        Draws::share(self)
    }

    fn below(&mut self, end: usize) -> usize {
        Draws::below(self, end)
    }
}

/// A picture in base64.
fn decode(text: &str) -> Result<image::RgbImage, String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim());
    let bytes = bytes.map_err(|error| format!("a picture is no base64: {error}"))?;
    data::open_bytes(&bytes)
}

/// Some shards of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardsConfig {
    pub kind: Kind,
    pub files: Vec<PathBuf>,
    /// How often its documents come, beside those of the others.
    #[serde(default = "once")]
    pub weight: f64,
}

fn once() -> f64 {
    1.0
}

/// A row: of which shards, which file, from where, how many bytes.
#[derive(Clone, Copy, Debug)]
struct Row {
    file: usize,
    start: u64,
    length: usize,
}

/// The longest row that is read: a few pictures.
const LONGEST_ROW: usize = 1 << 28;

/// Rows of files that are read when they are needed.
struct Shards {
    kind: Kind,
    files: Vec<PathBuf>,
    rows: Vec<Row>,
    weight: f64,
}

impl Shards {
    fn open(config: &ShardsConfig) -> Result<Shards> {
        let mut rows = Vec::new();
        for (file, path) in config.files.iter().enumerate() {
            let failed = |source| Error::Read { path: path.clone(), source };
            let mut reader = BufReader::new(File::open(path).map_err(failed)?);
            let mut start = 0;
            loop {
                let length = skip_line(&mut reader).map_err(failed)?;
                if length == 0 {
                    break;
                }
                if length > LONGEST_ROW {
                    let sentence = format!("{}: a row of {length} bytes is no row", path.display());
                    return Err(Error::Data(sentence));
                }
                if length > 1 {
                    rows.push(Row { file, start, length });
                }
                start += length as u64;
            }
        }
        if rows.is_empty() {
            let sentence = "\"shards\" hold no rows; rows with columns between tabs would be right";
            return Err(Error::Data(sentence.to_owned()));
        }
        let (kind, files) = (config.kind, config.files.clone());
        Ok(Shards { kind, files, rows, weight: config.weight })
    }

    fn read(&self, row: Row) -> Result<String> {
        let path = &self.files[row.file];
        let failed = |source| Error::Read { path: path.clone(), source };
        let mut file = File::open(path).map_err(failed)?;
        file.seek(SeekFrom::Start(row.start)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(row.length as u64).read_to_end(&mut bytes).map_err(failed)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Goes past the end of a line; how many bytes it had.
fn skip_line(reader: &mut impl BufRead) -> std::io::Result<usize> {
    let mut length = 0;
    loop {
        let (used, ended) = {
            let buffer = reader.fill_buf()?;
            match buffer.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            }
        };
        reader.consume(used);
        length += used;
        if ended {
            return Ok(length);
        }
    }
}

/// Where documents come from.
pub(crate) struct Corpus {
    shards: Vec<Shards>,
    /// Pictures with their prompts, and the pictures of the marks.
    folder: Vec<(PathBuf, String, Vec<PathBuf>)>,
    /// For `align` captions alone.
    align: bool,
}

impl Corpus {
    pub fn of_shards(configs: &[ShardsConfig], align: bool) -> Result<Corpus> {
        let shards = configs.iter().map(Shards::open).collect::<Result<_>>()?;
        Ok(Corpus { shards, folder: Vec::new(), align })
    }

    /// The pictures of `folder` with the captions beside them. Those of a caption's marks lie in a folder of the picture's
    /// name without its end, in the order of their names. What does not fit is left out and told.
    pub fn of_folder(folder: &Path, align: bool) -> Result<(Corpus, Vec<String>)> {
        let (mut found, mut notes) = (Vec::new(), Vec::new());
        for path in data::pictures(folder)? {
            let Some(prompt) = data::read_caption(&path, &mut notes) else {
                notes.push(format!("{} is left out: it has no caption beside it", path.display()));
                continue;
            };
            let beside = path.with_extension("");
            let sources = if beside.is_dir() { data::numbered(&beside)? } else { Vec::new() };
            let marks = prompt.matches(MARK).count();
            if !align && marks != sources.len() {
                notes.push(format!(
                    "{} is left out: its caption has {marks} <i> marks, and there are {} pictures in {}",
                    path.display(),
                    sources.len(),
                    beside.display()
                ));
                continue;
            }
            found.push((path, prompt, sources));
        }
        if found.is_empty() {
            let sentence = format!("{} holds no pictures with captions", folder.display());
            return Err(Error::Data(sentence));
        }
        Ok((Corpus { shards: Vec::new(), folder: found, align }, notes))
    }

    /// How many of a folder's documents with pictures have no caption that says all that theirs shows.
    pub fn without_captions(&self) -> usize {
        let lacks = |(path, _, sources): &&(PathBuf, String, Vec<PathBuf>)| {
            !sources.is_empty() && !path.with_extension(CAPTION).exists()
        };
        self.folder.iter().filter(lacks).count()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.folder.len() + self.shards.iter().map(|shards| shards.rows.len()).sum::<usize>()
    }

    /// A document by chance. Rows that give none are passed over.
    ///
    /// # Errors
    /// A file cannot be read, or a thousand rows in a row give none.
    pub fn document(
        &self,
        draws: &mut Draws,
        clip: &ClipTokenizer,
        tokenizer: &KosmosTokenizer,
    ) -> Result<Document> {
        const TRIES: usize = 1000;
        let mut last = String::new();
        for _ in 0..TRIES {
            match self.one(draws, clip, tokenizer)? {
                Ok(Some(document)) => return Ok(document),
                Ok(None) => (),
                Err(reason) => last = format!(": {reason}"),
            }
        }
        Err(Error::Data(format!("no document in {TRIES} rows{last}")))
    }

    fn one(
        &self,
        draws: &mut Draws,
        clip: &ClipTokenizer,
        tokenizer: &KosmosTokenizer,
    ) -> Result<Result<Option<Document>, String>> {
        if self.shards.is_empty() {
            let (path, prompt, sources) = &self.folder[draws.below(self.folder.len())];
            if self.align {
                let (prompt, sources) = (prompt.clone(), Vec::new());
                return Ok(Ok(Some(Document { prompt, sources, target: None, caption: None })));
            }
            let opened = || {
                let sources =
                    sources.iter().map(|path| data::open(path)).collect::<Result<_, _>>()?;
                let target = Some(data::open(path)?);
                let beside = path.with_extension(CAPTION);
                let caption = match std::fs::read_to_string(&beside) {
                    Ok(caption) => Some(caption.trim().to_owned()),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                    Err(error) => return Err(format!("{}: {error}", beside.display())),
                };
                Ok(Some(Document { prompt: prompt.clone(), sources, target, caption }))
            };
            return Ok(opened());
        }
        let all: f64 = self.shards.iter().map(|shards| shards.weight).sum();
        let mut at = draws.share() * all;
        let mut chosen = &self.shards[self.shards.len() - 1];
        for shards in &self.shards {
            if at < shards.weight {
                chosen = shards;
                break;
            }
            at -= shards.weight;
        }
        let row = chosen.read(chosen.rows[draws.below(chosen.rows.len())])?;
        let columns = columns(&row);
        Ok(match chosen.kind {
            Kind::Laion => laion(&columns, self.align.then_some(clip), tokenizer),
            Kind::Instructpix2pix => instructpix2pix(&columns, draws).map(Some),
            Kind::Openimage => openimage(&columns, draws).map(Some),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_where_it_stands_by_itself() {
        assert_eq!(find_word("two cats", "cat", true), None);
        assert_eq!(find_word("a Cat, a cat", "cat", true), Some((2, 5)));
        assert_eq!(find_word("a Cat, a cat", "cat", false), Some((9, 12)));
        assert_eq!(find_word("a woman's hat", "woman", true), Some((2, 7)));
        assert_eq!(find_word("Straße", "straße", true), Some((0, 7)));
        assert_eq!(find_word("", "cat", true), None);
    }

    #[test]
    fn rows_are_counted_whatever_their_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tsv");
        std::fs::write(&path, "one\t1\n\ntwo\t2\r\nthree\t3").unwrap();
        let config = ShardsConfig { kind: Kind::Laion, files: vec![path], weight: 1.0 };
        let shards = Shards::open(&config).unwrap();
        let rows: Vec<String> = shards.rows.iter().map(|row| shards.read(*row).unwrap()).collect();
        assert_eq!(
            rows.iter().map(|row| columns(row)[0]).collect::<Vec<_>>(),
            ["one", "two", "three"]
        );
    }
}
