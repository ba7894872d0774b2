//! How often the kernel has killed a process of the keeper's control group for want of memory.

use std::path::PathBuf;

use crate::os::control_group::{self, Group};

/// The file that counts, if the system has one.
#[derive(Debug)]
pub(crate) struct MemoryGroup {
    counter: Option<PathBuf>,
}

impl MemoryGroup {
    /// That of this process.
    pub(crate) fn own() -> Self {
        let files = control_group::own().into_iter().map(|group| match group {
            Group::First(directory) => directory.join("memory.oom_control"),
            Group::Second(directory) => directory.join("memory.events"),
        });
        let counts = |path: &PathBuf| std::fs::read_to_string(path).is_ok_and(|text| count(&text).is_some());
        Self {
            counter: files.into_iter().find(counts),
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
    }
}
