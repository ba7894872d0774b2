//! How often the kernel has killed a process of the keeper's control group for want of memory.

use std::path::PathBuf;

/// The file that counts, if the system has one.
#[derive(Debug)]
pub(crate) struct MemoryGroup {
    counter: Option<PathBuf>,
}

impl MemoryGroup {
    /// That of this process.
    pub(crate) fn own() -> Self {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self {
            counter: candidates(&groups)
                .into_iter()
                .find(|path| std::fs::read_to_string(path).is_ok_and(|text| count(&text).is_some())),
        }
    }

    /// How often, so far; always 0 where the system does not tell.
    pub(crate) fn kills(&self) -> u64 {
        let text = self.counter.as_ref().map(std::fs::read_to_string);
        text.and_then(Result::ok)
            .and_then(|text| count(&text))
            .unwrap_or(0)
    }
}

/// Where the count may be, for what `/proc/self/cgroup` says: version 2 first.
fn candidates(groups: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
                found.insert(0, PathBuf::from(root).join(path).join("memory.events"));
            }
        } else if controllers.split(',').any(|controller| controller == "memory") {
            found.push(
                PathBuf::from("/sys/fs/cgroup/memory")
                    .join(path)
                    .join("memory.oom_control"),
            );
        }
    }
    found
}

/// The line `oom_kill N`.
fn count(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
    lines.next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_both_versions() {
        assert_eq!(
            count("low 0\nhigh 1\nmax 2\noom 4\noom_kill 3\noom_group_kill 9\n"),
            Some(3)
        );
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\n"), None);
        let paths = candidates("4:memory:/a/b\n1:name=systemd:/x\n0::/c\n");
        let paths: Vec<_> = paths.iter().filter_map(|path| path.to_str()).collect();
        assert_eq!(
            paths,
            [
                "/sys/fs/cgroup/unified/c/memory.events",
                "/sys/fs/cgroup/c/memory.events",
                "/sys/fs/cgroup/memory/a/b/memory.oom_control"
            ]
        );
        assert!(candidates("").is_empty());
    }
}
