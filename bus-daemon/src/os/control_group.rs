//! Where the files of this process's memory control group are.

use std::path::PathBuf;

/// Where the groups of version 2 may be mounted, the likeliest last.
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
/// Where those of version 1 are.
const MEMORY: &str = "/sys/fs/cgroup/memory";
/// No limit is as large.
const UNLIMITED: u64 = 1 << 62;

/// A control group that counts the memory of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Group {
    /// Of version 1.
    First(PathBuf),
    /// Of version 2.
    Second(PathBuf),
}

/// What `/proc/self/cgroup` says; nothing where there is none.
pub(crate) fn own() -> Vec<Group> {
    named_in(&std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
}

/// Where the group may be, for what `/proc/self/cgroup` says: version 2 first.
pub(crate) fn named_in(groups: &str) -> Vec<Group> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            for root in UNIFIED.iter().rev() {
                found.insert(0, Group::Second(PathBuf::from(root).join(path)));
            }
        } else if controllers.split(',').any(|controller| controller == "memory") {
            found.push(Group::First(PathBuf::from(MEMORY).join(path)));
        }
    }
    found
}

/// The least memory that any of these groups, or a group around one, may use; `None`: none of them says.
pub(crate) fn memory_limit(groups: &[Group]) -> Option<u64> {
    limited(groups).iter().filter_map(Limited::limit).min()
}

/// Those of these groups, and of the groups around them, that have a limit.
pub(crate) fn limited(groups: &[Group]) -> Vec<Limited> {
    let all = groups.iter().flat_map(|group| {
        let (Group::First(directory) | Group::Second(directory)) = group;
        let is_first = matches!(group, Group::First(_));
        // Inside of a container the path is that of the outside, and the files are those of the root.
        let around = directory
            .ancestors()
            .take_while(|path| path.starts_with("/sys/fs/cgroup"));
        around.map(move |path| Limited {
            directory: path.to_owned(),
            is_first,
        })
    });
    all.filter(|group| group.limit().is_some()).collect()
}

/// A group with a limit, which may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limited {
    directory: PathBuf,
    /// Of version 1.
    is_first: bool,
}

impl Limited {
    /// Bytes that those in it may use together; what version 2 begins to slow them down for counts. `None`: no limit.
    fn limit(&self) -> Option<u64> {
        if self.is_first {
            return self.number("memory.limit_in_bytes");
        }
        let limits = ["memory.max", "memory.high"].map(|file| self.number(file));
        limits.into_iter().flatten().min()
    }

    /// The limit, and how many bytes are left of it: pages of files that the kernel can take back at any time are.
    pub(crate) fn left(&self) -> Option<(u64, u64)> {
        let limit = self.limit()?;
        let (usage, files) = if self.is_first {
            (
                "memory.usage_in_bytes",
                ["total_inactive_file ", "total_active_file "],
            )
        } else {
            ("memory.current", ["inactive_file ", "active_file "])
        };
        let stat = self.read("memory.stat").unwrap_or_default();
        let of_files: u64 = files.iter().filter_map(|name| field(&stat, name)).sum();
        let used = self.number(usage)?.saturating_sub(of_files);
        Some((limit, limit.saturating_sub(used)))
    }

    fn number(&self, file: &str) -> Option<u64> {
        // Without a limit version 1 has the largest number of pages, and version 2 says `max`.
        number(&self.read(file)?).filter(|number| *number < UNLIMITED)
    }

    fn read(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.directory.join(file)).ok()
    }
}

/// The number behind a name in lines of names and numbers.
fn field(text: &str, name: &str) -> Option<u64> {
    number(text.lines().find_map(|line| line.strip_prefix(name))?)
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found() {
        assert_eq!(
            named_in("4:memory:/a/b\n1:name=systemd:/x\n0::/c\n"),
            [
                Group::Second("/sys/fs/cgroup/unified/c".into()),
                Group::Second("/sys/fs/cgroup/c".into()),
                Group::First("/sys/fs/cgroup/memory/a/b".into()),
            ]
        );
        assert!(named_in("").is_empty() && named_in("nonsense\n:\n").is_empty());
    }

    #[test]
    fn a_limit_is_a_number() {
        assert_eq!(number("419430400\n"), Some(400 << 20));
        assert_eq!(number("max\n"), None);
        let stat = "cache 5\ntotal_inactive_file 4096\ninactive_file 7\n";
        assert_eq!(field(stat, "inactive_file "), Some(7));
        assert_eq!(field(stat, "active_file "), None);
        assert_eq!(memory_limit(&[]), None);
        assert_eq!(
            memory_limit(&[Group::First("/sys/fs/cgroup/no/such/group".into())]),
            None
        );
    }
}
