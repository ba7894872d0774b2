//! The bus under test: the worker's process, the memory it shares, the clients, and the look at each store.

#![allow(unsafe_code, reason = "shared memory, and descriptors by number")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use bus_wire::Fd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::told::{Kind, OBSERVER, Told};
use super::super::{Random, record, session, state};
use super::client::{self, Client};
use super::judge::{Found, Judge};
use super::watch::{self, Report, what};
use crate::broker::{Broker, PeerId, Start};
use crate::control::{Inbox, Outbox};
use crate::handoff::keeper::KeeperV1;
use crate::journal::{Journal, Mirror, Position, Remains, Sabotage};
use crate::runtime::worker::Worker;
use crate::runtime::{Death, identity, recover};

/// Room for the state that the worker tells.
const STATE_ROOM: usize = 16 << 20;
/// Descriptors have smaller numbers.
const MOST_FDS: RawFd = 1024;
/// What is made in the middle of an event, while there are few clients, has a smaller one.
const FEW_FDS: RawFd = 128;
/// How long a worker may be silent.
const PATIENCE: u16 = 20_000;

static STATE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// Orders to the worker.
pub(super) mod order {
    pub(in super::super) const GO_ON: u8 = b'.';
    pub(in super::super) const TURN: u8 = b't';
    pub(in super::super) const CHECKPOINT: u8 = b'c';
    pub(in super::super) const WATCH: u8 = b'w';
    pub(in super::super) const LEAVE: u8 = b'l';
}

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
    pub(super) sabotage: Option<Sabotage>,
    record: KeeperV1,
    outbox: Outbox,
    remains: Remains,
    mirror: Mirror,
    judge: Judge,
    /// Every byte of output that is known, for each client.
    streams: Vec<Vec<u8>>,
    /// The worker's ends of the connections, and whose they are.
    sockets: BTreeMap<RawFd, usize>,
    /// Whose connection was accepted last.
    accepted: Option<usize>,
    is_watched: bool,
    is_ready: bool,
    segment: u32,
    worker: Option<Pid>,
    reports: std::io::PipeReader,
    answers: std::io::PipeWriter,
    /// The worker's ends of the two pipes above.
    worker_pipes: (std::io::PipeWriter, std::io::PipeReader),
    /// Descriptors that are not the bus's.
    kept: Vec<RawFd>,
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
        OBSERVER.get_or_init(|| observe);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let record = record(&path);
        let journal = Journal::create().unwrap();
        let remains = journal.remains();
        let (reports, to_test) = std::io::pipe().unwrap();
        let (from_test, answers) = std::io::pipe().unwrap();
        // SAFETY: a new mapping.
        let room = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                STATE_ROOM,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(room, libc::MAP_FAILED);
        STATE.store(room.cast(), Ordering::Relaxed);
        let mut stage = Self {
            random,
            clients: Vec::new(),
            counts: Counts::default(),
            kill_rate: 0,
            most_kills: u64::MAX,
            kills_at_accept: false,
            sabotage: None,
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
            outbox: Outbox::create().unwrap(),
            remains,
        };
        stage.kept = open_fds(MOST_FDS).collect();
        stage.start(Some(journal))?;
        stage.order(order::WATCH)?;
        Ok(stage)
    }

    /// Starts a worker: the first one, over `journal`, or the successor of one that was killed. False: it was killed.
    fn start(&mut self, journal: Option<Journal>) -> Result<bool, String> {
        let record = self.record.clone();
        let (remains, inbox, kept) = (self.remains, self.outbox.inbox(), self.kept());
        let pipes = (self.worker_pipes.0.as_raw_fd(), self.worker_pipes.1.as_raw_fd());
        self.is_ready = false;
        self.is_watched = journal.is_none();
        let pid = crate::runtime::process::spawn(|| {
            watch::install(&remains, pipes.0, pipes.1);
            live(record, remains, inbox, journal, &kept)
        })
        .unwrap();
        self.worker = Some(pid);
        self.follow()
    }

    fn kept(&self) -> Vec<RawFd> {
        let clients = self.clients.iter().flatten().map(Client::fd);
        self.kept.iter().copied().chain(clients).collect()
    }

    /// Has an order carried out; if the worker is killed meanwhile, until a successor is ready.
    pub(super) fn order(&mut self, order: u8) -> Result<(), String> {
        let epoch = self.remains.epoch();
        self.answer(order);
        let mut is_alive = self.follow()?;
        while !is_alive {
            is_alive = self.start(None)?;
        }
        if self.is_watched {
            self.counts.checkpoints += self.remains.epoch() - epoch;
            self.judge.at_rest()?;
            if !self.mirror.is_equal().unwrap() {
                return Err("something wrote to the journal's memory and was not seen".into());
            }
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

    /// Looks at each store until the order is carried out; false when the worker was killed.
    fn follow(&mut self) -> Result<bool, String> {
        loop {
            let report = self.next_report()?;
            match report.what {
                what::STORED => {
                    self.counts.stores += 1;
                    self.counts.entries += u64::from(self.remains.is_checkpoint(report.first as usize));
                    self.mirror.copy_written(report.first as usize, 0).unwrap();
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
                        .is_some());
            let again = is_killed.then(|| found.clone());
            let is_applying = self.remains.is_applying() && self.is_ready;
            self.judge
                .found(found, is_applying)
                .map_err(|error| format!("{error}, {at}"))?;
            if let Some(found) = again {
                self.kill();
                self.counts.kills += 1;
                self.counts.kills_in_recovery += u64::from(!self.is_ready);
                self.judge.killed(found);
                return Ok(false);
            }
            self.answer(order::GO_ON);
        }
    }

    fn next_report(&mut self) -> Result<Report, String> {
        let mut pipe = [PollFd::new(
            std::os::fd::AsFd::as_fd(&self.reports),
            PollFlags::POLLIN,
        )];
        for _ in 0..PATIENCE / 100 {
            if poll(&mut pipe, PollTimeout::from(100_u16)).unwrap() > 0 {
                let mut bytes = [0; size_of::<Report>()];
                self.reports.read_exact(&mut bytes).unwrap();
                // SAFETY: plain integers.
                return Ok(unsafe { bytes.as_ptr().cast::<Report>().read_unaligned() });
            }
            if let Some(pid) = self.worker {
                let status = waitpid(pid, Some(WaitPidFlag::WNOHANG)).unwrap();
                if status != WaitStatus::StillAlive {
                    self.worker = None;
                    return Err(format!("the worker died: {status:?}"));
                }
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
            self.mirror.copy_called().unwrap();
        }
        if report.fourth != 0 {
            self.mirror
                .copy_written(report.fourth as usize, report.fifth as usize)
                .unwrap();
        }
    }

    fn note_event(&mut self, report: &Report) -> Result<(), String> {
        let kind = KINDS[(report.first & 0xff) as usize];
        let socket = (report.first >> 8).checked_sub(1).map(|handle| Fd(handle as i32));
        let peer = PeerId::from_u64(report.second);
        let room = STATE.load(Ordering::Relaxed);
        // SAFETY: in the mapping; the worker waits.
        let state = unsafe { std::slice::from_raw_parts(room, report.fifth as usize) }.to_vec();
        let received = matches!(kind, Kind::Received | Kind::ReceivedLarge)
            .then(|| client::owner(self.remains.number(socket?)?))
            .flatten()
            .map(|client| (client, report.third as u64));
        if self.is_watched {
            *self.counts.events.entry(kind).or_default() += 1;
            self.counts.fds += report.fourth;
        }
        self.judge
            .handled(received, state, self.remains.records(), self.is_watched)
            .map_err(|error| format!("{error}: {kind:?} of peer {}", peer.index))
    }

    /// Recovers from a copy of the memory, and compares with what the kernel knows.
    fn examine(&mut self) -> Result<Found, String> {
        if let Some(how) = self.sabotage {
            self.mirror.sabotage(how);
        }
        let mut journal = Journal::reopen(self.mirror.copy()).unwrap();
        let open: Vec<RawFd> = open_fds(FEW_FDS).collect();
        let recovered = recover::replay(&mut journal, -1, None)?;
        let mut has_other_fd = false;
        for fd in open_fds(FEW_FDS).filter(|fd| !open.contains(fd)) {
            has_other_fd = true;
            nix::unistd::close(fd).unwrap();
        }
        self.counts.other_fds += u64::from(has_other_fd);
        if !recovered.in_doubt.is_empty() || !recovered.quarantined.is_empty() || recovered.is_damaged {
            return Err(format!(
                "in doubt: {:?}, left out: {:?}",
                recovered.in_doubt, recovered.quarantined
            ));
        }
        recovered
            .broker
            .check_invariants()
            .map_err(|violation| violation.to_string())?;
        let mut taken = BTreeMap::new();
        let mut known = Vec::new();
        for peer in recovered.broker.peer_ids() {
            let fd = recovered
                .broker
                .socket(peer)
                .and_then(|handle| journal.verified_number(handle))
                .ok_or("a peer without a socket")?;
            let Some(&index) = self.sockets.get(&fd) else {
                return Err(format!("peer {} has no socket", peer.index));
            };
            known.push(fd);
            let queue = recovered.broker.send_queue(peer).ok_or("a peer without output")?;
            if let Some(client) = &self.clients[index] {
                taken.insert(index, client.written - client::unread(fd));
                if queue.sent() != client.reached() {
                    return Err(format!(
                        "client {index} was reached by {} bytes, not {}",
                        client.reached(),
                        queue.sent()
                    ));
                }
            }
            let waiting = journal.output_of(peer, queue);
            self.agree(index, queue.sent(), &waiting)?;
        }
        let is_known = |fd: &RawFd| known.contains(fd);
        if !self.sockets.keys().all(is_known) {
            let strays = recovered.strays(&self.kept(), &self.record.listeners, &journal);
            for (fd, index) in self.sockets.iter().filter(|(fd, _)| !is_known(fd)) {
                let is_adopted = strays.accepted.iter().any(|(accepted, _)| accepted == fd);
                self.counts.adopted += u64::from(is_adopted);
                self.counts.ended += u64::from(strays.ended.contains(fd));
                // A client that went may be known to be gone, or still have to be found out.
                if self.clients[*index].is_some() && !is_adopted {
                    return Err(format!("client {index} would be disconnected"));
                }
                if self.clients[*index].is_none() && is_adopted && !self.streams[*index].is_empty() {
                    return Err(format!("client {index} would be taken for a new one"));
                }
            }
        }
        let state = state(&recovered.broker);
        drop(recovered);
        let (records, segment) = (journal.end().sequence, journal.end().segment);
        self.counts.segments += u64::from(segment != self.segment);
        self.segment = segment;
        self.mirror.undo_replay(journal).unwrap();
        Ok(Found {
            records,
            state,
            has_other_fd,
            taken,
        })
    }

    /// Compares bytes of a client's output with what is known, from an absolute offset on.
    fn agree(&mut self, index: usize, at: u64, bytes: &[u8]) -> Result<(), String> {
        let stream = &mut self.streams[index];
        let at = at as usize;
        let common = bytes.len().min(
            stream
                .len()
                .checked_sub(at)
                .ok_or_else(|| format!("bytes are missing in client {index}'s output before {at}"))?,
        );
        if stream[at..at + common] != bytes[..common] {
            return Err(format!(
                "client {index}'s output is another after {at} bytes of it"
            ));
        }
        stream.extend_from_slice(&bytes[common..]);
        Ok(())
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

    /// Descriptors that are open and belong neither to the test nor to a connection.
    pub(super) fn others(&self) -> Vec<RawFd> {
        let kept = self.kept();
        open_fds(MOST_FDS)
            .filter(|fd| !kept.contains(fd) && !self.sockets.contains_key(fd))
            .collect()
    }
}

fn open_fds(limit: RawFd) -> impl Iterator<Item = RawFd> {
    (0..limit).filter(|fd| nix::fcntl::fcntl(borrowed(*fd), nix::fcntl::FcntlArg::F_GETFD).is_ok())
}

fn borrowed(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: asked about only.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

const KINDS: [Kind; 7] = [
    Kind::Accepted,
    Kind::Received,
    Kind::ReceivedLarge,
    Kind::Sent,
    Kind::Closed,
    Kind::Tick,
    Kind::Other,
];

/// In the worker: tells an event.
fn observe(told: &Told, broker: &Broker) {
    let state = state(broker);
    assert!(state.len() <= STATE_ROOM);
    let room = STATE.load(Ordering::Relaxed);
    // SAFETY: room for that, and the test waits.
    unsafe { std::ptr::copy_nonoverlapping(state.as_ptr(), room, state.len()) };
    watch::report(Report {
        what: what::HANDLED,
        first: KINDS.iter().position(|kind| *kind == told.kind).unwrap() as u64
            | told.socket.map_or(0, |handle| (handle.0 as u64 + 1) << 8),
        second: told.peer.map_or(0, PeerId::to_u64),
        third: told.received as i64,
        fourth: told.fds,
        fifth: state.len() as u64,
    });
}

/// The life of a worker.
fn live(record: KeeperV1, remains: Remains, inbox: Inbox, journal: Option<Journal>, kept: &[RawFd]) -> i32 {
    let (mut worker, start) = match journal {
        Some(journal) => {
            let broker = Broker::new(
                identity(&record).unwrap(),
                Arc::new(session()),
                crate::runtime::now(),
            );
            let mut worker = Worker::new(broker, journal, record, inbox, 0);
            worker.first_checkpoint().unwrap();
            (worker, Start::Clean)
        }
        None => {
            watch::set_on(true);
            let journal = Journal::reopen(remains).unwrap();
            crate::runtime::recover(&record, journal, inbox, &Death::now(), kept).unwrap()
        }
    };
    worker.register().unwrap();
    worker.begin(start);
    loop {
        let done = Report {
            what: what::DONE,
            first: 0,
            second: 0,
            third: 0,
            fourth: 0,
            fifth: 0,
        };
        match watch::report(done) {
            order::TURN => worker.turns(),
            order::CHECKPOINT => worker.first_checkpoint().unwrap(),
            order::WATCH => watch::set_on(true),
            order::LEAVE => watch::set_on(false),
            other => panic!("no such order: {other}"),
        }
    }
}
