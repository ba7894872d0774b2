//! Where the files of this process's memory control group are.

use std::path::PathBuf;

/// Where the groups of version 2 may be mounted, the likeliest last.
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
/// Where those of version 1 are.
const MEMORY: &str = "/sys/fs/cgroup/memory";

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
    let limits = groups.iter().flat_map(|group| {
        let (directory, file) = match group {
            Group::First(directory) => (directory, "memory.limit_in_bytes"),
            Group::Second(directory) => (directory, "memory.max"),
        };
        // Inside of a container the path is that of the outside, and the files are those of the root.
        let around = directory
            .ancestors()
            .take_while(|path| path.starts_with("/sys/fs/cgroup"));
        around.filter_map(move |path| limit(&std::fs::read_to_string(path.join(file)).ok()?))
    });
    limits.min()
}

/// A limit as both versions write it: a number, or `max`.
fn limit(text: &str) -> Option<u64> {
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
        assert_eq!(limit("419430400\n"), Some(400 << 20));
        assert_eq!(limit("max\n"), None);
        assert_eq!(memory_limit(&[]), None);
        assert_eq!(
            memory_limit(&[Group::First("/sys/fs/cgroup/no/such/group".into())]),
            None
        );
    }
}
