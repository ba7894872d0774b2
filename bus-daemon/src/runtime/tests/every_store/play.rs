//! What clients do, step by step, and that each of their calls is answered once.

use std::os::fd::AsRawFd;

use super::answers::answers;
use super::client::Client;
use super::life::order;
use super::stage::Stage;
use crate::control::Told;

/// What a client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Connect,
    Leave,
    RequestName,
    ReleaseName,
    AddMatch,
    Credentials,
    Signal,
    Send,
    SendLong,
    SendLarge,
    SendFd,
    SignalFd,
    Checkpoint,
    /// A client wants the configuration to be read again, or an upgrade.
    ReloadConfig,
    Upgrade,
    /// The keeper got SIGHUP, or SIGUSR2.
    Hangup,
    Usr2,
}

pub(super) const STEPS: [Step; 14] = [
    Step::Connect,
    Step::Leave,
    Step::RequestName,
    Step::ReleaseName,
    Step::AddMatch,
    Step::Credentials,
    Step::Signal,
    Step::Send,
    Step::SendLong,
    Step::SendLarge,
    Step::SendFd,
    Step::SignalFd,
    Step::Checkpoint,
    Step::Checkpoint,
];
const MOST_CLIENTS: usize = 5;

impl Stage {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.random.below(limit)
    }

    /// Some client that is there.
    pub(super) fn someone(&mut self) -> usize {
        let there: Vec<usize> = self.clients.iter().flatten().map(|client| client.index).collect();
        there[self.random.below(there.len())]
    }

    pub(super) fn step(&mut self, step: Step) -> Result<(), String> {
        let count = self.clients.iter().flatten().count();
        if count < 3 || (step == Step::Connect && count < MOST_CLIENTS) {
            self.connect();
        }
        let (index, to) = (self.someone(), self.someone());
        let destination = format!(":1.{to}");
        let len = self.below(600);
        let client = self.clients[index].as_mut().unwrap();
        match step {
            Step::Connect => {}
            Step::Leave if count >= MOST_CLIENTS - 1 && index != 1 => self.clients[index] = None,
            Step::Leave => {}
            Step::RequestName => client.call("RequestName", |w| {
                w.str("org.example.Shared").u32(4);
            }),
            Step::ReleaseName => client.call("ReleaseName", |w| {
                w.str("org.example.Shared");
            }),
            Step::AddMatch => client.call("AddMatch", |w| {
                w.str("type='signal',interface='org.example.Signals'");
            }),
            // The system is asked in the middle of it: by one who takes no descriptors, and by others.
            Step::Credentials if index > 1 => client.call("GetConnectionCredentials", |w| {
                w.str(&destination);
            }),
            Step::Credentials => {
                if let Some(Some(client)) = self.clients.get_mut(1) {
                    client.call("GetConnectionCredentials", |w| {
                        w.str(&destination);
                    });
                }
            }
            Step::Signal => client.signal(len),
            Step::Send => client.send("org.example.Shared", len),
            Step::SendLong => client.send(&destination, 3_000 + len),
            Step::SendLarge => client.send(&destination, 70_000),
            // That one would be disconnected for it.
            Step::SendFd | Step::SignalFd if index == 1 => {}
            Step::SendFd => client.send_fd(&destination),
            // The system duplicates it for the second receiver.
            Step::SignalFd => client.signal_fd(),
            Step::ReloadConfig => client.call("ReloadConfig", |_| {}),
            Step::Upgrade => client.upgrade(),
            Step::Hangup => self.tell(Told::ReloadWanted),
            Step::Usr2 => self.tell(Told::UpgradeWanted),
            Step::Checkpoint => self.order(order::CHECKPOINT)?,
        }
        self.exchange()
    }

    /// One turn that no worker dies in.
    pub(super) fn whole_turn(&mut self) -> Result<(), String> {
        for _ in 0..1_000 {
            let deaths = self.deaths();
            self.order(order::TURN)?;
            if deaths == self.deaths() {
                return Ok(());
            }
        }
        Err("the workers die all the time".into())
    }

    /// A part of what waits is written, some read, and the worker has a turn.
    pub(super) fn exchange(&mut self) -> Result<(), String> {
        let passed = self.passed.as_raw_fd();
        for index in 0..self.clients.len() {
            let (len, reads) = (1 + self.below(6_000), self.below(4) > 0);
            if let Some(client) = &mut self.clients[index] {
                client.write(len, passed);
            }
            if reads {
                self.read(index, 8_000)?;
            }
        }
        self.order(order::TURN)
    }

    /// The keeper tells something.
    fn tell(&mut self, told: Told) {
        self.keeper.post(told);
        self.record.control.wake_worker();
    }

    /// Until every call to the bus is answered, as often as it must be: whoever still is there got one answer to each.
    pub(super) fn answer_all(&mut self) -> Result<(), String> {
        for _ in 0..4_000 {
            self.settle()?;
            let counted = self.count_answers()?;
            if counted && self.keeper.is_idle() {
                return Ok(());
            }
            // A reading begins a quarter of a second after the last request.
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err("a call is not answered".into())
    }

    /// Whether each call was answered. `Err`: one of them twice, or something that was no call.
    fn count_answers(&self) -> Result<bool, String> {
        let mut is_all = true;
        for client in self.clients.iter().flatten() {
            let mut open = client.calls.clone();
            for answer in answers(&self.streams[client.index], client.lines)? {
                // Others answer, too: for those who are not there.
                let place = open.iter().position(|call| *call == answer.to);
                if place.is_none() && client.calls.contains(&answer.to) {
                    return Err(format!("client {}: {answer:?} once more", client.index));
                }
                if let Some(place) = place {
                    open.swap_remove(place);
                }
            }
            is_all &= open.is_empty();
        }
        Ok(is_all)
    }

    /// Until nothing is on its way.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        let passed = self.passed.as_raw_fd();
        for _ in 0..10_000 {
            for client in self.clients.iter_mut().flatten() {
                while client.write(usize::MAX, passed) {}
            }
            let deaths = self.deaths();
            self.order(order::TURN)?;
            // A successor has only begun.
            let mut is_idle = deaths == self.deaths() && self.clients.iter().flatten().all(Client::is_done);
            for index in 0..self.clients.len() {
                while self.read(index, 64 << 10)? > 0 {
                    is_idle = false;
                }
            }
            if is_idle {
                return Ok(());
            }
        }
        Err("the bus does not come to rest".into())
    }
}

/// Each step once in a round, in an order of the seed's choice.
pub(super) fn play(stage: &mut Stage, rounds: usize, more: &[Step]) -> Result<(), String> {
    for _ in 0..rounds {
        let mut steps = [&STEPS, more].concat();
        while !steps.is_empty() {
            let index = stage.below(steps.len());
            let step = steps.swap_remove(index);
            stage.step(step).map_err(|error| format!("{step:?}: {error}"))?;
        }
    }
    Ok(())
}
