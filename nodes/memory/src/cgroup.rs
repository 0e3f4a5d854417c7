//! What the cgroups that this process is in leave it: version 2's `memory.max`, version 1's
//! `memory.limit_in_bytes`, of its own group and of each around it.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The least that a cgroup leaves; `None` where none has a limit.
pub(crate) fn available() -> Option<u64> {
    static FOLDERS: OnceLock<Vec<Folder>> = OnceLock::new();
    let folders = FOLDERS.get_or_init(|| {
        let read = |path| read_to_string(path).unwrap_or_default();
        folders(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
    });
    folders.iter().filter_map(Folder::available).min()
}

/// A cgroup's folder.
#[derive(Debug, PartialEq, Eq)]
struct Folder {
    path: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Folder {
    /// Its limit less what its processes use; pages of files do not count, they are given up first.
    fn available(&self) -> Option<u64> {
        let [limit, usage, inactive, active] = match self.version {
            Version::One => [
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
                "total_active_file",
            ],
            Version::Two => ["memory.max", "memory.current", "inactive_file", "active_file"],
        };
        let number =
            |name: &str| read_to_string(self.path.join(name)).ok()?.trim().parse::<u64>().ok();
        // "max", or in version 1 a number near 2⁶³, is none.
        let limit = number(limit).filter(|limit| *limit < 1 << 60)?;
        let usage = number(usage)?;
        let stat = read_to_string(self.path.join("memory.stat")).unwrap_or_default();
        let part = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let files = part(inactive).saturating_add(part(active));
        Some(limit.saturating_sub(usage.saturating_sub(files)))
    }
}

/// The folders of the cgroups around this process that may have a limit on memory, from `/proc/self/cgroup` and
/// `/proc/self/mountinfo`.
fn folders(cgroup: &str, mountinfo: &str) -> Vec<Folder> {
    let mut folders = Vec::new();
    for line in cgroup.lines() {
        // "4:memory:/path", or "0::/path" for version 2.
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let version = match (number, controllers) {
            ("0", "") => Version::Two,
            (_, controllers) if controllers.split(',').any(|name| name == "memory") => Version::One,
            _ => continue,
        };
        let Some((root, mount)) = mount_of(version, mountinfo) else { continue };
        // In a container the mount may begin at the process' own group, whose path is still told from outside.
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let mut folder = mount.join(below);
        while folder.starts_with(&mount) {
            folders.push(Folder { path: folder.clone(), version });
            if !folder.pop() {
                break;
            }
        }
    }
    folders
}

/// The root within the hierarchy, and the place, where the memory controller's is mounted.
fn mount_of(version: Version, mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    mountinfo.lines().find_map(|line| {
        // "36 35 98:0 /root /place options … - type source super-options"
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let (name, options) = (kind.next()?, kind.nth(1)?);
        let fits = match version {
            Version::Two => name == "cgroup2",
            Version::One => name == "cgroup" && options.split(',').any(|option| option == "memory"),
        };
        let mut mount = mount.split(' ').skip(3);
        fits.then_some((PathBuf::from(mount.next()?), PathBuf::from(mount.next()?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    fn paths(folders: &[Folder]) -> Vec<&str> {
        folders.iter().filter_map(|folder| folder.path.to_str()).collect()
    }

    #[test]
    fn the_groups_around_a_process() {
        let two = folders(
            "0::/user.slice/session.scope\n",
            "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert_eq!(
            paths(&two),
            [
                "/sys/fs/cgroup/user.slice/session.scope",
                "/sys/fs/cgroup/user.slice",
                "/sys/fs/cgroup"
            ]
        );
        // Docker without a namespace for cgroups: mounted from its own group on.
        let one = folders(
            "9:name=systemd:/docker/abc\n4:cpu,memory:/docker/abc/inner\n",
            "1 2 0:1 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
             1 2 0:1 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n",
        );
        assert_eq!(paths(&one), ["/sys/fs/cgroup/memory/inner", "/sys/fs/cgroup/memory"]);
        assert!(one.iter().all(|folder| folder.version == Version::One));
        assert!(folders("nonsense\n::\n", "").is_empty());
    }

    #[test]
    fn limits_less_what_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let (outer, inner) = (folder.path(), folder.path().join("inner"));
        create_dir_all(&inner).unwrap();
        write(inner.join("memory.max"), "max\n").unwrap();
        write(inner.join("memory.current"), "900\n").unwrap();
        write(outer.join("memory.max"), "5000\n").unwrap();
        write(outer.join("memory.current"), "3000\n").unwrap();
        write(outer.join("memory.stat"), "anon 1\nactive_file 200\ninactive_file 300\n").unwrap();
        let of = |path: &Path, version| Folder { path: path.to_owned(), version }.available();
        assert_eq!(of(&inner, Version::Two), None);
        assert_eq!(of(outer, Version::Two), Some(2500));
        assert_eq!(of(outer, Version::One), None);
        write(outer.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        write(outer.join("memory.usage_in_bytes"), "1\n").unwrap();
        assert_eq!(of(outer, Version::One), None);
        write(outer.join("memory.limit_in_bytes"), "1000\n").unwrap();
        write(outer.join("memory.usage_in_bytes"), "1500\n").unwrap();
        assert_eq!(of(outer, Version::One), Some(0));
    }
}
