//! From a file to a [`Library`]: what can be wrong with it, each with a sentence of its own.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use kosmograph_abi as abi;
use libloading::os::unix::{Library as SharedObject, RTLD_LOCAL, RTLD_NOW};
use serde_json::Value as Json;

use super::call::Expected;
use super::{ExtensionFn, Library, NodeOutline, RunFn};
use crate::value::text_bytes;

/// The longest descriptor that is read, in bytes: a hundred times our longest.
const LONGEST_DESCRIPTOR: usize = 16 << 20;

/// Why a file cannot be used as a node library.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("{}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },

    #[error("{}: this is not a shared library ({reason})", path.display())]
    NotASharedLibrary { path: PathBuf, reason: String },

    #[error(
        "{}: it needs the shared library {missing}, which is not on this machine or not where the \
         loader looks (LD_LIBRARY_PATH)", path.display()
    )]
    MissingDependency { path: PathBuf, missing: String },

    /// dlopen's own words, where none of the above fits: an undefined symbol, a wrong architecture.
    #[error("{}: it cannot be loaded: {reason}", path.display())]
    Unloadable { path: PathBuf, reason: String },

    #[error(
        "{}: this is a shared library, but not a node library: it does not export {}",
        path.display(), abi::LIBRARY_SYMBOL
    )]
    NotANodeLibrary { path: PathBuf },

    #[error(
        "{}: it speaks version {found} of the boundary, this kosmograph speaks {}",
        path.display(), abi::ABI_MAJOR
    )]
    OtherVersion { path: PathBuf, found: u32 },

    #[error(
        "{}: its {} gave no library: it could not describe itself",
        path.display(), abi::LIBRARY_SYMBOL
    )]
    NoTable { path: PathBuf },

    #[error(
        "{}: its kg_library has {size} bytes, but version {} of the boundary has {wanted}",
        path.display(), abi::ABI_MAJOR
    )]
    TableTooSmall { path: PathBuf, size: u32, wanted: usize },

    #[error("{}: its kg_library has no function run", path.display())]
    NoRun { path: PathBuf },

    #[error("{}: its descriptor {why}", path.display())]
    DescriptorNotText { path: PathBuf, why: String },

    #[error(
        "{}: its descriptor has {length} bytes; more than {LONGEST_DESCRIPTOR} are not read",
        path.display()
    )]
    DescriptorTooLong { path: PathBuf, length: usize },

    #[error("{}: its descriptor is not JSON: {source}", path.display())]
    DescriptorNotJson { path: PathBuf, source: serde_json::Error },

    #[error("{}: its descriptor {what}", path.display())]
    DescriptorIncomplete { path: PathBuf, what: String },
}

impl PluginError {
    pub fn path(&self) -> &Path {
        match self {
            Self::Unreadable { path, .. }
            | Self::NotASharedLibrary { path, .. }
            | Self::MissingDependency { path, .. }
            | Self::Unloadable { path, .. }
            | Self::NotANodeLibrary { path }
            | Self::OtherVersion { path, .. }
            | Self::NoTable { path }
            | Self::TableTooSmall { path, .. }
            | Self::NoRun { path }
            | Self::DescriptorNotText { path, .. }
            | Self::DescriptorTooLong { path, .. }
            | Self::DescriptorNotJson { path, .. }
            | Self::DescriptorIncomplete { path, .. } => path,
        }
    }
}

/// [`abi::Library`] with function pointers that may be NULL, as memory from outside may have them.
#[repr(C)]
struct RawLibrary {
    size: u32,
    abi_major: u16,
    abi_minor: u16,
    descriptor: abi::Str,
    run: Option<RunFn>,
    extension: Option<ExtensionFn>,
}
const _: () = assert!(size_of::<RawLibrary>() == size_of::<abi::Library>());

pub(super) fn load(path: &Path) -> Result<Library, PluginError> {
    // Never unloaded, refused or not: what it handed out points into it, and its destructors are a stranger's.
    let shared = ManuallyDrop::new(open(path)?);
    let table = table(path, &shared)?;
    // SAFETY: node.h: the size stands first; more is read only as far as it goes.
    let size = unsafe { *table.cast::<u32>() };
    let begun = || PluginError::TableTooSmall {
        path: path.to_owned(),
        size,
        wanted: size_of::<abi::Library>(),
    };
    if (size as usize) < std::mem::offset_of!(RawLibrary, descriptor) {
        return Err(begun());
    }
    // SAFETY: `size` covers the version.
    let major = unsafe { (*table).abi_major };
    if major != abi::ABI_MAJOR {
        return Err(PluginError::OtherVersion { path: path.to_owned(), found: major.into() });
    }
    if (size as usize) < size_of::<RawLibrary>() {
        return Err(begun());
    }
    // SAFETY: `size` covers the struct; what a library hands out as const lives as long as the process.
    let table: &'static RawLibrary = unsafe { &*table };
    let run = table.run.ok_or_else(|| PluginError::NoRun { path: path.to_owned() })?;
    let descriptor = descriptor(path, table.descriptor)?;
    let (name, version, nodes) = outline(&descriptor)
        .map_err(|what| PluginError::DescriptorIncomplete { path: path.to_owned(), what })?;
    Ok(Library {
        path: path.to_owned(),
        name,
        version,
        abi_minor: table.abi_minor,
        descriptor,
        nodes,
        run,
        extension: table.extension,
    })
}

fn open(path: &Path) -> Result<SharedObject, PluginError> {
    let unreadable = |source| PluginError::Unreadable { path: path.to_owned(), source };
    // An absolute path: for a bare name dlopen would look elsewhere.
    let absolute = path.canonicalize().map_err(unreadable)?;
    if absolute.is_dir() {
        return Err(unreadable(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    std::fs::File::open(&absolute).map_err(unreadable)?;
    // SAFETY: loading runs the library's initialisers; whoever names a node library trusts it to that
    // extent. NOW, so that a missing symbol shows here and not in the middle of a run.
    let opened = unsafe { SharedObject::open(Some(&absolute), RTLD_NOW | RTLD_LOCAL) };
    opened.map_err(|error| {
        let reason = match &error {
            libloading::Error::DlOpen { source } => source.to_string(),
            other => other.to_string(),
        };
        explain(path, &absolute, &reason)
    })
}

/// Makes the sentence of dlopen's words, which are glibc's, musl's or macOS's.
fn explain(path: &Path, absolute: &Path, reason: &str) -> PluginError {
    let path = path.to_owned();
    let prefix = format!("{}: ", absolute.display());
    let own = reason.strip_prefix(&prefix);
    // glibc: "libx.so.1: cannot open shared object file: No such file or directory".
    let glibc = reason
        .split_once(": cannot open shared object file")
        .filter(|_| own.is_none())
        .map(|(name, _)| name);
    // musl: "Error loading shared library libx.so.1: No such file or directory (needed by …)".
    let musl = reason.strip_prefix("Error loading shared library ").filter(|_| own.is_none());
    // macOS: "dlopen(…): Library not loaded: @rpath/libx.dylib\n  Referenced from: …".
    let macos = reason.split_once("Library not loaded: ").map(|(_, rest)| rest);
    let name = glibc
        .or(musl.and_then(|rest| rest.split(':').next()))
        .or(macos.and_then(|rest| rest.split_whitespace().next()));
    if let Some(missing) = name.filter(|name| !prefix.starts_with(*name)) {
        return PluginError::MissingDependency { path, missing: missing.to_owned() };
    }
    let reason = own.unwrap_or(reason).to_owned();
    let no_library = ["invalid ELF header", "file too short", "not a mach-o file", "Exec format"];
    if no_library.iter().any(|words| reason.contains(words)) {
        return PluginError::NotASharedLibrary { path, reason };
    }
    PluginError::Unloadable { path, reason }
}

fn table(path: &Path, shared: &SharedObject) -> Result<*const RawLibrary, PluginError> {
    type TableFn = unsafe extern "C" fn() -> *const RawLibrary;
    // SAFETY: the symbol of this name is a kg_library_fn (node.h).
    let symbol = unsafe { shared.get::<TableFn>(abi::LIBRARY_SYMBOL) };
    let Ok(symbol) = symbol else {
        // The symbol's name carries the major version: does it speak another one?
        let other = (0..10u32).find(|version| {
            let name = format!("kosmograph_library_v{version}");
            // SAFETY: the symbol is looked for, not called.
            unsafe { shared.get::<TableFn>(name.as_str()) }.is_ok()
        });
        let path = path.to_owned();
        return Err(match other {
            Some(found) => PluginError::OtherVersion { path, found },
            None => PluginError::NotANodeLibrary { path },
        });
    };
    // SAFETY: node.h: takes nothing, returns what lives as long as the process, or NULL.
    let table = unsafe { symbol() };
    if table.is_null() || !table.is_aligned() {
        return Err(PluginError::NoTable { path: path.to_owned() });
    }
    Ok(table)
}

fn descriptor(path: &Path, text: abi::Str) -> Result<Json, PluginError> {
    let not_text = |why: String| PluginError::DescriptorNotText { path: path.to_owned(), why };
    // SAFETY: node.h: text that lives as long as the process.
    let bytes = unsafe { text_bytes(text) }.map_err(|why| not_text(why.to_owned()))?;
    if bytes.len() > LONGEST_DESCRIPTOR {
        let (path, length) = (path.to_owned(), bytes.len());
        return Err(PluginError::DescriptorTooLong { path, length });
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| not_text(format!("is not UTF-8 (byte {})", error.valid_up_to())))?;
    serde_json::from_str(text)
        .map_err(|source| PluginError::DescriptorNotJson { path: path.to_owned(), source })
}

/// Name, version, and of each node what a call must know.
fn outline(descriptor: &Json) -> Result<(String, String, Vec<NodeOutline>), String> {
    if !descriptor.is_object() {
        return Err("is not an object with \"name\", \"version\" and \"nodes\"".to_owned());
    }
    let text = |of: &Json, key: &str| match of.get(key).and_then(Json::as_str) {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("has no \"{key}\", which is a string that is not empty")),
    };
    let list = |of: &Json, key: &str| match of.get(key) {
        Some(Json::Array(list)) => Ok(list.clone()),
        _ => Err(format!("has no \"{key}\", which is a list")),
    };
    let (name, version) = (text(descriptor, "name")?, text(descriptor, "version")?);
    let mut nodes = Vec::new();
    for (i, node) in list(descriptor, "nodes")?.iter().enumerate() {
        let at = |what: String| format!("has a node {i} that {what}");
        let class = text(node, "class").map_err(at)?;
        let at = |what: String| format!("has a node {i}, {class}, that {what}");
        list(node, "inputs").map_err(at)?;
        let mut outputs = Vec::new();
        for output in list(node, "outputs").map_err(at)? {
            let at = |what: String| format!("has a node {i}, {class}, whose output {what}");
            let (name, kind) =
                (text(&output, "name").map_err(at)?, text(&output, "type").map_err(at)?);
            let is_list = output.get("is_list").and_then(Json::as_bool).unwrap_or(false);
            outputs.push(Expected::new(name, kind, is_list));
        }
        nodes.push(NodeOutline { class, outputs });
    }
    Ok((name, version, nodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_whoever_says_so() {
        let absolute = Path::new("/plugins/libdiffusion.so");
        let said = [
            "libcublas.so.13: cannot open shared object file: No such file or directory",
            "Error loading shared library libcublas.so.13: No such file or directory (needed by x)",
            "dlopen(x, 2): Library not loaded: libcublas.so.13\n  Referenced from: y",
        ];
        for reason in said {
            let error = explain(Path::new("libdiffusion.so"), absolute, reason);
            let PluginError::MissingDependency { missing, .. } = &error else {
                panic!("{reason} became {error}");
            };
            assert_eq!(missing, "libcublas.so.13");
        }
    }

    #[test]
    fn other_words_of_the_loader_stay() {
        let (path, absolute) = (Path::new("x.so"), Path::new("/p/x.so"));
        let error = explain(path, absolute, "/p/x.so: undefined symbol: f");
        assert_eq!(error.to_string(), "x.so: it cannot be loaded: undefined symbol: f");
        let error = explain(path, absolute, "/p/x.so: file too short");
        assert!(matches!(error, PluginError::NotASharedLibrary { .. }));
        // The file itself cannot be opened: it is no dependency of itself.
        let reason = "/p/x.so: cannot open shared object file: Permission denied";
        assert!(matches!(explain(path, absolute, reason), PluginError::Unloadable { .. }));
    }

    #[test]
    fn files_that_are_no_libraries_say_so() {
        let missing = load(Path::new("there/is/no/such.so")).unwrap_err();
        assert!(matches!(missing, PluginError::Unreadable { .. }), "{missing}");
        let folder = load(Path::new("src")).unwrap_err();
        assert!(matches!(folder, PluginError::Unreadable { .. }), "{folder}");
        let text = load(Path::new("Cargo.toml")).unwrap_err();
        assert!(matches!(text, PluginError::NotASharedLibrary { .. }), "{text}");
    }

    #[test]
    fn an_incomplete_descriptor_says_what_is_missing() {
        let why = |json| outline(&json).err().unwrap();
        use serde_json::json;
        assert!(why(json!([])).contains("not an object"));
        assert!(why(json!({"version": "1", "nodes": []})).contains("\"name\""));
        assert!(why(json!({"name": "a", "version": "1"})).contains("\"nodes\""));
        let node = json!({"name": "a", "version": "1", "nodes": [{"class": "B", "inputs": []}]});
        assert!(why(node).contains("node 0, B, that has no \"outputs\""));
    }
}
