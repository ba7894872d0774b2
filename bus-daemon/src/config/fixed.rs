//! What a reload cannot change: it was done once, when the bus was started.

use super::Config;

impl Config {
    /// The elements in which `other` says something else and that count only when a bus is started.
    pub fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let differs = [
            ("<listen>", self.listen != other.listen),
            ("<type>", self.bus_type != other.bus_type),
            ("<user>", self.user != other.user),
            ("<fork>", self.fork != other.fork),
            ("<keep_umask>", self.keep_umask != other.keep_umask),
            ("<pidfile>", self.pid_file != other.pid_file),
            ("<syslog>", self.syslog != other.syslog),
        ];
        let differing = differs.into_iter().filter(|(_, differs)| *differs);
        differing.map(|(element, _)| element).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_done_at_the_start_is_named() {
        let before = Config::default();
        let mut after = before.clone();
        after.limits.auth_timeout = 1;
        after.allow_anonymous = true;
        after.service_helper = Some("/h".into());
        assert!(before.fixed_differences(&after).is_empty());
        after.listen = vec!["unix:path=/a".into()];
        after.pid_file = Some("/p".into());
        assert_eq!(before.fixed_differences(&after), ["<listen>", "<pidfile>"]);
    }
}
