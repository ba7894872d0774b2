//! When the worker wakes up by itself.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use crate::broker::Millis;

/// After so many waits in a row that wanted no alarm it is turned off.
const PATIENCE: u32 = 16;

/// Rings at the earliest time that was wanted since it was set.
///
/// To set it costs two system calls, and each wait while it is set costs a little more. So it is not moved where it is
/// wanted later, nor turned off at once where it is not wanted any more: each connection wants it between its accept and
/// its Hello. To ring too early costs one turn.
#[derive(Default)]
pub(super) struct Alarm {
    set: Option<(Millis, Pin<Box<Sleep>>)>,
    /// Waits since it was last wanted.
    unwanted: u32,
}

impl Alarm {
    /// The next wait is to end at this time, or at any.
    pub(super) fn want(&mut self, due: Option<Millis>) {
        match (due, &mut self.set) {
            (None, None) => {}
            (None, Some(_)) => {
                self.unwanted += 1;
                if self.unwanted >= PATIENCE {
                    self.set = None;
                }
            }
            (Some(due), Some((at, _))) if *at <= due => self.unwanted = 0,
            (Some(due), _) => {
                let left = due.0.saturating_sub(super::now().0);
                self.set = Some((due, Box::pin(sleep(Duration::from_millis(left)))));
                self.unwanted = 0;
            }
        }
    }

    /// Ends when it has rung, which it does once.
    pub(super) async fn ring(&mut self) {
        match &mut self.set {
            Some((_, sleep)) => sleep.as_mut().await,
            None => std::future::pending().await,
        }
        self.set = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::now;

    /// How many milliseconds pass until it rings; `None`: it does not within a second.
    async fn rings_after(alarm: &mut Alarm) -> Option<u64> {
        let begin = now();
        let rung = tokio::time::timeout(Duration::from_secs(1), alarm.ring()).await;
        rung.ok().map(|()| now().0 - begin.0)
    }

    #[tokio::test]
    async fn it_rings_once_and_at_the_earliest_time_wanted() {
        let mut alarm = Alarm::default();
        let begin = now();
        for after in [700, 200, 400] {
            alarm.want(Some(Millis(begin.0 + after)));
        }
        assert!(matches!(rings_after(&mut alarm).await, Some(150..600)));
        assert_eq!(rings_after(&mut alarm).await, None);
    }

    #[tokio::test]
    async fn it_is_turned_off_where_it_is_not_wanted_any_more() {
        let mut alarm = Alarm::default();
        let soon = Some(Millis(now().0 + 100));
        alarm.want(soon);
        for _ in 0..PATIENCE - 1 {
            alarm.want(None);
        }
        assert!(alarm.set.is_some());
        alarm.want(None);
        assert_eq!(rings_after(&mut alarm).await, None);
        alarm.want(soon);
        assert!(rings_after(&mut alarm).await.is_some());
    }
}
