//! Which pictures there are: two folders of any pictures, or with a folder for each subject as DreamBench has it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The ends of names that are taken for pictures.
const PICTURES: [&str; 8] = ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"];
/// DreamBench's list of classes and prompts, beside the real pictures.
const PROMPTS: &str = "prompts_and_classes.txt";
/// How deep pictures may lie, and how large a text beside them may be.
const DEEPEST: usize = 8;
const LONGEST: u64 = 1 << 20;

/// A subject: its real pictures, and those that were drawn of it.
#[derive(Clone, Debug)]
pub struct Subject {
    pub name: String,
    pub real: Vec<PathBuf>,
    /// Which of the real ones was drawn from.
    pub input: usize,
    pub drawn: Vec<Drawn>,
}

/// A drawn picture, and what it was to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    pub path: PathBuf,
    pub text: Option<String>,
}

/// All subjects in the order of their names, and what was odd.
#[derive(Clone, Debug)]
pub struct Layout {
    pub subjects: Vec<Subject>,
    pub notes: Vec<String>,
}

impl Layout {
    /// Finds pictures below `drawn` and `real`. Where folders of the one have the names of folders of the other, each is a
    /// subject; else all is one. `inputs` is a JSON file, {"SUBJECT": "FILE"}.
    ///
    /// # Errors
    /// A folder or file cannot be read, there are no pictures, or `inputs` names one that is not there.
    pub fn find(drawn: &Path, real: &Path, inputs: Option<&Path>) -> Result<Layout> {
        let (of_drawn, of_real) = (folders(drawn)?, folders(real)?);
        let names: Vec<&String> = of_drawn.iter().filter(|name| of_real.contains(*name)).collect();
        let prompts = Prompts::read(&real.join(PROMPTS))?;
        let mut notes = Vec::new();
        let mut subjects = Vec::new();
        if names.is_empty() {
            let name = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
            subjects.push(subject(name, drawn, real, None)?);
        } else {
            for name in of_drawn.difference(&of_real) {
                let folder = drawn.join(name);
                notes.push(format!(
                    "{} is left out: there are no real pictures of {name}",
                    folder.display()
                ));
            }
            for name in &names {
                let (drawn, real) = (drawn.join(name), real.join(name));
                subjects.push(subject((*name).clone(), &drawn, &real, prompts.as_ref())?);
            }
        }
        subjects.retain(|subject| {
            if subject.drawn.is_empty() {
                notes.push(format!("{} is left out: no picture of it was drawn", subject.name));
            } else if subject.real.is_empty() {
                notes.push(format!("{} is left out: there is no real picture of it", subject.name));
            }
            !subject.drawn.is_empty() && !subject.real.is_empty()
        });
        if subjects.is_empty() {
            let sentence = format!(
                "{} and {} hold no pictures to compare ({})",
                drawn.display(),
                real.display(),
                PICTURES.join(", ")
            );
            return Err(Error::Request(sentence));
        }
        if let Some(file) = inputs {
            take_inputs(file, &mut subjects)?;
        }
        let untold = subjects.iter().flat_map(|s| &s.drawn).filter(|d| d.text.is_none()).count();
        let all: usize = subjects.iter().map(|subject| subject.drawn.len()).sum();
        if untold > 0 && untold < all {
            notes.push(format!("{untold} of {all} drawn pictures have no text, and no CLIP-T"));
        }
        Ok(Layout { subjects, notes })
    }
}

fn subject(name: String, drawn: &Path, real: &Path, prompts: Option<&Prompts>) -> Result<Subject> {
    let of_subject = prompts.and_then(|prompts| prompts.of(&name));
    let text = |path: &PathBuf| -> Result<Option<String>> {
        let beside = path.with_extension("txt");
        if beside.is_file() {
            return Ok(Some(read(&beside)?.trim().to_owned()));
        }
        let number = path.strip_prefix(drawn).ok().and_then(number);
        Ok(of_subject.as_ref().zip(number).and_then(|(texts, number)| texts.get(number).cloned()))
    };
    let of_drawn = pictures(drawn)?.into_iter().map(|path| {
        let text = text(&path)?;
        Ok(Drawn { path, text })
    });
    Ok(Subject { drawn: of_drawn.collect::<Result<_>>()?, real: pictures(real)?, input: 0, name })
}

/// The number of the prompt, from 0, in the name of a drawn picture within its subject's folder: `03/1.png`, `03-1.png` or
/// `03_1.png`.
fn number(path: &Path) -> Option<usize> {
    let mut parts = path.iter();
    let first = parts.next()?.to_str()?;
    let digits = first.find(|c: char| !c.is_ascii_digit()).unwrap_or(first.len());
    let (number, rest) = first.split_at(digits);
    // A picture's own number alone says nothing of a prompt.
    let is_folder = parts.next().is_some();
    let tells = is_folder || rest.starts_with(['-', '_']);
    number.parse().ok().filter(|_| tells)
}

/// Which real picture of each subject was drawn from.
fn take_inputs(file: &Path, subjects: &mut [Subject]) -> Result<()> {
    let inputs: BTreeMap<String, String> = serde_json::from_str(&read(file)?).map_err(|error| {
        Error::Request(format!(
            "{}: {error}; {{\"SUBJECT\": \"FILE\"}} would be right",
            file.display()
        ))
    })?;
    for (name, input) in &inputs {
        let Some(subject) = subjects.iter_mut().find(|subject| subject.name == *name) else {
            continue;
        };
        let has_name = |path: &PathBuf| path.file_name().is_some_and(|name| name == input.as_str());
        subject.input = subject.real.iter().position(has_name).ok_or_else(|| {
            Error::Request(format!(
                "{}: there is no real picture {input} of {name}",
                file.display()
            ))
        })?;
    }
    Ok(())
}

/// The names of the folders in a folder.
fn folders(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in entries(folder)? {
        if entry.is_dir()
            && let Some(name) = entry.file_name().and_then(|name| name.to_str())
        {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::Read { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

/// The pictures in a folder and in those inside, in the order of their paths.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for path in entries(&folder)? {
            let is_hidden =
                path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            let end = path.extension().map(|end| end.to_string_lossy().to_lowercase());
            if is_hidden {
                continue;
            } else if path.is_dir() {
                if depth < DEEPEST {
                    folders.push((path, depth + 1));
                }
            } else if end.is_some_and(|end| PICTURES.contains(&&*end)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > LONGEST {
        return Err(Error::Request(format!(
            "{} is larger than such a file can be",
            path.display()
        )));
    }
    Ok(String::from_utf8_lossy(&std::fs::read(path).map_err(failed)?).into_owned())
}

/// DreamBench's classes and prompts.
struct Prompts {
    classes: BTreeMap<String, String>,
    objects: Vec<String>,
    /// For animals.
    live: Vec<String>,
}

/// The classes of DreamBench that are alive.
const ALIVE: [&str; 2] = ["cat", "dog"];

impl Prompts {
    /// Reads the file as DreamBooth's data set has it: lines `subject,class`, and two lists of texts in quotes with `{0}` for
    /// the word that is learnt and `{1}` for the class.
    fn read(path: &Path) -> Result<Option<Prompts>> {
        if !path.is_file() {
            return Ok(None);
        }
        let mut prompts =
            Prompts { classes: BTreeMap::new(), objects: Vec::new(), live: Vec::new() };
        let (mut is_live, mut is_prompts) = (false, false);
        for line in read(path)?.lines().map(str::trim) {
            let lower = line.to_lowercase();
            is_prompts |= lower.contains("prompt");
            is_live |= lower.contains("live");
            let quoted = line.split(['\'', '"']).nth(1).filter(|text| text.contains('{'));
            if let Some(text) = quoted {
                if is_live { &mut prompts.live } else { &mut prompts.objects }
                    .push(text.to_owned());
            } else if let (false, Some((name, class))) = (is_prompts, line.split_once(',')) {
                prompts.classes.insert(name.trim().to_owned(), class.trim().to_owned());
            }
        }
        Ok(Some(prompts))
    }

    /// The texts of a subject, its class in them and nothing for the word: "a dog in the jungle".
    fn of(&self, subject: &str) -> Option<Vec<String>> {
        let class = self.classes.get(subject)?;
        let texts = if ALIVE.contains(&class.as_str()) { &self.live } else { &self.objects };
        let text =
            |text: &String| text.replace("{0} ", "").replace("{0}", "").replace("{1}", class);
        Some(texts.iter().map(text).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "Classes\n====\nsubject_name,class\ncup,mug\ndog2,dog\n\nPrompts\n====\n\nObject Prompts\n----\n\
        prompt_list = [\n'a {0} {1} in the jungle'.format(unique_token, class_token),\n\
        'a red {0} {1}'.format(unique_token, class_token)\n]\n\nLive Subject Prompts\n----\nprompt_list = [\n\
        'a {0} {1} wearing a hat'.format(unique_token, class_token),\n]\n";

    fn touch(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }

    #[test]
    fn dreambench_gives_each_picture_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let (drawn, real) = (folder.path().join("drawn"), folder.path().join("real"));
        for path in ["cup/00.jpg", "cup/01.jpg", "dog2/00.jpg", "vase/00.jpg"] {
            touch(&real.join(path));
        }
        std::fs::write(real.join(PROMPTS), FILE).unwrap();
        for path in [
            "cup/00/0.png",
            "cup/01-3.png",
            "cup/7.png",
            "cup/05/0.png",
            "dog2/0_0.png",
            "lamp/0.png",
        ] {
            touch(&drawn.join(path));
        }
        let inputs = folder.path().join("inputs.json");
        std::fs::write(&inputs, r#"{"cup": "01.jpg", "clock": "00.jpg"}"#).unwrap();
        let layout = Layout::find(&drawn, &real, Some(&inputs)).unwrap();
        let [cup, dog] = &layout.subjects[..] else { panic!("{layout:?}") };
        let texts: Vec<Option<&str>> =
            cup.drawn.iter().map(|drawn| drawn.text.as_deref()).collect();
        assert_eq!(texts, [Some("a mug in the jungle"), Some("a red mug"), None, None]);
        assert_eq!(dog.drawn[0].text.as_deref(), Some("a dog wearing a hat"));
        assert_eq!((cup.input, dog.input), (1, 0));
        assert!(
            layout.notes.iter().any(|note| note.contains("lamp is left out")),
            "{:?}",
            layout.notes
        );

        std::fs::write(&inputs, r#"{"cup": "09.jpg"}"#).unwrap();
        let told = Layout::find(&drawn, &real, Some(&inputs)).unwrap_err().to_string();
        assert!(told.contains("no real picture 09.jpg of cup"), "{told}");
    }

    #[test]
    fn any_two_folders_are_one_subject() {
        let folder = tempfile::tempdir().unwrap();
        let (drawn, real) = (folder.path().join("drawn"), folder.path().join("real"));
        for path in ["b.PNG", "a/c.webp", ".hidden.png", "notes.md"] {
            touch(&drawn.join(path));
        }
        std::fs::write(drawn.join("b.txt"), " a monster\n").unwrap();
        touch(&real.join("x.jpg"));
        let layout = Layout::find(&drawn, &real, None).unwrap();
        assert_eq!(layout.subjects.len(), 1);
        let found = &layout.subjects[0];
        let texts: Vec<_> = found.drawn.iter().map(|drawn| drawn.text.as_deref()).collect();
        assert_eq!((found.name.as_str(), texts), ("real", vec![None, Some("a monster")]));
        let empty = folder.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let told = Layout::find(&empty, &real, None).unwrap_err().to_string();
        assert!(told.contains("hold no pictures"), "{told}");
        assert!(Layout::find(&folder.path().join("nowhere"), &real, None).is_err());
    }
}
