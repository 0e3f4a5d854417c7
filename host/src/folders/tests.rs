use super::*;
use proptest::prelude::*;

struct Place {
    folder: tempfile::TempDir,
    folders: Folders,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for path in ["models/checkpoints/sub", "models/clip", "models/tiny/sd/unet", "in", "out"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for path in [
        "models/checkpoints/sub/a.safetensors",
        "models/clip/c.safetensors",
        "models/tiny/sd/model_index.json",
        "models/tiny/sd/unet/config.json",
        "models/tiny/sd/unet/diffusion_pytorch_model.safetensors",
        "in/cat.png",
        "in/notes.txt",
        "out/made.png",
        "secret.png",
    ] {
        fs::write(root.join(path), path).unwrap();
    }
    let folders = Folders {
        models: vec![root.join("models")],
        input: vec![root.join("in")],
        output: root.join("out"),
        temp: root.join("temp"),
        ..Folders::default()
    };
    Place { folder, folders }
}

impl Place {
    fn find(&self, folder: &str, name: &str) -> Result<String, String> {
        let found = self.folders.resolve(folder, Entry::Any, name, Origin::File);
        let inside =
            |path: PathBuf| path.strip_prefix(self.folder.path()).unwrap().display().to_string();
        found.map(inside).map_err(|error| error.to_string())
    }
}

#[test]
fn names_are_found_by_kind_alias_and_root() {
    let place = place();
    let found = |folder, name| place.find(folder, name).unwrap();
    let a = "models/checkpoints/sub/a.safetensors";
    assert_eq!(found("checkpoints", "sub/a.safetensors"), a);
    assert_eq!(found("checkpoints", "sub\\a.safetensors"), a);
    assert_eq!(found("text_encoders", "c.safetensors"), "models/clip/c.safetensors");
    assert_eq!(found("clip", "c.safetensors"), "models/clip/c.safetensors");
    assert_eq!(found("checkpoints", "tiny/sd"), "models/tiny/sd");
    assert_eq!(found("input", "cat.png"), "in/cat.png");
    assert_eq!(found("input", "made.png [output]"), "out/made.png");
    assert_eq!(found("output", "made.png [output]"), "out/made.png");
    let missing = place.find("input", "x.png [temp]").unwrap_err();
    assert!(missing.contains("nothing was written there"), "{missing}");
}

#[test]
fn a_workflow_stays_inside_its_folders() {
    let place = place();
    let secret = place.folder.path().join("secret.png");
    for name in ["../secret.png", "a/../../secret.png", secret.to_str().unwrap(), "a\0b", "..\\x"] {
        let sentence = place.find("input", name).unwrap_err();
        assert!(sentence.contains("leads out"), "{sentence}");
    }
    let given =
        place.folders.resolve("input", Entry::File, secret.to_str().unwrap(), Origin::CommandLine);
    assert_eq!(given.unwrap(), secret);
    for (name, wanted) in [
        ("/nowhere/x.png", Entry::File),
        ("../../../none.png", Entry::File),
        ("/no/folder", Entry::Directory),
    ] {
        let given = place.folders.resolve("input", wanted, name, Origin::CommandLine);
        let sentence = given.unwrap_err().to_string();
        let said =
            if wanted == Entry::File { "there is no file /" } else { "there is no folder /" };
        assert!(
            sentence.starts_with(said) && sentence.ends_with(name.rsplit('/').next().unwrap()),
            "{sentence}"
        );
    }
}

#[cfg(unix)]
#[test]
fn links_are_the_persons_own_and_followed() {
    use std::os::unix::fs::symlink;
    let place = place();
    let root = place.folder.path();
    // Another disk, a hub's cache.
    let disk = tempfile::tempdir().unwrap();
    for path in ["loras/deep", "pictures", "vae"] {
        fs::create_dir_all(disk.path().join(path)).unwrap();
    }
    for path in ["loras/style.pt", "loras/deep/other.pt", "pictures/dog.png", "vae/blob"] {
        fs::write(disk.path().join(path), path).unwrap();
    }
    symlink(disk.path().join("loras"), root.join("models/loras")).unwrap();
    symlink(disk.path().join("pictures"), root.join("in/below")).unwrap();
    symlink(disk.path().join("pictures/dog.png"), root.join("in/dog.png")).unwrap();
    symlink(disk.path().join("pictures"), root.join("linked output")).unwrap();
    fs::create_dir_all(root.join("models/vae")).unwrap();
    symlink(disk.path().join("vae/blob"), root.join("models/vae/v.safetensors")).unwrap();

    assert_eq!(place.find("loras", "style.pt").unwrap(), "models/loras/style.pt");
    assert_eq!(place.find("loras", "deep/other.pt").unwrap(), "models/loras/deep/other.pt");
    assert_eq!(place.find("vae", "v.safetensors").unwrap(), "models/vae/v.safetensors");
    assert_eq!(place.find("input", "dog.png").unwrap(), "in/dog.png");
    assert_eq!(place.find("input", "below/dog.png").unwrap(), "in/below/dog.png");
    assert_eq!(place.folders.names("loras", Entry::File), ["deep/other.pt", "style.pt"]);
    assert_eq!(place.folders.names("vae", Entry::File), ["v.safetensors"]);
    let folders = Folders { output: root.join("linked output"), ..place.folders.clone() };
    assert!(folders.resolve("input", Entry::File, "dog.png [output]", Origin::File).is_ok());
    // A name climbs out of no folder, linked or not.
    for name in ["../secret.png", "below/../../secret.png", "below/../../models/loras/style.pt"] {
        assert!(place.find("input", name).unwrap_err().contains("leads out"), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_named() {
    use std::os::unix::fs::symlink;
    let place = place();
    let root = place.folder.path();
    let disk = root.join("not mounted");
    symlink(&disk, root.join("models/loras")).unwrap();
    symlink(disk.join("dog.png"), root.join("in/linked.png")).unwrap();
    symlink(&disk, root.join("in/below")).unwrap();
    for (folder, name, link) in [
        ("loras", "style.pt", "models/loras"),
        ("input", "linked.png", "in/linked.png"),
        ("input", "below/dog.png", "in/below"),
        ("input", "below/deep/dog.png", "in/below"),
    ] {
        let sentence = place.find(folder, name).unwrap_err();
        let said = format!("{link} is a link to {}", disk.display());
        assert!(sentence.contains(&said) && sentence.contains("cannot be reached"), "{sentence}");
    }
    let sentence = place.find("input", "none.png").unwrap_err();
    assert!(!sentence.contains("is a link"), "{sentence}");
    // What lies elsewhere is found nevertheless.
    fs::write(root.join("models/style.pt"), "").unwrap();
    assert_eq!(place.find("loras", "style.pt").unwrap(), "models/style.pt");
}

#[cfg(unix)]
#[test]
fn a_link_back_ends() {
    let place = place();
    let sd = place.folder.path().join("models/tiny/sd");
    std::os::unix::fs::symlink("..", sd.join("unet/again")).unwrap();
    std::os::unix::fs::symlink("../..", place.folder.path().join("models/checkpoints/all"))
        .unwrap();
    assert!(identity(&sd, Identify::SizeAndTime).is_ok());
    let names = place.folders.names("checkpoints", Entry::Any);
    assert!(names.contains(&"sub/a.safetensors".to_owned()), "{names:?}");
    assert!(names.iter().all(|name| !name.contains("all/checkpoints/all")), "{names:?}");
}

#[test]
fn a_mention_is_found_in_folders_below() {
    let place = place();
    let root = place.folder.path();
    for path in ["models/embeddings/b/deep", "models/embeddings/a", "models/checkpoints/a"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for path in ["b/deep/moss-v1.2.safetensors", "b/both.pt", "a/both.bin", "a/plain.pt"] {
        fs::write(root.join("models/embeddings").join(path), path).unwrap();
    }
    fs::write(root.join("models/checkpoints/a/not-one.pt"), "").unwrap();
    let find = |name: &str| {
        let found = place.folders.resolve_mention("embeddings", name);
        let inside = |path: PathBuf| path.strip_prefix(root).unwrap().display().to_string();
        found.map(inside).map_err(|error| error.to_string())
    };
    let below = |path: &str| Ok(format!("models/embeddings/{path}"));
    assert_eq!(find("moss-v1.2"), below("b/deep/moss-v1.2.safetensors"));
    assert_eq!(find("deep/moss-v1.2"), below("b/deep/moss-v1.2.safetensors"));
    assert_eq!(find("moss-v1.2.safetensors"), below("b/deep/moss-v1.2.safetensors"));
    assert_eq!(find("both"), below("a/both.bin"), "the nearer folder, then by name");
    assert_eq!(find("plain"), below("a/plain.pt"));
    assert!(find("not-one").unwrap_err().contains("there is no \"not-one\""));
    assert!(find("../checkpoints/a/not-one").unwrap_err().contains("leads out"));
}

#[test]
fn names_are_of_the_kind() {
    let place = place();
    let root = place.folder.path().join("models");
    for path in [
        "loras",
        "tiny/loras",
        "tiny/controlnet/canny",
        "tiny/sd/vae",
        "tiny/evaluate",
        "checkpoints/other/unet",
    ] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for path in [
        "loras/style.safetensors",
        "tiny/evaluate/judge.safetensors",
        "tiny/loras/pencil.safetensors",
        "tiny/controlnet/canny/config.json",
        "tiny/sd/vae/config.json",
        "checkpoints/other/model_index.json",
        "checkpoints/other/unet/config.json",
        "loose.ckpt",
    ] {
        fs::write(root.join(path), path).unwrap();
    }
    let names = |folder, entry| place.folders.names(folder, entry);
    assert_eq!(
        names("checkpoints", Entry::Any),
        ["loose.ckpt", "other", "sub/a.safetensors", "tiny/sd"]
    );
    let loras = ["loose.ckpt", "style.safetensors", "tiny/loras/pencil.safetensors"];
    assert_eq!(names("loras", Entry::File), loras);
    assert_eq!(names("controlnet", Entry::Directory), ["tiny/controlnet/canny", "tiny/sd"]);
    assert_eq!(names("vae", Entry::Directory), ["tiny/sd", "tiny/sd/vae"]);
    assert_eq!(names("diffusion_models", Entry::Directory), ["tiny/sd", "tiny/sd/unet"]);
}

#[test]
fn what_is_there_is_offered() {
    let folders = place();
    fs::create_dir(folders.folder.path().join("in/below")).unwrap();
    fs::write(folders.folder.path().join("in/below/dog.png"), "").unwrap();
    let names = |folder, entry| folders.folders.names(folder, entry);
    assert_eq!(names("input", Entry::File), ["cat.png"]);
    assert_eq!(names("checkpoints", Entry::Any), ["sub/a.safetensors", "tiny/sd"]);
    assert_eq!(names("clip", Entry::File), ["c.safetensors"]);
    assert_eq!(names("vae", Entry::Directory), ["tiny/sd"]);
}

#[test]
fn a_file_for_a_folder_is_said() {
    let place = place();
    let found = place.folders.resolve("input", Entry::Directory, "cat.png", Origin::File);
    assert_eq!(found.unwrap_err().to_string(), "\"cat.png\" is a file; a folder is wanted");
    assert!(place.find("input", "dog.png").unwrap_err().contains("there is no \"dog.png\" in"));
    assert_eq!(place.find("input", "").unwrap_err(), "names no file");
}

#[test]
fn a_changed_file_is_another() {
    let place = place();
    let file = place.folder.path().join("models/tiny/sd/unet/config.json");
    let folder = place.folder.path().join("models/tiny/sd");
    let of = |path: &Path| identity(path, Identify::SizeAndTime).unwrap();
    let before = (of(&file), of(&folder));
    assert_eq!(before, (of(&file), of(&folder)));
    fs::write(&file, "something else").unwrap();
    assert_ne!(before.0, of(&file));
    assert_ne!(before.1, of(&folder));
    assert!(identity(Path::new("/nowhere/at/all"), Identify::SizeAndTime).is_err());
}

#[test]
fn a_file_is_recognised_by_its_contents_when_asked() {
    let place = place();
    let file = place.folder.path().join("models/tiny/sd/unet/config.json");
    let folder = place.folder.path().join("models/tiny/sd");
    let of = |path: &Path, identify| identity(path, identify).unwrap();
    let before =
        [Identify::SizeAndTime, Identify::Contents].map(|how| (of(&file, how), of(&folder, how)));
    let changed = fs::metadata(&file).unwrap().modified().unwrap();
    // Another one of the same length and time.
    let other = "x".repeat(fs::metadata(&file).unwrap().len() as usize);
    fs::write(&file, other).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(changed).unwrap();
    let after =
        [Identify::SizeAndTime, Identify::Contents].map(|how| (of(&file, how), of(&folder, how)));
    assert_eq!(before[0], after[0], "which is why one may ask");
    assert_ne!(before[1].0, after[1].0);
    assert_ne!(before[1].1, after[1].1);
    // The same one with another time.
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!(of(&file, Identify::Contents), after[1].0);
    assert_ne!(of(&file, Identify::SizeAndTime), after[0].0);
}

/// ComfyUI's own folder with a file of model paths, and what it leads to.
fn comfy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for path in
        ["comfy/models/checkpoints", "comfy/input", "a1111/models/Lora", "a1111/ckpt", "first"]
    {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for path in [
        "comfy/models/checkpoints/both.ckpt",
        "comfy/models/checkpoints/mine.ckpt",
        "comfy/input/cat.png",
        "a1111/models/Lora/style.pt",
        "a1111/ckpt/mine.ckpt",
        "a1111/ckpt/theirs.ckpt",
        "first/both.ckpt",
    ] {
        fs::write(root.join(path), path).unwrap();
    }
    let text = "a111:\n  base_path: ../a1111\n  checkpoints: ckpt\n  loras: |\n    models/Lora\n    none\n\
                mine:\n  is_default: true\n  base_path: ..\n  checkpoints: first\n";
    fs::write(root.join("comfy").join(extra_paths::FILE_NAME), text).unwrap();
    folder
}

#[test]
fn a_comfyui_folder_is_taken_as_it_is() {
    let folder = comfy();
    let root = folder.path();
    for given in ["comfy", "comfy/models"] {
        let models = [root.join(given)];
        let folders = Folders::find(Given { models: &models, ..Given::default() }).unwrap();
        let found = |kind: &str, name: &str| {
            let path = folders.resolve(kind, Entry::File, name, Origin::File).unwrap();
            path.strip_prefix(root).unwrap().display().to_string()
        };
        assert_eq!(found("checkpoints", "both.ckpt"), "first/both.ckpt", "the default comes first");
        assert_eq!(found("checkpoints", "mine.ckpt"), "comfy/models/checkpoints/mine.ckpt");
        assert_eq!(found("checkpoints", "theirs.ckpt"), "a1111/ckpt/theirs.ckpt");
        assert_eq!(found("loras", "style.pt"), "a1111/models/Lora/style.pt");
        let names = folders.names("checkpoints", Entry::File);
        assert!(
            ["both.ckpt", "mine.ckpt", "theirs.ckpt"]
                .iter()
                .all(|one| names.contains(&(*one).to_owned()))
        );
        assert_eq!(folders.input.contains(&root.join("comfy/input")), given == "comfy");
        let out = folders.resolve("loras", Entry::File, "../../ckpt/theirs.ckpt", Origin::File);
        assert!(out.unwrap_err().to_string().contains("leads out"));
    }
}

#[test]
fn a_file_of_paths_is_given_or_found_but_not_a_strangers() {
    let folder = comfy();
    let root = folder.path();
    let file = [root.join("comfy").join(extra_paths::FILE_NAME)];
    for given in [
        Given { models: &file, ..Given::default() },
        Given { extra_model_paths: &file, ..Given::default() },
    ] {
        let extra = Folders::find(given).unwrap().extra;
        assert!(extra.iter().any(|extra| extra.path == root.join("first") && extra.is_default));
    }
    // A workflow's own folder may be anybody's.
    fs::create_dir(root.join("comfy/workflows")).unwrap();
    let workflow = root.join("comfy/workflows");
    let folders = Folders::find(Given { workflow: Some(&workflow), ..Given::default() }).unwrap();
    assert!(folders.models.contains(&workflow.join("../models")));
    assert!(!folders.extra.iter().any(|extra| extra.path == root.join("first")));

    fs::write(&file[0], "a: b").unwrap();
    let error = Folders::find(Given { extra_model_paths: &file, ..Given::default() }).unwrap_err();
    assert!(
        error.to_string().contains("extra_model_paths.yaml, line 1: section a is a text"),
        "{error}"
    );
    let missing = [root.join("none.yaml")];
    let error =
        Folders::find(Given { extra_model_paths: &missing, ..Given::default() }).unwrap_err();
    assert!(error.to_string().contains("none.yaml: cannot be read"), "{error}");
}

proptest! {
    #[test]
    fn whatever_is_found_is_inside(name in "[./\\\\a-c~ ]{0,12}|\\PC{0,12}") {
        let place = place();
        if let Ok(path) = place.folders.resolve("input", Entry::Any, &name, Origin::File) {
            let root = place.folders.input[0].canonicalize().unwrap();
            prop_assert!(path.canonicalize().unwrap().starts_with(root));
        }
    }
}
