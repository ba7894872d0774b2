//! The sum of all accounts.

use crate::account::Account;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What the whole load did and what became of it.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// One row per implementation.
    pub rows: Vec<Row>,
    /// Descriptors sent that no receiver got, plus those still open at the end that were not open at the start.
    pub fds_leaked: u64,
    /// Descriptors that went through the bus.
    pub fds_passed: u64,
    /// Short-lived connections made in passing (connect, say hello, call, disconnect).
    pub visits: u64,
    /// What went wrong, in words; the first of many.
    pub errors: Vec<String>,
}

/// The clients of one implementation, added up.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Row {
    /// The implementation.
    pub implementation: String,
    /// How many clients.
    pub clients: u64,
    /// Calls and signals sent.
    pub sent: u64,
    /// Calls, replies and signals received.
    pub received: u64,
    /// Messages that never came.
    pub lost: u64,
    /// Messages that came again.
    pub doubled: u64,
    /// Messages that came after a later one of their stream.
    pub reordered: u64,
    /// Clients that were disconnected.
    pub disconnected: u64,
}

impl Report {
    /// Joins what was sent with what was received.
    pub fn from_accounts(accounts: &[Account]) -> Report {
        let sent: BTreeMap<&str, u64> = accounts
            .iter()
            .flat_map(|a| &a.sent)
            .map(|(stream, n)| (stream.as_str(), *n))
            .collect();
        let heard: BTreeSet<&str> = accounts
            .iter()
            .flat_map(|a| a.got.iter().chain(&a.replies))
            .map(|(s, _)| s.as_str())
            .collect();
        let mut report = Report::default();
        let mut rows = BTreeMap::<&str, Row>::new();
        let mut received = 0;
        for account in accounts {
            let row = rows.entry(&account.implementation).or_default();
            row.clients += 1;
            row.sent += account.sent.iter().map(|(_, n)| n).sum::<u64>();
            for (stream, n) in &account.sent {
                if !heard.contains(stream.as_str()) && *n > 0 {
                    row.lost += n;
                    report
                        .errors
                        .push(format!("{}: nobody got any of {n} in {stream}", account.id));
                }
            }
            for (stream, counts) in account.got.iter().chain(&account.replies) {
                let tail = sent
                    .get(stream.as_str())
                    .map_or(0, |n| n.saturating_sub(counts.last));
                row.received += counts.count;
                row.lost += counts.lost + tail;
                row.doubled += counts.doubled;
                row.reordered += counts.reordered;
                if counts.lost + tail + counts.doubled + counts.reordered > 0 {
                    report.errors.push(format!(
                        "{}: {stream}: {} came, the last {}, {} missing before it, {tail} after, {} doubled, {} reordered",
                        account.id, counts.count, counts.last, counts.lost, counts.doubled, counts.reordered
                    ));
                }
            }
            if let Some(reason) = &account.disconnected {
                row.disconnected += 1;
                report
                    .errors
                    .push(format!("{}: disconnected: {reason}", account.id));
            }
            report.errors.extend(
                account
                    .errors
                    .iter()
                    .map(|error| format!("{}: {error}", account.id)),
            );
            received += account.fds_received;
            report.fds_passed += account.fds_received + account.fds_copied;
            report.fds_leaked += account.fds_left;
            if account.fds_left > 0 {
                report.errors.push(format!(
                    "{}: {} descriptors are open that were not before",
                    account.id, account.fds_left
                ));
            }
        }
        let fds_sent: u64 = accounts.iter().map(|a| a.fds_sent).sum();
        report.fds_leaked += fds_sent.abs_diff(received);
        report.rows = rows
            .into_iter()
            .map(|(implementation, row)| Row {
                implementation: implementation.to_owned(),
                ..row
            })
            .collect();
        report
    }

    /// All rows added up.
    pub fn total(&self) -> Row {
        let mut total = Row {
            implementation: "total".to_owned(),
            ..Row::default()
        };
        for row in &self.rows {
            total.clients += row.clients;
            total.sent += row.sent;
            total.received += row.received;
            total.lost += row.lost;
            total.doubled += row.doubled;
            total.reordered += row.reordered;
            total.disconnected += row.disconnected;
        }
        total
    }

    /// Nothing was lost, doubled, reordered, disconnected or leaked, and nothing else went wrong.
    pub fn is_clean(&self) -> bool {
        let total = self.total();
        total.lost + total.doubled + total.reordered + total.disconnected + self.fds_leaked == 0
            && self.errors.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24} {:>7} {:>9} {:>9} {:>6} {:>8} {:>10} {:>13}",
            "clients of", "number", "sent", "received", "lost", "doubled", "reordered", "disconnected"
        )?;
        for row in self.rows.iter().chain([&self.total()]) {
            writeln!(
                f,
                "{:<24} {:>7} {:>9} {:>9} {:>6} {:>8} {:>10} {:>13}",
                row.implementation,
                row.clients,
                row.sent,
                row.received,
                row.lost,
                row.doubled,
                row.reordered,
                row.disconnected
            )?;
        }
        writeln!(
            f,
            "descriptors passed: {}, leaked: {}; short visits: {}",
            self.fds_passed, self.fds_leaked, self.visits
        )?;
        for error in self.errors.iter().take(20) {
            writeln!(f, "error: {error}")?;
        }
        if self.errors.len() > 20 {
            writeln!(f, "error: and {} more", self.errors.len() - 20)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: &str, lines: &[&str]) -> Account {
        let mut account = Account {
            id: id.to_owned(),
            implementation: "x".to_owned(),
            ..Account::default()
        };
        lines.iter().for_each(|line| account.line(line).unwrap());
        account
    }

    #[test]
    fn a_lost_tail_is_found_by_comparing_with_the_sender() {
        let sender = account("a", &["sent s 5"]);
        let clean = Report::from_accounts(&[sender.clone(), account("b", &["got s 5 5 0 0 0"])]);
        assert!(clean.is_clean(), "{clean}");
        let tail = Report::from_accounts(&[sender.clone(), account("b", &["got s 4 4 0 0 0"])]);
        assert_eq!((tail.total().lost, tail.is_clean()), (1, false), "{tail}");
        let all = Report::from_accounts(&[sender]);
        assert_eq!(all.total().lost, 5, "{all}");
    }

    #[test]
    fn a_disconnect_or_an_error_is_not_clean() {
        for line in ["disconnected why", "error what"] {
            assert!(!Report::from_accounts(&[account("a", &[line])]).is_clean());
        }
    }
}
