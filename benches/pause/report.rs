//! The table.

use std::io::Write;

use crate::Pauses;
use crate::floor::Floor;

/// Durations in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Series(Vec<u64>);

impl Series {
    pub(crate) fn add(&mut self, nanoseconds: u64) {
        self.0.push(nanoseconds);
        self.0.sort_unstable();
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn median(&self) -> u64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(0)
    }

    fn least(&self) -> u64 {
        self.0.first().copied().unwrap_or(0)
    }
}

/// One number of connections.
pub(crate) struct Line {
    pub(crate) size: usize,
    pub(crate) floor: Floor,
    pub(crate) pauses: Pauses,
}

pub(crate) fn head() {
    print(
        "All in milliseconds, median (least). Pause: the daemon's own count, from the last act of the old worker to the\n\
         first of the new one. Seen: the longest wait of a client that pings all the time. Floor: exec that keeps so many\n\
         sockets, plus clearing and setting close-on-exec on them. Aim: 2 x floor + 5 us per connection.\n\n\
         connections           pause            seen           floor  (exec  clear  set)               aim",
    );
}

pub(crate) fn line(line: &Line) {
    let Line { size, floor, pauses } = line;
    let sum = |pick: fn(&Series) -> u64| pick(&floor.exec) + pick(&floor.clear) + pick(&floor.set);
    let (median, least) = (sum(Series::median), sum(Series::least));
    let aim = |floor: u64| 2 * floor + 5_000 * *size as u64;
    print(&format!(
        "{size:>11} {:>15} {:>15} {:>15}  ({} {} {}) {:>15}  {}",
        both(pauses.told.median(), pauses.told.least()),
        both(pauses.seen.median(), pauses.seen.least()),
        both(median, least),
        milliseconds(floor.exec.median()),
        milliseconds(floor.clear.median()),
        milliseconds(floor.set.median()),
        both(aim(median), aim(least)),
        if pauses.told.median() <= aim(median) {
            "met"
        } else {
            "missed"
        },
    ));
}

/// How long the bus stands still when its worker is killed.
pub(crate) fn recoveries(all: &[(usize, Series, Pauses)]) {
    if all.is_empty() {
        return;
    }
    print(
        "\nThe worker killed. Told: the daemon's own count, from when the death was noticed to the first act of the next\n\
         worker. Floor: SIGKILL, reaping and starting a process that shares so many descriptors.\n\n\
         connections            told            seen           floor",
    );
    for (size, floor, recoveries) in all {
        print(&format!(
            "{size:>11} {:>15} {:>15} {:>15}",
            both(recoveries.told.median(), recoveries.told.least()),
            both(recoveries.seen.median(), recoveries.seen.least()),
            both(floor.median(), floor.least()),
        ));
    }
}

fn both(median: u64, least: u64) -> String {
    format!("{} ({})", milliseconds(median), milliseconds(least))
}

fn milliseconds(nanoseconds: u64) -> String {
    format!("{:.2}", nanoseconds as f64 / 1e6)
}

fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
