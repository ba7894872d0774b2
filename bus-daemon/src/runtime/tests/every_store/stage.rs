//! The bus under test: the worker's process, the memory it shares, the clients, and the look at each store.

#![allow(unsafe_code, reason = "shared memory, and descriptors by number")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use bus_wire::Fd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::told::Kind;
use super::super::{Random, record};
use super::client::{self, Client};
use super::judge::Judge;
use super::keeper::{Keeper, inode};
use super::life::{self, Beginning, KINDS, live, order};
use super::succession::Given;
use super::watch::{self, Report, what};
use crate::broker::PeerId;
use crate::handoff::keeper::KeeperV1;
use crate::journal::{Journal, Mirror, Position, Remains, Sabotage, Serving};
use crate::keeper::Cause;
use crate::runtime::recover;

/// Descriptors have smaller numbers.
const MOST_FDS: RawFd = 1024;
/// What is made in the middle of an event, while there are few clients, has a smaller one.
pub(super) const FEW_FDS: RawFd = 128;
/// How long a worker may be silent.
const PATIENCE: u16 = 20_000;

/// What was looked at.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) stores: u64,
    pub(super) calls: u64,
    /// Events that were watched.
    pub(super) events: BTreeMap<Kind, u64>,
    /// Checkpoints that were watched.
    pub(super) checkpoints: u64,
    /// Times that the log went on in another segment.
    pub(super) segments: u64,
    pub(super) kills: u64,
    /// Of those, before the successor of a killed worker was ready.
    pub(super) kills_in_recovery: u64,
    /// Connections that recovery found accepted and not noted, and known and not closed.
    pub(super) adopted: u64,
    pub(super) ended: u64,
    /// Descriptors that came in with messages.
    pub(super) fds: u64,
    /// Recoveries that had to have a descriptor made anew.
    pub(super) other_fds: u64,
    /// Stores into the checkpoints' memory.
    pub(super) entries: u64,
    /// Writes that a full socket refused.
    pub(super) full: u64,
    /// Workers that died by their own fault.
    pub(super) faults: u64,
    /// Times that the state went over to another worker in an image.
    pub(super) handed: u64,
    /// Of those, because no other binary could be executed.
    pub(super) returned: u64,
    /// Large messages that were half in when the state went over.
    pub(super) inputs: u64,
    /// Workers that were killed before they served what an image had.
    pub(super) kills_in_restore: u64,
}

/// A mistake that somebody other than the memory makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mistake {
    /// What the keeper told is acknowledged before it is in the journal.
    AcknowledgeFirst,
    /// The state that is restored is an old one.
    StaleImage,
    /// The unit that is left out is a neighbour's.
    LeaveOutAnother,
}

pub(super) struct Stage {
    pub(super) random: Random,
    pub(super) clients: Vec<Option<Client>>,
    pub(super) counts: Counts,
    /// A worker is killed once in so many stores; 0 = never.
    pub(super) kill_rate: usize,
    /// No more are killed than that.
    pub(super) most_kills: u64,
    /// A worker is killed as soon as an accepted connection is in the log.
    pub(super) kills_at_accept: bool,
    /// Workers are killed around what the keeper tells.
    pub(super) kills_at_told: bool,
    pub(super) sabotage: Option<Sabotage>,
    pub(super) mistake: Option<Mistake>,
    pub(super) keeper: Keeper,
    pub(super) record: KeeperV1,
    pub(super) remains: Remains,
    pub(super) serving: Serving,
    /// The image is to be restored by whoever comes, since nobody has served it.
    pub(super) given: Option<Given>,
    /// The image could not be replaced: the next worker begins with this journal, and restores the image.
    pub(super) pending: Option<Journal>,
    /// The image of the first upgrade, where it is to be restored again by mistake.
    pub(super) stale: Option<Vec<u8>>,
    /// The inode of the image that the present journal began with.
    pub(super) image_inode: u64,
    pub(super) mirror: Mirror,
    pub(super) judge: Judge,
    /// Every byte of output that is known, for each client.
    pub(super) streams: Vec<Vec<u8>>,
    /// The worker's ends of the connections, and whose they are.
    pub(super) sockets: BTreeMap<RawFd, usize>,
    /// What the state owned when it was last looked at.
    pub(super) owned: Vec<RawFd>,
    /// The client that has sent poison, and which peer it was.
    pub(super) doomed: Option<(usize, Option<PeerId>)>,
    /// The newest unit that somebody else sent.
    pub(super) innocent: u64,
    /// Whose connection was accepted last.
    accepted: Option<usize>,
    is_watched: bool,
    is_ready: bool,
    pub(super) segment: u32,
    worker: Option<Pid>,
    reports: std::io::PipeReader,
    answers: std::io::PipeWriter,
    /// The worker's ends of the two pipes above.
    worker_pipes: (std::io::PipeWriter, std::io::PipeReader),
    /// Descriptors that are not the bus's.
    pub(super) kept: Vec<RawFd>,
    pub(super) passed: std::fs::File,
    pub(super) path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Stage {
    /// A bus without clients, whose worker is being watched.
    pub(super) fn new(random: Random) -> Result<Self, String> {
        life::arrange();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let record = record(&path);
        let journal = Journal::create().unwrap();
        let remains = journal.remains();
        let (reports, to_test) = std::io::pipe().unwrap();
        let (from_test, answers) = std::io::pipe().unwrap();
        let mut stage = Self {
            random,
            clients: Vec::new(),
            counts: Counts::default(),
            kill_rate: 0,
            most_kills: u64::MAX,
            kills_at_accept: false,
            kills_at_told: false,
            sabotage: None,
            mistake: None,
            keeper: Keeper::new(),
            serving: journal.serving(),
            given: None,
            pending: None,
            stale: None,
            image_inode: 0,
            owned: Vec::new(),
            doomed: None,
            innocent: 0,
            mirror: Mirror::of(remains).unwrap(),
            judge: Judge::default(),
            streams: Vec::new(),
            sockets: BTreeMap::new(),
            accepted: None,
            is_watched: false,
            is_ready: false,
            segment: 0,
            worker: None,
            reports,
            answers,
            worker_pipes: (to_test, from_test),
            kept: Vec::new(),
            passed: std::fs::File::open("/dev/null").unwrap(),
            path,
            _directory: directory,
            record,
            remains,
        };
        let of_keeper = stage.keeper.fds();
        stage.kept = open_fds(MOST_FDS).filter(|fd| !of_keeper.contains(fd)).collect();
        stage.start(Beginning::Clean(journal))?;
        stage.order(order::WATCH)?;
        Ok(stage)
    }

    /// Starts a worker. False: it was killed.
    pub(super) fn start(&mut self, beginning: Beginning) -> Result<bool, String> {
        let record = self.record.clone();
        let (remains, inbox, kept) = (self.remains, self.keeper.outbox().inbox(), self.kept());
        let outbox = self.keeper.outbox().mapping();
        let pipes = (self.worker_pipes.0.as_raw_fd(), self.worker_pipes.1.as_raw_fd());
        self.is_ready = false;
        self.is_watched = !matches!(beginning, Beginning::Clean(_));
        let never = |_: &std::io::Error| false;
        let pid = crate::runtime::process::spawn(never, || {
            watch::install(&remains, outbox, pipes.0, pipes.1);
            live(record, remains, inbox, beginning, &kept)
        })
        .unwrap();
        self.worker = Some(pid);
        self.record.control.wake_worker();
        self.follow()
    }

    /// What belongs to the test, or to the keeper whose part it plays.
    pub(super) fn kept(&mut self) -> Vec<RawFd> {
        let image = self.image();
        let mut kept = self.keeper.fds();
        kept.extend(self.kept.iter().chain([&image]));
        kept.extend(self.clients.iter().flatten().map(Client::fd));
        kept
    }

    /// The image that the journal's beginning is, as long as there is no checkpoint.
    pub(super) fn image(&self) -> RawFd {
        if self.remains.has_checkpoint() {
            return -1;
        }
        self.record.image
    }

    /// Has an order carried out; if the worker is killed meanwhile, until a successor is ready.
    pub(super) fn order(&mut self, order: u8) -> Result<(), String> {
        let epoch = self.remains.epoch();
        if order == order::TURN && self.keeper.end_errands(&mut self.random) {
            self.record.control.wake_worker();
        }
        let is_rash = order == order::TURN && self.mistake == Some(Mistake::AcknowledgeFirst);
        self.answer(if is_rash { order::RASH } else { order });
        let mut is_alive = self.follow()?;
        let has_died = !is_alive;
        while !is_alive {
            is_alive = self.succeed()?;
        }
        self.keeper.listen(self.record.control, &mut self.random)?;
        if self.is_watched {
            self.counts.checkpoints += self.remains.epoch().saturating_sub(epoch);
            self.judge.at_rest()?;
            if !self.mirror.is_equal().unwrap() {
                return Err("something wrote to the journal's memory and was not seen".into());
            }
            if order == order::TURN && !has_died {
                self.keeper.at_rest()?;
            }
            self.compare_descriptors()?;
        }
        self.is_watched = match order {
            order::WATCH => true,
            order::LEAVE => false,
            _ => self.is_watched,
        };
        if !self.is_watched || order == order::WATCH {
            self.mirror.copy_all().unwrap();
            self.sockets = (3..MOST_FDS)
                .filter(|fd| !self.kept.contains(fd))
                .filter_map(|fd| Some((fd, client::owner(fd)?)))
                .collect();
        }
        if !self.is_watched {
            // What was sent unseen is known when it is read.
            for index in 0..self.clients.len() {
                while self.read(index, 64 << 10)? > 0 {}
            }
        }
        Ok(())
    }

    /// From here on a worker is killed once in so many stores, and a few in all: where a recovery takes more stores than
    /// that, kills without end would let none come to its end.
    pub(super) fn kill_a_few(&mut self, kill_rate: usize) {
        self.kill_rate = kill_rate;
        self.most_kills = self.counts.kills + 8;
    }

    /// Workers that ended.
    pub(super) fn deaths(&self) -> u64 {
        self.counts.kills + self.counts.faults + self.counts.handed
    }

    /// Nothing is open that belongs to nobody.
    fn compare_descriptors(&mut self) -> Result<(), String> {
        let others = self.others();
        // The worker keeps one descriptor for when the table is full.
        if others.len() > 1 {
            let paths: Vec<_> = others
                .iter()
                .map(|fd| (fd, std::fs::read_link(format!("/proc/self/fd/{fd}"))))
                .collect();
            return Err(format!("descriptors belong to nobody: {paths:?}"));
        }
        Ok(())
    }

    /// Looks at each store until the order is carried out; false when the worker has died.
    fn follow(&mut self) -> Result<bool, String> {
        loop {
            let report = self.next_report()?;
            match report.what {
                what::STORED => {
                    self.counts.stores += 1;
                    self.counts.entries += u64::from(self.remains.is_checkpoint(report.first as usize));
                    self.mirror.copy_written(report.first as usize, 0);
                }
                what::CALLED => {
                    self.counts.calls += 1;
                    self.note_call(&report);
                }
                what::HANDLED => {
                    self.note_event(&report)?;
                    self.answer(order::GO_ON);
                    continue;
                }
                what::DYING => {
                    self.answer(order::GO_ON);
                    let pid = self.worker.take().ok_or("nobody dies")?;
                    let status = waitpid(pid, None).unwrap();
                    if !matches!(status, WaitStatus::Signaled(_, Signal::SIGABRT, _)) {
                        return Err(format!("the worker died otherwise: {status:?}"));
                    }
                    self.counts.faults += 1;
                    self.died(Cause::OwnFault)?;
                    return Ok(false);
                }
                what::ENDED => {
                    let handed = self.counts.handed;
                    self.died(Cause::OwnFault)?;
                    if self.counts.handed == handed {
                        return Err("the worker has ended without a word".into());
                    }
                    return Ok(false);
                }
                _ => {
                    self.is_ready = true;
                    return Ok(true);
                }
            }
            let at = format!("after {report:x?}");
            let found = self.examine().map_err(|error| format!("{error}, {at}"))?;
            let is_killed = (self.kill_rate > 0
                && self.counts.kills < self.most_kills
                && self.random.below(self.kill_rate) == 0)
                || (self.kills_at_accept
                    && self
                        .accepted
                        .take_if(|client| found.taken.contains_key(client))
                        .is_some())
                || (self.kills_at_told && self.is_telling(&report, found.heard));
            let is_applying = self.remains.is_applying() && self.is_ready;
            self.judge
                .found(found, is_applying)
                .map_err(|error| format!("{error}, {at}"))?;
            if is_killed {
                self.kill();
                self.counts.kills += 1;
                self.counts.kills_in_recovery += u64::from(!self.is_ready);
                self.died(Cause::Outside)
                    .map_err(|error| format!("{error}, {at}"))?;
                return Ok(false);
            }
            self.answer(order::GO_ON);
        }
    }

    /// Something that the keeper told is between unheard and done with; one such moment of a few.
    fn is_telling(&mut self, report: &Report, heard: u64) -> bool {
        let is_acknowledged = report.what == what::STORED && self.keeper.is_in_sheet(report.first);
        let is_journaled = heard > self.keeper.heard();
        (is_acknowledged && self.random.below(3) == 0) || (is_journaled && self.random.below(60) == 0)
    }

    fn next_report(&mut self) -> Result<Report, String> {
        let mut pipe = [PollFd::new(
            std::os::fd::AsFd::as_fd(&self.reports),
            PollFlags::POLLIN,
        )];
        for _ in 0..PATIENCE / 10 {
            if poll(&mut pipe, PollTimeout::from(10_u16)).unwrap() > 0 {
                let mut bytes = [0; size_of::<Report>()];
                self.reports.read_exact(&mut bytes).unwrap();
                // SAFETY: plain integers.
                return Ok(unsafe { bytes.as_ptr().cast::<Report>().read_unaligned() });
            }
            if let Some(pid) = self.worker {
                let status = waitpid(pid, Some(WaitPidFlag::WNOHANG)).unwrap();
                if status == WaitStatus::StillAlive {
                    continue;
                }
                self.worker = None;
                if matches!(status, WaitStatus::Exited(_, 0)) {
                    return Ok(Report::plain(what::ENDED));
                }
                return Err(format!("the worker died: {status:?}"));
            }
        }
        Err("the worker hangs".into())
    }

    fn answer(&mut self, answer: u8) {
        self.answers.write_all(&[answer]).unwrap();
    }

    fn kill(&mut self) {
        if let Some(pid) = self.worker.take() {
            kill(pid, Signal::SIGKILL).unwrap();
            waitpid(pid, None).unwrap();
        }
    }

    fn note_call(&mut self, report: &Report) {
        let (number, fd) = (report.first as i64, report.second as RawFd);
        if number == libc::SYS_accept4 && report.third >= 0 {
            let socket = report.third as RawFd;
            if let Some(owner) = client::owner(socket) {
                if owner.is_multiple_of(2) {
                    client::narrow(socket);
                }
                self.sockets.insert(socket, owner);
                self.accepted = Some(owner);
            }
        } else if number == libc::SYS_close {
            self.sockets.remove(&fd);
        } else if number == libc::SYS_sendmmsg && report.third == -i64::from(libc::EAGAIN) {
            self.counts.full += 1;
        }
        if number == libc::SYS_fallocate {
            self.mirror.copy_all().unwrap();
        } else {
            self.mirror.copy_called();
        }
        if report.fourth != 0 {
            self.mirror
                .copy_written(report.fourth as usize, report.fifth as usize);
        }
    }

    fn note_event(&mut self, report: &Report) -> Result<(), String> {
        let kind = KINDS[(report.first & 0xff) as usize];
        let socket = (report.first >> 8).checked_sub(1).map(|handle| Fd(handle as i32));
        let peer = PeerId::from_u64(report.second);
        let state = life::told_state(report.fifth);
        self.keeper.handled(kind, report.second)?;
        let received = matches!(kind, Kind::Received | Kind::ReceivedLarge)
            .then(|| client::owner(self.remains.number(socket?)?))
            .flatten()
            .map(|client| (client, report.third as u64));
        if kind == Kind::Received && received.map(|(owner, _)| owner) != self.doomed.map(|(doomed, _)| doomed)
        {
            self.innocent = self.remains.records() - 1;
        }
        if self.is_watched {
            *self.counts.events.entry(kind).or_default() += 1;
            self.counts.fds += report.fourth;
        }
        self.judge
            .handled(received, state, self.remains.records(), self.is_watched)
            .map_err(|error| format!("{error}: {kind:?} of peer {}", peer.index))
    }

    /// A new client.
    pub(super) fn connect(&mut self) {
        let index = self.clients.len();
        // One of them takes no descriptors.
        let client = Client::connect(index, &self.path, index != 1);
        self.clients.push(Some(client));
        self.streams.push(Vec::new());
    }

    /// A client reads.
    pub(super) fn read(&mut self, index: usize, len: usize) -> Result<usize, String> {
        let Some(client) = &mut self.clients[index] else {
            return Ok(0);
        };
        let at = client.read;
        let bytes = client.read(len);
        self.agree(index, at, &bytes)?;
        Ok(bytes.len())
    }

    /// Where the log ends.
    pub(super) fn end(&mut self) -> Position {
        let mut journal = Journal::reopen(self.mirror.copy()).unwrap();
        recover::replay(&mut journal, -1, None).unwrap();
        let end = journal.end();
        self.mirror.undo_replay(journal).unwrap();
        end
    }

    /// The number of the newest complete checkpoint.
    pub(super) fn epoch(&self) -> u64 {
        self.remains.epoch()
    }

    /// Descriptors that are open and belong neither to the test, nor to the keeper, nor to the state.
    pub(super) fn others(&mut self) -> Vec<RawFd> {
        let kept = self.kept();
        open_fds(MOST_FDS)
            .filter(|fd| !kept.contains(fd) && !self.owned.contains(fd) && !self.sockets.contains_key(fd))
            // The image is closed at a checkpoint by itself, or by the next worker.
            .filter(|fd| ![self.image_inode, self.keeper.spare].contains(&inode(*fd)))
            .collect()
    }
}

pub(super) fn open_fds(limit: RawFd) -> impl Iterator<Item = RawFd> {
    (0..limit).filter(|fd| nix::fcntl::fcntl(borrowed(*fd), nix::fcntl::FcntlArg::F_GETFD).is_ok())
}

fn borrowed(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: asked about only.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}
