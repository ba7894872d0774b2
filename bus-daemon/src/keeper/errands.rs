//! The errands that the worker asks for: numbered, begun while the worker serves, carried out by children, and their
//! outcomes told in the outbox.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::RawFd;
use std::path::PathBuf;

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::binary::Binary;
use super::configuration::Reading;
use super::keyring::KeyringReading;
use super::trial::{Passed, Trial};
use super::watch::Watch;
use crate::control::{Errand, Outbox, Outcome, Refusal, Told};
use crate::handoff::codec;
use crate::handoff::form::Form;
use crate::handoff::keeper::KeeperV1;
use crate::os::clock::{self, Nanos};
use crate::os::descriptor::close;
use crate::os::memfd;

/// How long to wait until something is tried again for which there was no room.
const RETRY: Nanos = Nanos(100_000_000);
/// After so long without room it is given up: callers wait for the outcome, and many give up after 25 seconds.
const LONGEST: Nanos = Nanos(10_000_000_000);

/// Numbers that are remembered of errands that are over. A worker has one errand of each kind under way.
const KNOWN: usize = 64;

/// All errands of this process image.
pub(crate) struct Errands {
    /// The numbers of those that were asked for: all that are not over, and the newest of those that are.
    known: BTreeSet<u64>,
    /// Asked for, and not begun: between the start of a worker and the moment when it serves, nothing may be opened.
    waiting: VecDeque<(u64, Errand)>,
    /// When to try again to begin the first of them, since there was no descriptor or no memory for it.
    retry: Option<Nanos>,
    /// Since when there is none.
    refused_since: Option<Nanos>,
    reading: Option<(u64, Reading)>,
    keyring: Option<(u64, KeyringReading)>,
    trial: Option<(u64, RawFd, Trial)>,
    approved: Option<Approved>,
    /// The newest configuration that was read without a mistake, encoded.
    config: Option<Vec<u8>>,
    watch: Watch,
    looking: Looking,
}

/// The directories of the configuration have to be known before they can be watched: it is read once for that, when the worker
/// serves.
enum Looking {
    NotYet,
    Now(Reading),
    Done,
}

/// A binary that passed its trial, and may be executed.
pub(crate) struct Approved {
    errand: u64,
    pub(crate) binary: Binary,
    /// The form of the state that it reads.
    pub(crate) form: Form,
}

impl Errands {
    /// None yet. `config`: the configuration in force, where it is known.
    pub(crate) fn new(config: Option<Vec<u8>>, watch: Watch) -> Self {
        Self {
            known: BTreeSet::new(),
            retry: None,
            refused_since: None,
            waiting: VecDeque::new(),
            reading: None,
            keyring: None,
            trial: None,
            approved: None,
            config,
            watch,
            looking: Looking::NotYet,
        }
    }

    /// The worker asks for one. It may have been asked for by a worker before it, which died.
    pub(crate) fn ask(&mut self, id: u64, errand: Errand, outbox: &mut Outbox) {
        // Not always in the order of the numbers: a worker that goes on for a dead one asks for what is open.
        if self.known.insert(id) {
            self.waiting.push_back((id, errand));
            self.forget_the_oldest(outbox);
        } else {
            release(&errand);
        }
    }

    /// Keeps the numbers from becoming ever more. The next worker may ask again for an errand that is not over, or whose end
    /// this one has not heard: such a number is never forgotten, or the errand would be carried out twice.
    fn forget_the_oldest(&mut self, outbox: &mut Outbox) {
        if self.known.len() <= KNOWN {
            return;
        }
        let is_over = |id: &u64| !self.is_under_way(*id) && !outbox.is_unheard(*id);
        if let Some(oldest) = self.known.iter().copied().find(is_over) {
            self.known.remove(&oldest);
        }
    }

    /// Whether an errand waits, is being carried out, or brought a binary that may still be executed.
    fn is_under_way(&self, id: u64) -> bool {
        let waiting = self.waiting.iter().map(|(waiting, _)| *waiting);
        let reading = self.reading.iter().map(|(reading, _)| *reading);
        let keyring = self.keyring.iter().map(|(reading, _)| *reading);
        let trial = self.trial.iter().map(|(trial, ..)| *trial);
        let approved = self.approved.iter().map(|approved| approved.errand);
        waiting
            .chain(reading)
            .chain(keyring)
            .chain(trial)
            .chain(approved)
            .any(|under_way| under_way == id)
    }

    /// Goes on with all of them. `may_open`: the worker serves, so that this process may open descriptors. True if the
    /// worker has been told something.
    pub(crate) fn follow(
        &mut self,
        record: &KeeperV1,
        own_binary: RawFd,
        may_open: bool,
        outbox: &mut Outbox,
    ) -> bool {
        let mut has_told = false;
        self.retry = None;
        while may_open && let Some((errand, what)) = self.waiting.pop_front() {
            match memfd::create(c"bus-outcome") {
                Ok(payload) => {
                    self.refused_since = None;
                    has_told |= self.begin(errand, payload, what, record, own_binary, outbox);
                }
                Err(error) => {
                    let now = clock::monotonic();
                    if self.refused_since.is_none() {
                        tracing::warn!("errand {errand} waits: there is no room for its outcome: {error}");
                    }
                    if now >= *self.refused_since.get_or_insert(now) + LONGEST {
                        tracing::error!(
                            "errand {errand} is given up: there is no room for its outcome: {error}"
                        );
                        self.refused_since = None;
                        release(&what);
                        outbox.post(Told::ErrandEnded { errand, payload: -1 });
                        has_told = true;
                        continue;
                    }
                    self.waiting.push_front((errand, what));
                    self.retry = Some(now + RETRY);
                    break;
                }
            }
        }
        if let Some((errand, reading)) = &mut self.reading
            && let Some(read) = reading.follow()
        {
            self.watch.note_read(read.watched, read.config.is_ok());
            if let Ok(config) = read.config {
                self.config = Some(config);
            }
            outbox.post(Told::ErrandEnded {
                errand: *errand,
                payload: read.payload,
            });
            self.reading = None;
            has_told = true;
        }
        if may_open {
            self.look_around(record, outbox);
        }
        self.watch.look();
        if self.watch.take_due() {
            outbox.post(Told::ReloadWanted);
            has_told = true;
        }
        if let Some((errand, reading)) = &mut self.keyring
            && let Some(payload) = reading.follow()
        {
            let errand = *errand;
            outbox.post(Told::ErrandEnded { errand, payload });
            self.keyring = None;
            has_told = true;
        }
        if let Some((errand, payload, trial)) = &mut self.trial
            && let Some(verdict) = trial.follow(may_open)
        {
            let (errand, payload) = (*errand, *payload);
            self.trial = None;
            let verdict = verdict.map(|Passed { binary, form }| {
                // Before the worker hears of it.
                outbox.set_approved(Some(form));
                self.approved = Some(Approved { errand, binary, form });
            });
            tell(errand, payload, Outcome::Trial(verdict), outbox);
            has_told = true;
        }
        has_told
    }

    /// Finds out what to watch. What has changed since this process image read it is asked for once more.
    fn look_around(&mut self, record: &KeeperV1, outbox: &mut Outbox) {
        self.looking = match std::mem::replace(&mut self.looking, Looking::Done) {
            Looking::NotYet => {
                let started = memfd::create(c"bus-outcome").and_then(|payload| {
                    let started = Reading::start_silent(record.arguments(), payload, self.watch.fd());
                    started.inspect_err(|_| close(payload))
                });
                match started {
                    Ok(reading) => Looking::Now(reading),
                    Err(error) => {
                        tracing::warn!("changes of the configuration are not watched for: {error}");
                        Looking::Done
                    }
                }
            }
            Looking::Now(mut reading) => match reading.follow() {
                None => Looking::Now(reading),
                Some(read) => {
                    close(read.payload);
                    self.watch.note_read(read.watched, false);
                    if let (Ok(now), Some(before)) = (&read.config, &self.config)
                        && now != before
                    {
                        outbox.post(Told::ReloadWanted);
                    }
                    Looking::Done
                }
            },
            Looking::Done => Looking::Done,
        };
    }

    fn looking(&self) -> Option<&Reading> {
        match &self.looking {
            Looking::Now(reading) => Some(reading),
            Looking::NotYet | Looking::Done => None,
        }
    }

    /// True if it has ended already. `payload` is an empty memfd for the outcome.
    fn begin(
        &mut self,
        errand: u64,
        payload: RawFd,
        what: Errand,
        record: &KeeperV1,
        own_binary: RawFd,
        outbox: &mut Outbox,
    ) -> bool {
        let failed = match what {
            Errand::LoadConfiguration => match Reading::start(record.arguments(), payload, self.watch.fd()) {
                Ok(reading) => {
                    self.reading = Some((errand, reading));
                    return false;
                }
                Err(error) => Outcome::Configuration(Err(Refusal {
                    error: "org.freedesktop.DBus.Error.NoMemory".into(),
                    text: format!("no process can be started that reads the configuration: {error}"),
                })),
            },
            Errand::ReadKeyring => match KeyringReading::start(payload) {
                Ok(reading) => {
                    self.keyring = Some((errand, reading));
                    return false;
                }
                Err(error) => Outcome::Keyring(Err(format!(
                    "no process can be started that reads the keyring: {error}"
                ))),
            },
            Errand::TryBinary { binary, image } => {
                self.give_up_trial();
                let path = if binary.is_empty() {
                    record.executable()
                } else {
                    PathBuf::from(binary)
                };
                match Trial::start(&path, record, own_binary, image) {
                    Ok(trial) => {
                        self.trial = Some((errand, payload, trial));
                        return false;
                    }
                    Err(error) => Outcome::Trial(Err(format!("cannot try {}: {error}", path.display()))),
                }
            }
        };
        tell(errand, payload, failed, outbox);
        true
    }

    fn give_up_trial(&mut self) {
        if let Some((_, payload, _)) = self.trial.take() {
            close(payload);
        }
        self.approved = None;
    }

    /// Takes note of the end of a process, if it is one of theirs.
    pub(crate) fn note_end(&mut self, ended: Pid, status: WaitStatus) -> bool {
        let reading = self.reading.as_mut();
        if let Looking::Now(looking) = &mut self.looking
            && looking.note_end(ended, status)
        {
            return true;
        }
        let keyring = self.keyring.as_mut();
        let trial = self.trial.as_mut();
        keyring.is_some_and(|(_, reading)| reading.note_end(ended, status))
            || reading.is_some_and(|(_, reading)| reading.note_end(ended, status))
            || trial.is_some_and(|(_, _, trial)| trial.note_end(ended, status))
    }

    /// What this process has open for them: a worker's sweep keeps it.
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        let waiting = self.waiting.iter().filter_map(|(_, errand)| image_of(errand));
        let reading = self.reading.iter().flat_map(|(_, reading)| reading.fds());
        let looking = self.looking().into_iter().flat_map(Reading::fds);
        let keyring = self.keyring.iter().map(|(_, reading)| reading.fd());
        let approved = self.approved.iter().map(|approved| approved.binary.fd());
        let mut fds: Vec<RawFd> = waiting
            .chain(reading)
            .chain(looking)
            .chain(keyring)
            .chain(approved)
            .chain(self.watch.fd())
            .collect();
        if let Some((_, payload, trial)) = &self.trial {
            fds.push(*payload);
            fds.extend(trial.fds());
        }
        fds
    }

    /// Readable when there is something to do.
    pub(crate) fn sources(&self, may_open: bool) -> Vec<RawFd> {
        let trial = self.trial.iter();
        let trial = trial.flat_map(|(_, _, trial)| trial.sources(may_open));
        trial.chain(self.watch.fd()).collect()
    }

    /// When to look at them at the latest.
    pub(crate) fn due(&self) -> Option<Nanos> {
        let reading = self.reading.iter().filter_map(|(_, reading)| reading.due());
        let keyring = self.keyring.iter().filter_map(|(_, reading)| reading.due());
        let trial = self.trial.iter().filter_map(|(_, _, trial)| trial.due());
        let looking = self.looking().into_iter().filter_map(Reading::due);
        let changes = self.watch.due();
        keyring
            .chain(looking)
            .chain(changes)
            .chain(reading)
            .chain(trial)
            .chain(self.retry)
            .min()
    }

    /// The binary that passed its trial.
    pub(crate) fn take_approved(&mut self) -> Option<Approved> {
        self.approved.take()
    }

    /// The form that the binary reads which passed its trial, if there is one.
    pub(crate) fn approved_form(&self) -> Option<Form> {
        self.approved.as_ref().map(|approved| approved.form)
    }

    /// A worker has died by its own fault. If it had heard that a binary passed, it may have died of handing its state
    /// over: that is not tried again.
    pub(crate) fn note_fault(&mut self, outbox: &mut Outbox) {
        self.approved
            .take_if(|approved| !outbox.is_unheard(approved.errand));
    }

    /// The newest configuration that was read without a mistake, encoded.
    pub(crate) fn config(&self) -> Option<&[u8]> {
        self.config.as_deref()
    }

    /// A configuration that was read without a mistake, encoded.
    pub(crate) fn take_config(&mut self, config: Vec<u8>) {
        self.config = Some(config);
    }

    /// Nobody waits for any outcome.
    pub(crate) fn abandon(&mut self) {
        for (_, errand) in self.waiting.drain(..) {
            release(&errand);
        }
        self.reading = None;
        self.keyring = None;
        self.looking = Looking::NotYet;
        self.give_up_trial();
        // Whoever asks again for one of those wants it to be done.
        self.known.clear();
    }
}

/// Puts an outcome into its payload, and that into the outbox.
fn tell(errand: u64, payload: RawFd, outcome: Outcome, outbox: &mut Outbox) {
    let written = codec::encode(&outcome)
        .map_err(std::io::Error::other)
        .and_then(|bytes| memfd::replace(payload, &bytes));
    if let Err(error) = written {
        // The worker finds that there is none.
        tracing::error!("no memory for the outcome of an errand: {error}");
    }
    outbox.post(Told::ErrandEnded { errand, payload });
}

fn image_of(errand: &Errand) -> Option<RawFd> {
    match errand {
        Errand::LoadConfiguration | Errand::ReadKeyring => None,
        Errand::TryBinary { image, .. } => Some(*image),
    }
}

fn release(errand: &Errand) {
    if let Some(image) = image_of(errand) {
        close(image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for so many errands that are over at once.
    fn ask_for_others(errands: &mut Errands, outbox: &mut Outbox) {
        for id in 1000..1000 + 3 * KNOWN as u64 {
            errands.ask(id, Errand::LoadConfiguration, outbox);
            errands.waiting.retain(|(waiting, _)| *waiting != id);
        }
        assert!(errands.known.len() <= KNOWN + 1, "{}", errands.known.len());
    }

    #[test]
    fn an_errand_that_is_not_over_is_not_begun_again_whatever_else_was_asked_for() {
        let mut outbox = Outbox::create().unwrap();
        let mut errands = Errands::new(None, Watch::new());
        errands.ask(1, Errand::LoadConfiguration, &mut outbox);
        ask_for_others(&mut errands, &mut outbox);
        errands.ask(1, Errand::LoadConfiguration, &mut outbox);
        assert_eq!(errands.waiting, [(1, Errand::LoadConfiguration)]);
    }

    #[test]
    fn an_errand_whose_binary_may_be_executed_is_remembered() {
        let mut outbox = Outbox::create().unwrap();
        let mut errands = Errands::new(None, Watch::new());
        errands.ask(1, Errand::LoadConfiguration, &mut outbox);
        errands.waiting.clear();
        let binary = Binary::open(&std::env::current_exe().unwrap()).unwrap();
        errands.approved = Some(Approved {
            errand: 1,
            binary,
            form: Form::OWN,
        });
        ask_for_others(&mut errands, &mut outbox);
        assert!(errands.known.contains(&1));
    }

    #[test]
    fn an_errand_is_remembered_until_its_end_was_heard() {
        let mut outbox = Outbox::create().unwrap();
        let mut errands = Errands::new(None, Watch::new());
        errands.ask(1, Errand::LoadConfiguration, &mut outbox);
        errands.waiting.clear();
        outbox.post(Told::ErrandEnded {
            errand: 1,
            payload: -1,
        });
        ask_for_others(&mut errands, &mut outbox);
        assert!(errands.known.contains(&1));
        outbox.inbox().acknowledge(1);
        ask_for_others(&mut errands, &mut outbox);
        errands.ask(2000, Errand::LoadConfiguration, &mut outbox);
        assert!(!errands.known.contains(&1));
    }
}
