//! What a process that runs a stranger's library may touch.
//!
//! On Linux: Landlock says which files may be read and written, and that signals stay inside; a seccomp
//! filter refuses sockets, other programs, and what would lead around the two. Both hold for this
//! process and all that it starts, and cannot be taken back. Elsewhere there is none, which is told.

use crate::folders::Folders;
use crate::plan::{Literal, Plan, Source};
use crate::python::PythonPack;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How deep, and how many, entries of folders are looked through for links.
const DEEPEST: usize = 8;
const MOST: usize = 20_000;

/// What every program reads: libraries of the system, time zones, what the kernel says of the machine. Not
/// all of /proc: Landlock lets environments of other processes be read there.
const SYSTEM: [&str; 24] = [
    "/usr",
    "/lib",
    "/lib64",
    "/lib32",
    "/bin",
    "/opt",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/OpenCL",
    "/proc/cpuinfo",
    "/proc/devices",
    "/proc/driver",
    "/proc/filesystems",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/stat",
    "/proc/sys",
    "/proc/version",
    "/proc/vmstat",
    "/sys",
];

/// What is another file in each process: opened by the one that is confined.
#[cfg(target_os = "linux")]
const OWN: &str = "/proc/self";

/// What the kernel starts before a program: it opens it to execute it, too.
const LOADERS: [&str; 5] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];

/// Devices that are written to as well; what begins so is one.
const DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/nvidia", "/dev/dri"];

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Files and folders that may be read, with all that is in them.
    read: Vec<Place>,
    /// Folders in which files may be made, written and deleted.
    write: Vec<Place>,
    /// Devices.
    devices: Vec<PathBuf>,
    /// Programs that may be started: a Python, and what loads it. None, where there are no nodes in Python.
    #[serde(default)]
    execute: Vec<Place>,
}

/// A file or folder, and which one it was: a rule is about that one, whatever is called so later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    path: PathBuf,
    identity: (u64, u64),
}

impl Place {
    /// `None` where there is nothing.
    fn of(path: &Path) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let metadata = fs::metadata(&path).ok()?;
        Some(Self { path, identity: (metadata.dev(), metadata.ino()) })
    }
}

impl Sandbox {
    /// What jobs with these folders need: models and pictures to read, where their links lead, the folders
    /// of node `libraries`, the system; output and temp to write, which must be there.
    pub fn of(folders: &Folders, libraries: &[PathBuf]) -> Self {
        let models = folders.models.iter().cloned();
        let extra = folders.extra.iter().map(|extra| extra.path.clone());
        let pictures = folders.input.iter().cloned();
        let roots: Vec<PathBuf> = models.chain(extra).chain(pictures).collect();
        let mut paths: BTreeSet<PathBuf> = roots.iter().cloned().collect();
        let mut left = MOST;
        for root in &roots {
            links(root, 0, &mut left, &mut paths);
        }
        for library in libraries {
            paths.insert(library.clone());
            // A library may bring others, which lie beside it.
            paths.extend(
                library.canonicalize().ok().and_then(|path| Some(path.parent()?.to_owned())),
            );
        }
        paths.extend(SYSTEM.map(PathBuf::from));
        if let Some(searched) = std::env::var_os("LD_LIBRARY_PATH") {
            paths.extend(std::env::split_paths(&searched).filter(|path| path.is_absolute()));
        }
        let read = paths.iter().filter_map(|path| Place::of(path)).collect();
        let write = [&folders.output, &folders.temp];
        let write = write.into_iter().filter_map(|path| Place::of(path)).collect();
        let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
        let devices = entries.map(|entry| entry.path());
        let is_needed = |path: &PathBuf| {
            DEVICES.iter().any(|device| path.as_os_str().to_string_lossy().starts_with(device))
        };
        let mut devices: Vec<PathBuf> = devices.filter(is_needed).collect();
        devices.sort();
        Self { read, write, devices, execute: Vec::new() }
    }

    /// The same with what processes of Python need: packs and the interpreters' own folders to read, the interpreters to
    /// start. They and whatever else is started are in this sandbox too.
    pub fn with_packs<'a>(mut self, packs: impl IntoIterator<Item = &'a PythonPack>) -> Self {
        for PythonPack { program, path, reads, .. } in packs {
            let places = reads.iter().chain([path]).filter_map(|path| Place::of(path));
            let programs = LOADERS.iter().map(Path::new).chain([program.as_path()]);
            self.execute.extend(programs.filter_map(Place::of));
            self.read.extend(places);
        }
        self
    }

    /// Whether a process in it can run `plan`: every file that the plan names lies, its links followed, in
    /// what may be read, and the folders to write are still those.
    pub fn covers(&self, plan: &Plan) -> bool {
        let is_same = |place: &Place| Place::of(&place.path).as_ref() == Some(place);
        let is_inside = |path: &Path| {
            let mut places = self.read.iter().chain(&self.write);
            path.canonicalize().map_or(true, |real| {
                places.any(|place| real.starts_with(&place.path) && is_same(place))
            })
        };
        let inputs = plan.steps().iter().flat_map(|step| &step.inputs);
        let mut paths = inputs.filter_map(|source| match source {
            Source::Literal(Literal::Path { path, .. }) => Some(Path::new(path.as_str())),
            _ => None,
        });
        self.write.iter().all(is_same) && paths.all(is_inside)
    }

    /// Whether this system can confine a process at all.
    pub fn is_possible() -> bool {
        #[cfg(target_os = "linux")]
        {
            // Asked for no rules but for the version, the call makes nothing.
            const VERSION: libc::c_ulong = 1;
            // SAFETY: with this flag the kernel reads no memory of ours: the pointer is null, the size 0.
            let version = unsafe {
                libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION)
            };
            version >= 1
        }
        #[cfg(not(target_os = "linux"))]
        false
    }

    /// Confines this process, for good.
    ///
    /// # Errors
    /// It cannot be confined.
    #[cfg(target_os = "linux")]
    pub fn enter(&self) -> io::Result<()> {
        linux::enter(self)
    }

    /// Confines this process, for good.
    ///
    /// # Errors
    /// Always: this system has no way to.
    #[cfg(not(target_os = "linux"))]
    pub fn enter(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Adds where the links in `folder`, and in what they lead to, lead.
fn links(folder: &Path, depth: usize, left: &mut usize, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Some(fewer) = left.checked_sub(1) else { return };
        *left = fewer;
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if kind.is_symlink() {
            let Ok(real) = path.canonicalize() else { continue };
            // One that was there before was looked through.
            if found.insert(real.clone()) && real.is_dir() && depth < DEEPEST {
                links(&real, depth + 1, left, found);
            }
        } else if kind.is_dir() && depth < DEEPEST {
            links(&path, depth + 1, left, found);
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Place, Sandbox};
    use landlock::{
        ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
        RulesetCreatedAttr, RulesetStatus, Scope,
    };
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };
    use std::collections::BTreeMap;
    use std::io;
    use std::path::Path;

    /// The newest rules that are asked for; an older kernel enforces those it knows.
    const RULES: ABI = ABI::V6;

    pub(super) fn enter(sandbox: &Sandbox) -> io::Result<()> {
        let failed = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
        files(sandbox).map_err(|error| failed(&error))?;
        let filter = calls(!sandbox.execute.is_empty()).map_err(|error| failed(&error))?;
        seccompiler::apply_filter(&filter).map_err(|error| failed(&error))
    }

    fn files(sandbox: &Sandbox) -> Result<(), Box<dyn std::error::Error>> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        // Links, pipes and devices of a node's making would be read by others, with their rights.
        let special = AccessFs::MakeSym
            | AccessFs::MakeFifo
            | AccessFs::MakeSock
            | AccessFs::MakeBlock
            | AccessFs::MakeChar
            | AccessFs::IoctlDev
            | AccessFs::Execute;
        let write = AccessFs::from_all(RULES) & !special;
        let device =
            AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev | AccessFs::ReadDir;
        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(RULES))?
            .scope(Scope::from_all(RULES))?
            .create()?;
        let places = sandbox.read.iter().map(|place| (place, read));
        let places = places.chain(sandbox.write.iter().map(|place| (place, write)));
        for (Place { path, .. }, access) in places {
            rules = add(rules, path, access)?;
        }
        rules = add(rules, Path::new(super::OWN), read)?;
        for Place { path, .. } in &sandbox.execute {
            rules = add(rules, path, AccessFs::ReadFile | AccessFs::Execute)?;
        }
        for path in &sandbox.devices {
            rules = add(rules, path, device)?;
        }
        let status = rules.restrict_self()?;
        if status.ruleset == RulesetStatus::NotEnforced {
            return Err("this kernel has no Landlock, or it is switched off".into());
        }
        Ok(())
    }

    /// A path that is not there any more needs no rule.
    fn add(
        rules: landlock::RulesetCreated,
        path: &Path,
        access: BitFlags<AccessFs>,
    ) -> Result<landlock::RulesetCreated, landlock::RulesetError> {
        let Ok(file) = PathFd::new(path) else { return Ok(rules) };
        // What only folders can be asked for is not asked for of a file.
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(RULES) };
        rules.add_rule(PathBeneath::new(file, access))
    }

    /// Calls that are refused with EACCES: the network, other programs, other processes' memory, and what
    /// does any of it by another way. Where a program `starts`, Landlock says which one that may be.
    fn calls(starts: bool) -> Result<BpfProgram, Box<dyn std::error::Error>> {
        let mut refused: Vec<i64> = vec![
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_open_by_handle_at,
        ];
        refused.retain(|&call| !starts || (call != libc::SYS_execve && call != libc::SYS_execveat));
        refused.sort_unstable();
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            refused.into_iter().map(|call| (call, Vec::new())).collect();
        // Typing into the terminal of whoever started the server would execute there.
        let types = |request: u64| -> Result<SeccompRule, seccompiler::BackendError> {
            let condition =
                SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?;
            SeccompRule::new(vec![condition])
        };
        rules.insert(libc::SYS_ioctl, vec![types(libc::TIOCSTI)?, types(libc::TIOCLINUX)?]);
        let errno = u32::try_from(libc::EACCES)?;
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(errno),
            std::env::consts::ARCH.try_into()?,
        )?;
        Ok(filter.try_into()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_resolved_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["models/checkpoints", "input", "out", "temp", "hub/blobs", "far"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("hub/blobs/abc"), "x").unwrap();
        fs::write(path("far/model.pt"), "x").unwrap();
        symlink(path("hub/blobs/abc"), path("models/checkpoints/a.safetensors")).unwrap();
        symlink(path("far"), path("models/loras")).unwrap();
        symlink(path("models"), path("models/checkpoints/round")).unwrap();
        let folders = Folders {
            models: vec![path("models")],
            input: vec![path("input")],
            output: path("out"),
            temp: path("temp"),
            ..Folders::default()
        };
        let sandbox = Sandbox::of(&folders, &[]);
        let reads = |name: &str| {
            let real = path(name).canonicalize().unwrap();
            sandbox.read.iter().any(|place| real.starts_with(&place.path))
        };
        assert!(reads("models/checkpoints/a.safetensors") && reads("models/loras/model.pt"));
        assert!(reads("input") && !reads("out"), "{sandbox:?}");
        assert!(!sandbox.read.iter().any(|place| place.path == path("hub/blobs")));
        let line = serde_json::to_string(&sandbox).unwrap();
        assert_eq!(serde_json::from_str::<Sandbox>(&line).unwrap(), sandbox);
    }
}
