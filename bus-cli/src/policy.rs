//! `bus policy`: what a policy says of something that somebody would do, and what in it is probably not meant.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use bus_daemon::config::policy::Policy;
use bus_daemon::policy::compile::{Applicable, Compiled};
use bus_daemon::policy::explain::{self, Explanation, Party};
use bus_daemon::policy::lint::{self, Severity};
use bus_daemon::policy::text::type_named;
use bus_daemon::policy::verdict::{Access, Who};
use bus_daemon::policy::vocabulary::Standing;
use bus_wire::MessageType;
use clap::{ArgGroup, Args, Subcommand};
use nix::unistd::{Gid, Group, Uid, User};
use serde_json::{Value, json};

use crate::connection::{self, Connection};
use crate::{Global, output};

/// What `bus policy explain` exits with where something is denied.
const DENIED: u8 = 3;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Say whether somebody may do something, and each rule that says so, the last first; nothing is sent
    ///
    /// Exits with 0 where it is allowed, 3 where it is denied, and 1 where that could not be found out.
    Explain(Question),
    /// Look for rules that do something else than they seem to
    Lint(Lint),
}

#[derive(Args)]
#[command(group(ArgGroup::new("matter").required(true).args(["destination", "own", "connect"])))]
pub(crate) struct Question {
    /// Who would send, or own: a bus name, or USER[:GROUP,...]; by default whoever asks
    #[arg(long, value_name = "WHO")]
    sender: Option<String>,
    /// Send a message to whoever has this name
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Its object path
    #[arg(long, value_name = "PATH", requires = "destination")]
    path: Option<String>,
    /// Its interface
    #[arg(long, value_name = "INTERFACE", requires = "destination")]
    interface: Option<String>,
    /// Its member
    #[arg(long, value_name = "MEMBER", requires = "destination")]
    member: Option<String>,
    /// Its type: method_call, method_return, error or signal
    #[arg(long = "type", value_name = "TYPE", requires = "destination")]
    message_type: Option<String>,
    /// Own this name
    #[arg(long, value_name = "NAME")]
    own: Option<String>,
    /// Connect: USER[:GROUP,...]
    #[arg(long, value_name = "WHO", conflicts_with = "sender")]
    connect: Option<String>,
    /// Ask these files alone, and no running bus
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Lint {
    /// Configuration files; by default that of the system bus
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Fail on warnings, too
    #[arg(long)]
    strict: bool,
}

pub(crate) fn run(global: &Global, command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Explain(question) => question.run(global),
        Command::Lint(lint) => lint.run(global),
    }
}

/// What was found out: whether it is allowed, and the rules, each with its file, its line and whether it decided.
struct Answer {
    allowed: bool,
    rules: Vec<(String, String, u64, bool)>,
}

impl Question {
    fn run(&self, global: &Global) -> anyhow::Result<ExitCode> {
        let answer = match &self.config_file {
            Some(file) => self.ask_files(file)?,
            None => self.ask_bus(global)?,
        };
        answer.print(global.json);
        Ok(ExitCode::from(if answer.allowed { 0 } else { DENIED }))
    }

    fn ask_bus(&self, global: &Global) -> anyhow::Result<Answer> {
        let mut query: Vec<(&str, String)> = Vec::new();
        let who = |who: &str| -> anyhow::Result<String> {
            if is_bus_name(who) {
                return Ok(who.to_owned());
            }
            let (uid, gids) = numbers(who)?;
            let gids: Vec<String> = gids.iter().map(ToString::to_string).collect();
            Ok(format!("{uid}:{}", gids.join(",")))
        };
        for (key, value) in [("sender", &self.sender), ("connect", &self.connect)] {
            if let Some(value) = value {
                query.push((key, who(value)?));
            }
        }
        for (key, value) in [
            ("destination", &self.destination),
            ("path", &self.path),
            ("interface", &self.interface),
            ("member", &self.member),
            ("type", &self.message_type),
            ("own", &self.own),
        ] {
            query.extend(value.clone().map(|value| (key, value)));
        }
        let address = connection::address(global)?;
        let values = Connection::open(&address)?.explain(&query)?;
        Answer::read(&values).context("the bus answers with something else")
    }

    fn ask_files(&self, file: &Path) -> anyhow::Result<Answer> {
        let policy = Compiled::new(load(file)?);
        let who = match (&self.connect, &self.sender) {
            (Some(who), _) | (None, Some(who)) if !is_bus_name(who) => numbers(who)?,
            (Some(_), _) | (None, Some(_)) => bail!("files know no bus names: say USER[:GROUP,...]"),
            (None, None) => {
                let gids = nix::unistd::getgroups()?.into_iter().map(Gid::as_raw).collect();
                (Uid::effective().as_raw(), gids)
            }
        };
        let who = Who {
            uid: who.0,
            gids: &who.1,
            at_console: false,
        };
        let applicable = policy.applicable(who);
        let explanation = match (&self.own, &self.destination) {
            (Some(name), _) => explain::explain_ownership(&policy, &applicable, name),
            (None, Some(destination)) => self.explain_message(&policy, applicable, destination)?,
            (None, None) => explain::explain_connect(&policy, who, Uid::effective().as_raw()),
        };
        Ok(Answer::of(&policy, explanation))
    }

    fn explain_message(
        &self,
        policy: &Compiled,
        applicable: Applicable,
        destination: &str,
    ) -> anyhow::Result<Explanation> {
        let message_type = match self.message_type.as_deref() {
            None => MessageType::MethodCall,
            Some(name) => {
                type_named(name).context("the type is method_call, method_return, error or signal")?
            }
        };
        let access = Access::asked_about(
            message_type,
            [
                self.path.as_deref(),
                self.interface.as_deref(),
                self.member.as_deref(),
            ],
        );
        let from = Party {
            applicable: Some(applicable),
            standing: Standing::default(),
        };
        // Whoever would have the name: no file says who that is.
        let to = Party {
            applicable: None,
            standing: Standing::of(destination, policy.patterns()),
        };
        Ok(explain::explain_message(policy, access, &from, &to))
    }
}

impl Answer {
    fn of(policy: &Compiled, explanation: Explanation) -> Self {
        let rules = explanation.reasons.iter().filter_map(|reason| {
            let (text, place) = policy.policy().described(reason.rule)?;
            Some((text, place.file, u64::from(place.line), reason.decides))
        });
        Self {
            allowed: explanation.allowed,
            rules: rules.collect(),
        }
    }

    /// From the answer of a bus.
    fn read(values: &[Value]) -> Option<Self> {
        let [allowed, rules] = values else { return None };
        let rules = rules.as_array()?.iter().map(|rule| {
            let [text, file, line, decided] = rule.as_array()?.as_slice() else {
                return None;
            };
            Some((
                text.as_str()?.to_owned(),
                file.as_str()?.to_owned(),
                line.as_u64()?,
                decided.as_bool()?,
            ))
        });
        Some(Self {
            allowed: allowed.as_bool()?,
            rules: rules.collect::<Option<_>>()?,
        })
    }

    fn print(&self, as_json: bool) {
        if as_json {
            let rules = self.rules.iter().map(|(text, file, line, decided)| {
                json!({"text": text, "file": file, "line": line, "decided": decided})
            });
            let rules: Vec<Value> = rules.collect();
            return output::line(&json!({"allowed": self.allowed, "rules": rules}).to_string());
        }
        output::line(if self.allowed { "allowed" } else { "denied" });
        if self.rules.is_empty() {
            output::line("  no rule matches");
        }
        for (text, file, line, decided) in &self.rules {
            let mark = if *decided { "*" } else { " " };
            output::line(&format!("{mark} {file}:{line}: {text}"));
        }
    }
}

impl Lint {
    fn run(&self, global: &Global) -> anyhow::Result<ExitCode> {
        let system = [PathBuf::from(bus_daemon::config::stock::SYSTEM_FILE)];
        let files = if self.files.is_empty() {
            &system[..]
        } else {
            &self.files
        };
        let mut worst = None;
        for file in files {
            for finding in lint::lint(&load(file)?) {
                worst = worst.max(Some(finding.severity));
                let severity = match finding.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                };
                output::line(&if global.json {
                    let place = &finding.place;
                    json!({"severity": severity, "file": place.file, "line": place.line, "text": finding.text})
                        .to_string()
                } else {
                    format!("{}: {severity}: {}", finding.place, finding.text)
                });
            }
        }
        let fails = match worst {
            Some(Severity::Error) => true,
            Some(Severity::Warning) => self.strict,
            None => false,
        };
        Ok(ExitCode::from(u8::from(fails)))
    }
}

/// The policy of a configuration file and of all that it includes.
fn load(file: &Path) -> anyhow::Result<Policy> {
    let (policy, warnings) = bus_daemon::config::load::policy_of(file)?;
    for warning in warnings {
        output::complain(&warning);
    }
    Ok(policy)
}

fn is_bus_name(who: &str) -> bool {
    who.starts_with(':') || who.contains('.')
}

/// Of `USER[:GROUP,...]`: without groups the user has those that the data base says.
fn numbers(who: &str) -> anyhow::Result<(u32, Vec<u32>)> {
    let (user, groups) = who
        .split_once(':')
        .map_or((who, None), |(user, groups)| (user, Some(groups)));
    let known = match user.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid))?,
        Err(_) => User::from_name(user)?,
    };
    let uid = match (&known, user.parse()) {
        (Some(known), _) => known.uid.as_raw(),
        (None, Ok(uid)) => uid,
        (None, Err(_)) => bail!("there is no user {user:?}"),
    };
    let gids = match (groups, known) {
        (Some(groups), _) => {
            let groups = groups.split(',').filter(|group| !group.is_empty());
            groups.map(gid_of).collect::<anyhow::Result<_>>()?
        }
        (None, Some(known)) => {
            let name = std::ffi::CString::new(known.name)?;
            let groups = nix::unistd::getgrouplist(&name, known.gid)?;
            groups.into_iter().map(Gid::as_raw).collect()
        }
        (None, None) => Vec::new(),
    };
    Ok((uid, gids))
}

fn gid_of(group: &str) -> anyhow::Result<u32> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let found = Group::from_name(group)?.with_context(|| format!("there is no group {group:?}"))?;
    Ok(found.gid.as_raw())
}
