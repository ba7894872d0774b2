//! Descriptors of which state and log know handles.

use std::collections::BTreeSet;
use std::os::fd::RawFd;

use bus_wire::Fd;

use super::Journal;
use crate::broker::Fds;
use crate::os::descriptor;

impl Journal {
    /// A handle for a descriptor that comes with the next record. `None`: there are no more handles.
    pub(crate) fn assign(&mut self, number: RawFd) -> Option<Fd> {
        self.manifest.assign(number, self.log.sequence())
    }

    /// The number that a handle stands for.
    pub(crate) fn number(&self, handle: Fd) -> Option<RawFd> {
        self.manifest.number(handle)
    }

    /// Closes a descriptor; its handle is free again.
    pub(crate) fn close(&mut self, handle: Fd) {
        if let Some(number) = self.number(handle) {
            descriptor::close(number);
            self.manifest.forget(handle);
        }
    }

    /// Closes descriptors; their handles are free again. Those that came together have numbers in a row as a rule, and one
    /// system call is enough for them.
    pub(crate) fn close_all(&mut self, handles: &[Fd]) {
        let mut rest = handles;
        while let Some((first, others)) = rest.split_first() {
            let Some(number) = self.number(*first) else {
                rest = others;
                continue;
            };
            let follow = (number + 1..).zip(others);
            let in_a_row = follow.take_while(|(next, handle)| self.number(**handle) == Some(*next));
            let count = in_a_row.count();
            if count == 0 {
                descriptor::close(number);
            } else {
                descriptor::close_range(number, number + count as RawFd);
            }
            let (closed, left) = rest.split_at(count + 1);
            closed.iter().for_each(|handle| self.manifest.forget(*handle));
            rest = left;
        }
    }

    /// Which descriptor numbers the log's records and the state before them tell of.
    pub(crate) fn known_numbers(&self) -> BTreeSet<RawFd> {
        self.manifest.known(self.log.sequence())
    }

    /// Only these handles are in use from now on.
    pub(crate) fn settle_handles(&mut self, owned: &BTreeSet<Fd>) {
        self.manifest.settle(owned);
    }

    /// A handle of a state that another process image saved, and the number that it stands for there as here.
    pub(crate) fn restore_handle(&mut self, handle: Fd, number: RawFd) -> bool {
        self.manifest.restore(handle, number)
    }

    /// The number of a handle of the state that was recovered. `None`: the manifest is damaged there.
    pub(crate) fn verified_number(&self, handle: Fd) -> Option<RawFd> {
        self.manifest.verified(handle)
    }

    /// Handles for descriptors that the system has just given, to come with the next record. Those for which there is none
    /// are closed.
    pub(super) fn assign_all(&mut self, numbers: &[RawFd]) -> Fds {
        let mut handles = Fds::new();
        for &number in numbers {
            match self.assign(number) {
                Some(handle) => handles.push(handle),
                None => descriptor::close(number),
            }
        }
        handles
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    /// Numbers near the end of the table, where others that are opened meanwhile do not come.
    fn in_a_row(count: RawFd) -> Vec<RawFd> {
        let first = descriptor::most_open().min(1 << 16) as RawFd - 64;
        let stdin = descriptor::borrow(0);
        let numbers = (0..count).map(|_| fcntl(stdin, FcntlArg::F_DUPFD_CLOEXEC(first)).unwrap());
        let numbers: Vec<RawFd> = numbers.collect();
        assert!(numbers.is_sorted_by(|one, next| one + 1 == *next));
        numbers
    }

    #[test]
    fn descriptors_are_closed_in_whatever_order_their_numbers_are() {
        let mut journal = Journal::create().unwrap();
        // Eight numbers in a row of which none is in use, and that no other test is given while this one has them.
        let numbers = in_a_row(8);
        let open = |journal: &mut Journal, number: RawFd| {
            descriptor::replace(0, number).unwrap();
            journal.assign(number).unwrap()
        };
        for order in [
            [0, 1, 2, 3, 5, 4, 7, 6],
            [0, 2, 4, 6, 1, 3, 5, 7],
            [7, 6, 5, 4, 0, 1, 2, 3],
        ] {
            let handles: Vec<Fd> = order
                .iter()
                .map(|place| open(&mut journal, numbers[*place]))
                .collect();
            let kept = handles[4];
            let closed: Vec<Fd> = handles.iter().copied().filter(|handle| *handle != kept).collect();
            journal.close_all(&closed);
            let left: Vec<RawFd> = numbers
                .iter()
                .copied()
                .filter(|fd| descriptor::is_open(*fd))
                .collect();
            assert_eq!(left, [numbers[order[4]]], "{order:?}");
            assert!(closed.iter().all(|handle| journal.number(*handle).is_none()));
            // A handle that is free stands for nothing that could be closed again.
            journal.close_all(&handles);
            assert!(numbers.iter().all(|fd| !descriptor::is_open(*fd)), "{order:?}");
        }
    }
}
