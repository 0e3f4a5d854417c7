//! Pictures measured against others, as papers do it: folders to figures. The networks are `kosmograph_models::measures`'.
//!
//! [`layout`] finds the pictures and what belongs to them, [`picture`] opens one, [`figures`] makes numbers of features,
//! [`sheet`] shows the best and the worst; [`evaluate`] does it all.

mod error;
pub mod figures;
pub mod layout;
pub mod picture;
mod sheet;

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::Device;
use kosmograph_models::measures::Network;
use kosmograph_models::measures::frechet::{Moments, distance};
use serde::Deserialize;
use serde_json::{Value, json};

pub use error::{Error, Result};
use figures::{Against, Figures, NAMES};
use layout::{Layout, Subject};
use picture::Rgb;

/// What is to be measured; "evaluate/1" of node.h. Paths are absolute.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub drawn: PathBuf,
    pub real: PathBuf,
    /// A network for each of `dino`, `clip` and `fid` that is wanted.
    pub measures: BTreeMap<String, PathBuf>,
    /// A JSON file: the real picture of each subject that was drawn from. Without it, the first by name.
    #[serde(default)]
    pub inputs: Option<PathBuf>,
    /// A PNG file to make of the best and the worst.
    #[serde(default)]
    pub sheet: Option<PathBuf>,
}

/// Who follows an evaluation.
pub trait Watch {
    /// So many pictures are seen.
    ///
    /// # Errors
    /// Somebody asked to stop.
    fn progress(&mut self, done: usize, all: usize) -> Result<()>;

    /// Something that a person ought to know; `odd` if it may be a mistake.
    fn note(&mut self, sentence: &str, odd: bool);
}

/// The names of measures, as a request has them.
const MEASURES: [&str; 3] = ["dino", "clip", "fid"];
/// How many pictures a network sees at once.
const BATCH: usize = 8;

/// One drawn picture with its figures.
pub(crate) struct Measured {
    pub path: PathBuf,
    pub subject: usize,
    pub text: Option<String>,
    pub figures: Figures,
}

/// The networks of a request.
struct Networks {
    dino: Option<Network>,
    clip: Option<Network>,
    fid: Option<Network>,
}

impl Networks {
    fn open(measures: &BTreeMap<String, PathBuf>) -> Result<Networks> {
        let mut found = Networks { dino: None, clip: None, fid: None };
        for (name, path) in measures {
            let place = match name.as_str() {
                "dino" => &mut found.dino,
                "clip" => &mut found.clip,
                "fid" => &mut found.fid,
                _ => {
                    let nearest = MEASURES.iter().max_by(|a, b| {
                        strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b))
                    });
                    return Err(Error::Request(format!(
                        "there is no measure \"{name}\"; the nearest is \"{}\"",
                        nearest.copied().unwrap_or_default()
                    )));
                }
            };
            let network = Network::open(path, &Device::Cpu)?;
            if network.kind() != name {
                return Err(Error::Request(format!(
                    "{} is the network of \"{}\", and not that of \"{name}\"",
                    path.display(),
                    network.kind()
                )));
            }
            *place = Some(network);
        }
        match measures.is_empty() {
            true => Err(Error::Request(
                "\"measures\" are none; dino, clip or fid would be right".to_owned(),
            )),
            false => Ok(found),
        }
    }
}

/// What a subject's pictures are compared by: features of one network.
type Rows = Vec<Vec<f64>>;

/// The features of some pictures by every network that is there, and which of them could be read.
#[derive(Default)]
struct Seen {
    /// Positions in the list of paths.
    read: Vec<usize>,
    dino: Rows,
    clip: Rows,
}

/// Measures as `request` says. What comes back is what node.h says of "evaluate/1".
///
/// # Errors
/// The request is wrong, there are no pictures or too few, a network cannot be read, the sheet cannot be written, or
/// somebody asked to stop.
pub fn evaluate(request: &Request, watch: &mut dyn Watch) -> Result<Value> {
    let networks = Networks::open(&request.measures)?;
    let can_rank = networks.dino.is_some() || networks.clip.is_some();
    if request.sheet.is_some() && !can_rank {
        let sentence = "a sheet shows the best by dino or clip, and neither is measured";
        return Err(Error::Request(sentence.to_owned()));
    }
    let layout = Layout::find(&request.drawn, &request.real, request.inputs.as_deref())?;
    layout.notes.iter().for_each(|note| watch.note(note, true));
    let mut work = Work {
        networks: &networks,
        watch,
        left_out: layout.notes.clone(),
        moments: [None, None],
        done: 0,
        all: layout.subjects.iter().map(|s| s.real.len() + s.drawn.len()).sum(),
    };
    let (mut pictures, mut of_subjects) = (Vec::new(), Vec::new());
    for (number, subject) in layout.subjects.iter().enumerate() {
        let (measured, real) = work.subject(number, subject)?;
        of_subjects.push((number, real, measured.len()));
        pictures.extend(measured);
    }
    if pictures.is_empty() {
        let sentence = format!("{} holds no picture that can be read", request.drawn.display());
        return Err(Error::Request(sentence));
    }
    let fid = match (&networks.fid, &work.moments) {
        (Some(_), [Some(real), Some(drawn)]) => Some(distance(real, drawn)?),
        (Some(_), _) => {
            return Err(Error::Request("there are no real pictures for fid".to_owned()));
        }
        _ => None,
    };
    let left_out = std::mem::take(&mut work.left_out);
    let mut made = told(&layout, &pictures, &of_subjects, fid, &left_out);
    if let Some(sheet) = &request.sheet {
        sheet::write(sheet, &layout.subjects, &pictures)?;
        made["output"] = json!(sheet);
    }
    Ok(made)
}

struct Work<'a> {
    networks: &'a Networks,
    watch: &'a mut dyn Watch,
    left_out: Vec<String>,
    /// Of the real pictures and of the drawn ones.
    moments: [Option<Moments>; 2],
    done: usize,
    all: usize,
}

impl Work<'_> {
    /// The figures of a subject's drawn pictures, and those of the real ones among themselves.
    fn subject(&mut self, number: usize, subject: &Subject) -> Result<(Vec<Measured>, Figures)> {
        let real = self.see(&subject.real, 0)?;
        let input = real.read.iter().position(|i| *i == subject.input);
        if input.is_none() {
            let path = subject.real[subject.input].display();
            let sentence =
                format!("{}: its input {path} cannot be read, so it is left out", subject.name);
            self.watch.note(&sentence, true);
            self.left_out.push(sentence);
        }
        let paths: Vec<PathBuf> = subject.drawn.iter().map(|drawn| drawn.path.clone()).collect();
        let drawn = self.see(&paths, 1)?;
        let Some(input) = input else { return Ok((Vec::new(), Figures::default())) };
        let dino = self.networks.dino.as_ref().and_then(|_| Against::new(&real.dino, input));
        let clip = self.networks.clip.as_ref().and_then(|_| Against::new(&real.clip, input));
        let (mut measured, mut texts) = (Vec::new(), BTreeMap::new());
        for (row, at) in drawn.read.iter().enumerate() {
            let layout::Drawn { path, text } = &subject.drawn[*at];
            let mut figures = Figures::default();
            if let Some(dino) = &dino {
                figures.set("dino", dino.input(&drawn.dino[row]));
                figures.set("dino_pairwise", dino.pairwise(&drawn.dino[row]));
            }
            if let (Some(clip), Some(network)) = (&clip, &self.networks.clip) {
                figures.set("clip_i", clip.input(&drawn.clip[row]));
                figures.set("clip_i_pairwise", clip.pairwise(&drawn.clip[row]));
                if let Some(text) = text {
                    if !texts.contains_key(text) {
                        let features =
                            network.text_features(text)?.to_dtype(candle_core::DType::F64)?;
                        texts.insert(text, features.flatten_all()?.to_vec1::<f64>()?);
                    }
                    let of_text = texts.get(text).map(Vec::as_slice).unwrap_or_default();
                    figures.set(
                        "clip_t",
                        kosmograph_models::measures::similarity(of_text, &drawn.clip[row]),
                    );
                }
            }
            measured.push(Measured {
                path: path.clone(),
                subject: number,
                text: text.clone(),
                figures,
            });
        }
        let mut of_real = Figures::default();
        for (name, against) in [("dino", &dino), ("clip_i", &clip)] {
            if let Some(among) = against.as_ref().and_then(Against::among_themselves) {
                of_real.set(name, among);
            }
        }
        Ok((measured, of_real))
    }

    /// Shows pictures to every network; one that cannot be read is left out and told. `side` is 0 for real ones.
    fn see(&mut self, paths: &[PathBuf], side: usize) -> Result<Seen> {
        let mut seen = Seen::default();
        for (start, paths) in paths.chunks(BATCH).enumerate() {
            let mut opened: Vec<Rgb> = Vec::new();
            for (at, path) in paths.iter().enumerate() {
                self.watch.progress(self.done, self.all)?;
                self.done += 1;
                match picture::open(path) {
                    Ok(picture) => {
                        opened.push(picture);
                        seen.read.push(start * BATCH + at);
                    }
                    Err(reason) => {
                        let sentence = format!("{} is left out: {reason}", path.display());
                        self.watch.note(&sentence, true);
                        self.left_out.push(sentence);
                    }
                }
            }
            if opened.is_empty() {
                continue;
            }
            let pictures: Vec<_> = opened.iter().map(Rgb::picture).collect();
            let features = |network: &Network| -> Result<Rows> {
                Ok(network
                    .features(&pictures)?
                    .to_dtype(candle_core::DType::F64)?
                    .to_vec2::<f64>()?)
            };
            if let Some(network) = &self.networks.dino {
                seen.dino.extend(features(network)?);
            }
            if let Some(network) = &self.networks.clip {
                seen.clip.extend(features(network)?);
            }
            if let Some(network) = &self.networks.fid {
                for row in features(network)? {
                    let moments = self.moments[side].get_or_insert_with(|| Moments::new(row.len()));
                    moments.add(&row)?;
                }
            }
        }
        self.watch.progress(self.done, self.all)?;
        Ok(seen)
    }
}

/// Everything as JSON: a table for a person, and the same by name.
fn told(
    layout: &Layout,
    pictures: &[Measured],
    of_subjects: &[(usize, Figures, usize)],
    fid: Option<f64>,
    left_out: &[String],
) -> Value {
    let of = |number: Option<usize>| {
        let those = pictures.iter().filter(|p| number.is_none_or(|number| p.subject == number));
        Figures::mean(those.map(|picture| &picture.figures))
    };
    let all = of(None);
    let real = Figures::mean(of_subjects.iter().map(|(_, real, _)| real));
    let shown: Vec<_> = NAMES.iter().filter(|(name, _)| all.get(name).is_some()).collect();
    let mut columns = vec![json!("subject"), json!("pictures")];
    columns.extend(shown.iter().map(|(_, title)| json!(title)));
    if fid.is_some() {
        columns.push(json!("FID"));
    }
    let row = |name: &str, count: usize, figures: &Figures, fid: Option<f64>| {
        let mut row = vec![json!(name), json!(count)];
        row.extend(shown.iter().map(|(name, _)| json!(figures.get(name))));
        if columns.len() > row.len() {
            row.push(json!(fid));
        }
        Value::from(row)
    };
    let mut rows = Vec::new();
    let mut subjects = Vec::new();
    for (number, real, count) in of_subjects {
        let (subject, figures) = (&layout.subjects[*number], of(Some(*number)));
        if layout.subjects.len() > 1 {
            rows.push(row(&subject.name, *count, &figures, None));
        }
        let mut told = figures.json();
        told["subject"] = json!(subject.name);
        told["pictures"] = json!(count);
        told["input"] = json!(subject.real[subject.input]);
        told["real_among_themselves"] = real.json();
        subjects.push(told);
    }
    rows.push(row("all", pictures.len(), &all, fid));
    if !real.is_empty() {
        let count = layout.subjects.iter().map(|subject| subject.real.len()).sum();
        rows.push(row("real pictures", count, &real, None));
    }
    let mut told_all = all.json();
    if let Some(fid) = fid {
        told_all["fid"] = json!(fid);
    }
    told_all["pictures"] = json!(pictures.len());
    told_all["real_among_themselves"] = real.json();
    let each = pictures.iter().map(|picture| {
        let mut told = picture.figures.json();
        told["file"] = json!(picture.path);
        told["subject"] = json!(layout.subjects[picture.subject].name);
        told["text"] = json!(picture.text);
        told
    });
    json!({
        "table": {"columns": columns, "rows": rows},
        "all": told_all,
        "subjects": subjects,
        "pictures": each.collect::<Vec<_>>(),
        "left_out": left_out,
    })
}
