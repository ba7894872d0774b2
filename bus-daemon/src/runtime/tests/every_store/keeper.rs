//! The test in the part of the keeper: what is told, errands and how they end, deaths and what they prove.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;

use super::super::told::Kind;
use super::super::{Random, session};
use crate::broker::ConfigV2;
use crate::config::Service;
use crate::control::{Errand, Outbox, Outcome, Refusal, Request, Told};
use crate::handoff::codec;
use crate::handoff::form::Form;
use crate::handoff::keeper::Control;
use crate::journal::Remains;
use crate::keeper::{Cause, Deaths};
use crate::os::descriptor::{borrow, close};
use crate::os::{clock, memfd};
use nix::sys::stat::fstat;

/// Configurations are told apart by this limit: so much and the errand's number.
const LIMIT: u64 = 100_000;

/// Whether a trial approves of the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Verdict {
    /// It cannot take over.
    #[default]
    Refused,
    /// It can.
    Approved,
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Errands that were begun.
    pub(super) readings: u64,
    pub(super) trials: u64,
    /// Errands that a successor asked for again.
    pub(super) repeated: u64,
    /// Configurations of over 64 KiB, which are not in the log.
    pub(super) large: u64,
    pub(super) refused: u64,
    /// Deaths while an errand was under way.
    pub(super) deaths_in_errands: u64,
    /// Deaths between the moment when something was told and when it was heard.
    pub(super) deaths_unheard: u64,
    /// Units that were left out.
    pub(super) left_out: u64,
}

/// An errand that was begun, and how many orders from now it ends.
struct UnderWay {
    id: u64,
    errand: Errand,
    left: usize,
}

pub(super) struct Keeper {
    outbox: Outbox,
    /// All that was posted to it.
    told: Vec<Told>,
    /// How many of them the worker has heard, as the events say.
    heard: u64,
    /// What had been heard when the journal in use began.
    heard_before: u64,
    known: BTreeSet<u64>,
    under_way: Vec<UnderWay>,
    pub(super) verdict: Verdict,
    /// The entry that tells of a binary that passed its trial.
    approved: Option<u64>,
    /// The state that the worker has handed over.
    handed: Option<RawFd>,
    /// The inode of the newest trial's image, which the worker keeps for the final one as long as it may come to that.
    pub(super) spare: u64,
    /// The inodes of configurations, by the errands that brought them.
    sources: BTreeMap<u64, u64>,
    deaths: Deaths,
    left_out: Option<u64>,
    pub(super) done: Done,
}

impl Keeper {
    pub(super) fn new() -> Self {
        Self {
            outbox: Outbox::create().unwrap(),
            told: Vec::new(),
            heard: 0,
            heard_before: 0,
            known: BTreeSet::new(),
            under_way: Vec::new(),
            verdict: Verdict::default(),
            approved: None,
            handed: None,
            spare: 0,
            sources: BTreeMap::new(),
            deaths: Deaths::default(),
            left_out: None,
            done: Done::default(),
        }
    }

    /// Whether this address is in the sheet.
    pub(super) fn is_in_sheet(&self, address: u64) -> bool {
        let (start, len) = self.outbox.mapping();
        (start..start + len).contains(&(address as usize))
    }

    /// How many entries were heard, as the events say.
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// What it has open: a worker's sweep keeps it.
    pub(super) fn fds(&mut self) -> Vec<RawFd> {
        self.outbox.settle();
        let mut fds = self.outbox.fds();
        fds.extend(self.under_way.iter().filter_map(|one| image_of(&one.errand)));
        fds.extend(self.handed);
        fds
    }

    pub(super) fn post(&mut self, told: Told) {
        let is_repeated = !matches!(told, Told::ErrandEnded { .. }) && {
            let (reload, upgrade) = self.outbox.unheard_requests();
            (told == Told::ReloadWanted && reload) || (told == Told::UpgradeWanted && upgrade)
        };
        self.outbox.post(told);
        if !is_repeated {
            self.told.push(told);
        }
    }

    /// Hears what the worker asks.
    pub(super) fn listen(&mut self, control: Control, random: &mut Random) -> Result<(), String> {
        while let Some(request) = control.asked().map_err(|error| error.to_string())? {
            if let Request::Errand { errand, .. } = &request {
                self.spare = image_of(errand).map_or(self.spare, inode);
            }
            match request {
                Request::Exec { image } => {
                    if self.handed.replace(image).is_some() {
                        return Err("the state is handed over twice".into());
                    }
                }
                Request::Errand { id, errand } if self.known.insert(id) => {
                    match &errand {
                        Errand::LoadConfiguration | Errand::ReadKeyring => self.done.readings += 1,
                        Errand::TryBinary { image, .. } => {
                            self.done.trials += 1;
                            self.approved = None;
                            look_at(*image)?;
                        }
                    }
                    let left = 1 + random.below(6);
                    self.under_way.push(UnderWay { id, errand, left });
                }
                Request::Errand { errand, .. } => {
                    self.done.repeated += 1;
                    if let Some(image) = image_of(&errand) {
                        close(image);
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends errands whose time has come. True: the worker has to be woken.
    pub(super) fn end_errands(&mut self, random: &mut Random) -> bool {
        for one in &mut self.under_way {
            one.left = one.left.saturating_sub(1);
        }
        let Some(index) = self.under_way.iter().position(|one| one.left == 0) else {
            return self.outbox.settle();
        };
        let UnderWay { id, errand, .. } = self.under_way.remove(index);
        let outcome = match errand {
            Errand::LoadConfiguration => self.configuration(id, random),
            Errand::ReadKeyring => Outcome::Keyring(Err("there is none".into())),
            Errand::TryBinary { image, .. } => {
                close(image);
                self.done.refused += u64::from(self.verdict == Verdict::Refused);
                Outcome::Trial(match self.verdict {
                    Verdict::Approved => Ok(()),
                    Verdict::Refused => Err("it is not what it should be".into()),
                })
            }
        };
        let is_approval = matches!(outcome, Outcome::Trial(Ok(())));
        let payload = memfd::create(c"bus-outcome").unwrap();
        memfd::replace(payload, &codec::encode(&outcome).unwrap()).unwrap();
        self.sources.insert(id, inode(payload));
        self.post(Told::ErrandEnded { errand: id, payload });
        if is_approval {
            self.approved = Some(self.told.len() as u64);
        }
        true
    }

    fn configuration(&mut self, id: u64, random: &mut Random) -> Outcome {
        let mut config = session();
        config.limits.max_completed_connections = LIMIT + id;
        let len = match random.below(4) {
            0 => {
                self.done.refused += 1;
                return Outcome::Configuration(Err(Refusal {
                    error: "org.freedesktop.DBus.Error.InvalidFileContent".into(),
                    text: format!("errand {id}"),
                }));
            }
            1 => {
                self.done.large += 1;
                66_000
            }
            _ => 10,
        };
        config.services.push(Service {
            name: format!("org.example.Service{id}"),
            exec: vec!["x".repeat(len)],
            user: None,
            systemd_service: None,
            assumed_apparmor_label: None,
            file: "/nowhere".into(),
        });
        Outcome::Configuration(Ok(codec::encode(&ConfigV2::from(&config)).unwrap()))
    }

    /// Whether a configuration is kept in the memfd that brought it.
    pub(super) fn is_source(&self, limit: u64, source: RawFd) -> bool {
        let errand = limit.checked_sub(LIMIT);
        errand.and_then(|errand| self.sources.get(&errand)) == Some(&inode(source))
    }

    /// Whether nothing is under way, or told and not heard.
    pub(super) fn is_idle(&mut self) -> bool {
        self.under_way.is_empty() && !self.outbox.settle()
    }

    /// The entries that a recovery knows of are those before the event under way, or one more; and what is acknowledged
    /// is among them. `heard`: as the journal says.
    pub(super) fn agree(&self, heard: u64, is_next: bool) -> Result<u64, String> {
        let acknowledged = self.outbox.inbox().heard();
        let heard = heard.max(self.heard_before);
        if acknowledged > heard {
            return Err(format!(
                "entry {acknowledged} is acknowledged, and the journal has {heard}"
            ));
        }
        if heard != self.heard && (!is_next || heard != self.heard + 1) {
            return Err(format!(
                "{} entries were heard, and the journal has {heard}",
                self.heard
            ));
        }
        Ok(heard)
    }

    /// The worker has handled an event.
    pub(super) fn handled(&mut self, kind: Kind, errand: u64) -> Result<(), String> {
        if !matches!(kind, Kind::ReloadWanted | Kind::UpgradeWanted | Kind::ErrandEnded) {
            return Ok(());
        }
        let said = self.told.get(self.heard as usize).copied();
        self.heard += 1;
        let is_right = match said {
            Some(Told::ReloadWanted) => kind == Kind::ReloadWanted,
            Some(Told::UpgradeWanted) => kind == Kind::UpgradeWanted,
            Some(Told::ErrandEnded { errand: ended, .. }) => kind == Kind::ErrandEnded && ended == errand,
            None => false,
        };
        if is_right {
            if self.approved.is_none() && self.under_way.iter().all(|one| image_of(&one.errand).is_none()) {
                self.spare = 0;
            }
            return Ok(());
        }
        Err(format!(
            "entry {} was {said:?}, and the worker heard {kind:?} {errand}",
            self.heard
        ))
    }

    /// Between turns everything is heard.
    pub(super) fn at_rest(&self) -> Result<(), String> {
        let acknowledged = self.outbox.inbox().heard();
        if self.heard != self.told.len() as u64 || acknowledged != self.heard {
            return Err(format!(
                "{} entries were told, {} heard, {acknowledged} acknowledged",
                self.told.len(),
                self.heard
            ));
        }
        Ok(())
    }

    /// The worker has died. `serves`: there is its journal to go on from.
    pub(super) fn note_death(&mut self, cause: Cause, remains: &Remains, serves: bool) -> Result<(), String> {
        self.done.deaths_in_errands += u64::from(!self.under_way.is_empty());
        self.done.deaths_unheard += u64::from(self.outbox.settle());
        if cause == Cause::OwnFault {
            let heard = self.outbox.inbox().heard();
            self.approved.take_if(|entry| *entry <= heard);
        }
        if serves {
            let before = self.left_out;
            let now = clock::monotonic();
            self.left_out = self
                .deaths
                .note(cause, now, remains)
                .map_err(|error| format!("{error}: {:?} {:?}", remains.suspect(), self.deaths))?;
            self.done.left_out += u64::from(self.left_out.is_some() && self.left_out != before);
        }
        Ok(())
    }

    /// The next worker begins with what the journal says was heard.
    pub(super) fn begin(&mut self, heard: u64) {
        self.heard = heard;
        self.outbox.set_approved(self.approved.map(|_| Form::OWN));
    }

    /// The unit that a successor of a worker that died now would leave out.
    pub(super) fn left_out(&self, remains: &Remains) -> Option<u64> {
        self.left_out.filter(|unit| remains.is_replayed(*unit))
    }

    /// What was handed over, if a binary is there to go on with it.
    pub(super) fn take_handed(&mut self) -> Result<Option<RawFd>, String> {
        let Some(image) = self.handed.take() else {
            return Ok(None);
        };
        if self.approved.take().is_none() {
            return Err("the state was handed over, and no binary is approved".into());
        }
        Ok(Some(image))
    }

    /// The next worker has a journal of its own.
    pub(super) fn begin_journal(&mut self) {
        self.deaths.begin_journal();
        self.left_out = None;
        self.heard_before = self.outbox.inbox().heard();
    }

    /// Another process image: nothing of this one's errands and entries is left, but requests are made again.
    pub(super) fn replace(&mut self) {
        let (reload, upgrade) = self.outbox.unheard_requests();
        for fd in self.fds() {
            close(fd);
        }
        self.leave_errands();
        self.outbox = Outbox::create().unwrap();
        self.told.clear();
        (self.heard, self.heard_before) = (0, 0);
        (self.deaths, self.left_out) = (Deaths::default(), None);
        for (is_unheard, told) in [(reload, Told::ReloadWanted), (upgrade, Told::UpgradeWanted)] {
            if is_unheard {
                self.post(told);
            }
        }
    }

    /// The image could not be replaced: nothing is under way, and whoever goes on asks again.
    pub(super) fn abandon(&mut self) {
        for image in self.under_way.iter().filter_map(|one| image_of(&one.errand)) {
            close(image);
        }
        self.leave_errands();
    }

    fn leave_errands(&mut self) {
        self.under_way.clear();
        self.known.clear();
        self.approved = None;
    }
}

/// What a trial is given can be restored, whole.
fn look_at(image: RawFd) -> Result<(), String> {
    let bytes = memfd::read(image).map_err(|error| format!("a trial's image: {error}"))?;
    let restored =
        crate::handoff::image::load(&bytes, crate::runtime::now()).map_err(|error| error.to_string())?;
    if !restored.damage.is_empty() || !restored.dropped.is_empty() {
        return Err("a trial's image is damaged".into());
    }
    Ok(())
}

fn image_of(errand: &Errand) -> Option<RawFd> {
    match errand {
        Errand::LoadConfiguration | Errand::ReadKeyring => None,
        Errand::TryBinary { image, .. } => Some(*image),
    }
}

/// Which file a descriptor is of; 0 = it is closed.
pub(super) fn inode(fd: RawFd) -> u64 {
    fstat(borrow(fd)).map_or(0, |status| status.st_ino)
}
