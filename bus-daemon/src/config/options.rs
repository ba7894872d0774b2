//! The command line: that of dbus-daemon(1), understood in the same way.

use std::path::PathBuf;

use thiserror::Error;

use super::Config;
use super::stock::ConfigSource;
use super::xml::{Problem, check_listen};

/// How the daemon is called, for `--help` and after a mistake.
pub const USAGE: &str = "\
[--version] [--session] [--system] [--config-file=FILE] [--print-address[=DESCRIPTOR]] [--print-pid[=DESCRIPTOR]] \
[--introspect] [--address=ADDRESS] [--nopidfile] [--nofork] [--fork] [--syslog] [--syslog-only] [--nosyslog] \
[--systemd-activation]";

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `--help`
    Help,
    /// `--version`
    Version,
    /// `--introspect`: print the introspection data of the driver.
    Introspect,
    /// Serve.
    Run(Box<Options>),
}

/// The options of a daemon that serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `--session`, `--system` or `--config-file`.
    pub source: ConfigSource,
    /// `--address`, checked, a list perhaps: takes the place of every `<listen>`.
    pub address: Option<String>,
    /// `--fork` (true), `--nofork` (false): takes the place of `<fork/>`.
    pub fork: Option<bool>,
    /// `--print-address`: the descriptor to write the address to. Set as well where there is no configuration file:
    /// nobody could know the address otherwise.
    pub print_address: Option<i32>,
    /// `--print-pid`: the descriptor to write the process id to.
    pub print_pid: Option<i32>,
    /// `--systemd-activation`
    pub systemd_activation: bool,
    /// `--nopidfile`: takes the place of `<pidfile>`.
    pub no_pid_file: bool,
    /// `--syslog`, `--syslog-only`, `--nosyslog`: takes the place of `<syslog/>`.
    pub syslog: Option<Syslog>,
    /// Internal, after an upgrade in place: the descriptor of the state to go on from.
    pub restore_fd: Option<i32>,
    /// Internal, with `--restore`: a newer binary could not go on, for this reason; the one that wrote the state does.
    pub rolled_back: Option<String>,
    /// Internal, before an upgrade in place: the descriptor of the state to try.
    pub check_upgrade_fd: Option<i32>,
}

/// Where messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syslog {
    /// `--syslog`: to syslog and to standard error.
    Also,
    /// `--syslog-only`
    Only,
    /// `--nosyslog`: to standard error.
    Never,
}

/// What is wrong with the command line.
#[derive(Debug, Error)]
pub enum OptionsError {
    /// An option or argument that does not exist. Followed by [`USAGE`], as all except for the next two.
    #[error("unknown argument {0:?}")]
    Unknown(String),
    /// More than one of `--session`, `--system` and `--config-file`.
    #[error("{0}: a configuration file is already requested")]
    TwoConfigs(&'static str),
    /// Not the number of a descriptor.
    #[error("{option}: invalid file descriptor {text:?}")]
    Descriptor {
        /// Which option.
        option: &'static str,
        /// Its value.
        text: String,
    },
    /// An option without its value.
    #[error("{0} must be followed by a value")]
    NoValue(&'static str),
    /// A flag with a value.
    #[error("{0} takes no value")]
    Value(&'static str),
    /// Not an address.
    #[error("--address: {0}")]
    Address(#[from] Problem),
}

/// Reads the arguments, without the name of the program.
///
/// # Errors
/// There is something wrong in them; the daemon is to exit with status 1.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, OptionsError> {
    let mut arguments = arguments.into_iter().peekable();
    let mut options = Options::default();
    let mut command = None;
    while let Some(argument) = arguments.next() {
        let (name, mut value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (argument.as_str(), None),
        };
        let option = known(name).ok_or_else(|| OptionsError::Unknown(argument.clone()))?;
        let takes = option.takes();
        if takes == Takes::Nothing && value.is_some() {
            return Err(OptionsError::Value(option.name()));
        }
        if takes != Takes::Nothing && value.is_none() {
            value = arguments.next_if(|next| takes == Takes::Value || !next.starts_with('-'));
        }
        // `--print-address=` is the same as `--print-address`.
        let value = value.filter(|value| !value.is_empty());
        if takes == Takes::Value && value.is_none() {
            return Err(OptionsError::NoValue(option.name()));
        }
        if let Some(asked) = options.set(option, value)? {
            command.get_or_insert(asked);
        }
    }
    if options.source == ConfigSource::Embedded {
        options.print_address.get_or_insert(STDOUT);
    }
    Ok(command.unwrap_or_else(|| Command::Run(Box::new(options))))
}

const STDOUT: i32 = 1;

/// All options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Address,
    CheckUpgrade,
    ConfigFile,
    Fork,
    Help,
    Introspect,
    NoFork,
    NoPidFile,
    NoSyslog,
    PrintAddress,
    PrintPid,
    Restore,
    RolledBack,
    Session,
    Syslog,
    SyslogOnly,
    System,
    SystemdActivation,
    Version,
}

/// Whether an option has a value, as `--name=value` or `--name value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    /// A value, unless the next argument is an option.
    Maybe,
    Value,
}

const NAMES: [(Name, &str, Takes); 19] = [
    (Name::Address, "--address", Takes::Value),
    (Name::CheckUpgrade, "--check-upgrade", Takes::Value),
    (Name::ConfigFile, "--config-file", Takes::Value),
    (Name::Fork, "--fork", Takes::Nothing),
    (Name::Help, "--help", Takes::Nothing),
    (Name::Introspect, "--introspect", Takes::Nothing),
    (Name::NoFork, "--nofork", Takes::Nothing),
    (Name::NoPidFile, "--nopidfile", Takes::Nothing),
    (Name::NoSyslog, "--nosyslog", Takes::Nothing),
    (Name::PrintAddress, "--print-address", Takes::Maybe),
    (Name::PrintPid, "--print-pid", Takes::Maybe),
    (Name::Restore, "--restore", Takes::Value),
    (Name::RolledBack, "--rolled-back", Takes::Value),
    (Name::Session, "--session", Takes::Nothing),
    (Name::Syslog, "--syslog", Takes::Nothing),
    (Name::SyslogOnly, "--syslog-only", Takes::Nothing),
    (Name::System, "--system", Takes::Nothing),
    (Name::SystemdActivation, "--systemd-activation", Takes::Nothing),
    (Name::Version, "--version", Takes::Nothing),
];

fn known(text: &str) -> Option<Name> {
    if matches!(text, "-h" | "-?") {
        return Some(Name::Help);
    }
    NAMES
        .iter()
        .find(|(_, name, _)| *name == text)
        .map(|(option, _, _)| *option)
}

impl Name {
    fn entry(self) -> (&'static str, Takes) {
        NAMES
            .iter()
            .find(|(option, _, _)| *option == self)
            .map_or(("", Takes::Nothing), |(_, name, takes)| (name, *takes))
    }

    fn name(self) -> &'static str {
        self.entry().0
    }

    fn takes(self) -> Takes {
        self.entry().1
    }
}

impl Options {
    /// One option. What comes later takes the place of what came before.
    fn set(&mut self, option: Name, value: Option<String>) -> Result<Option<Command>, OptionsError> {
        match option {
            Name::Help => return Ok(Some(Command::Help)),
            Name::Version => return Ok(Some(Command::Version)),
            Name::Introspect => return Ok(Some(Command::Introspect)),
            Name::Session => self.set_source(option, ConfigSource::Session)?,
            Name::System => self.set_source(option, ConfigSource::System)?,
            Name::ConfigFile => {
                let path = PathBuf::from(value.unwrap_or_default());
                self.set_source(option, ConfigSource::File(path))?;
            }
            Name::Address => self.address = Some(check_listen(&value.unwrap_or_default())?),
            Name::Fork => self.fork = Some(true),
            Name::NoFork => self.fork = Some(false),
            Name::PrintAddress => self.print_address = Some(descriptor(option, value)?),
            Name::PrintPid => self.print_pid = Some(descriptor(option, value)?),
            Name::SystemdActivation => self.systemd_activation = true,
            Name::NoPidFile => self.no_pid_file = true,
            Name::Syslog => self.syslog = Some(Syslog::Also),
            Name::SyslogOnly => self.syslog = Some(Syslog::Only),
            Name::NoSyslog => self.syslog = Some(Syslog::Never),
            Name::Restore => self.restore_fd = Some(descriptor(option, value)?),
            Name::RolledBack => self.rolled_back = value,
            Name::CheckUpgrade => self.check_upgrade_fd = Some(descriptor(option, value)?),
        }
        Ok(None)
    }

    fn set_source(&mut self, option: Name, source: ConfigSource) -> Result<(), OptionsError> {
        if self.source != ConfigSource::Embedded {
            return Err(OptionsError::TwoConfigs(option.name()));
        }
        self.source = source;
        Ok(())
    }

    /// Puts what the command line says in the place of what the configuration says.
    pub fn apply(&self, config: &mut Config) {
        if let Some(address) = &self.address {
            config.listen = vec![address.clone()];
        }
        if let Some(fork) = self.fork {
            config.fork = fork;
        }
        if self.no_pid_file {
            config.pid_file = None;
        }
        if let Some(syslog) = self.syslog {
            config.syslog = syslog != Syslog::Never;
        }
    }
}

/// A descriptor; without a value, standard output.
fn descriptor(option: Name, value: Option<String>) -> Result<i32, OptionsError> {
    let Some(text) = value else { return Ok(STDOUT) };
    let number = text.parse().ok().filter(|number| *number >= 0);
    number.ok_or(OptionsError::Descriptor {
        option: option.name(),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, OptionsError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[track_caller]
    fn check(line: &str, expected: Options) {
        assert_eq!(read(line).unwrap(), Command::Run(Box::new(expected)), "{line}");
    }

    #[track_caller]
    fn refused(line: &str, message: &str) {
        assert_eq!(read(line).unwrap_err().to_string(), message, "{line}");
    }

    fn session() -> Options {
        Options {
            source: ConfigSource::Session,
            ..Options::default()
        }
    }

    #[test]
    fn sources() {
        check(
            "",
            Options {
                print_address: Some(1),
                ..Options::default()
            },
        );
        check("--session", session());
        check(
            "--system",
            Options {
                source: ConfigSource::System,
                ..Options::default()
            },
        );
        let file = Options {
            source: ConfigSource::File("/a=b".into()),
            ..Options::default()
        };
        check("--config-file=/a=b", file.clone());
        check("--config-file /a=b", file);
        refused(
            "--session --system",
            "--system: a configuration file is already requested",
        );
        refused(
            "--session --config-file=x",
            "--config-file: a configuration file is already requested",
        );
    }

    #[test]
    fn descriptors() {
        let address = |fd| Options {
            print_address: Some(fd),
            ..session()
        };
        for line in [
            "--print-address",
            "--print-address=",
            "--print-address=1",
            "--print-address 1",
        ] {
            check(&format!("--session {line}"), address(1));
        }
        check("--session --print-address=7", address(7));
        check("--session --print-address 7", address(7));
        check("--print-address --session", address(1));
        check(
            "--print-pid --session",
            Options {
                print_pid: Some(1),
                ..session()
            },
        );
        let both = Options {
            print_pid: Some(5),
            print_address: Some(4),
            ..session()
        };
        check("--session --print-pid 5 --print-address=4", both);
        for text in ["x", "1x", "99999999999"] {
            let message = format!("--print-address: invalid file descriptor {text:?}");
            refused(&format!("--session --print-address={text}"), &message);
            refused(&format!("--session --print-address {text}"), &message);
        }
        refused("--print-pid=-1", "--print-pid: invalid file descriptor \"-1\"");
        check(
            "--session --restore=3",
            Options {
                restore_fd: Some(3),
                ..session()
            },
        );
        check(
            "--session --check-upgrade 9",
            Options {
                check_upgrade_fd: Some(9),
                ..session()
            },
        );
        refused("--restore", "--restore must be followed by a value");
    }

    #[test]
    fn the_rest() {
        let address = Options {
            address: Some("unix:path=/a;tcp:host=b".into()),
            ..session()
        };
        check("--session --address unix:path=/a;tcp:host=b", address.clone());
        check("--session --address=unix:path=/a;tcp:host=b", address);
        check(
            "--session --fork --nofork",
            Options {
                fork: Some(false),
                ..session()
            },
        );
        check(
            "--session --nopidfile",
            Options {
                no_pid_file: true,
                ..session()
            },
        );
        check(
            "--session --systemd-activation",
            Options {
                systemd_activation: true,
                ..session()
            },
        );
        for (line, syslog) in [
            ("--syslog", Syslog::Also),
            ("--syslog-only", Syslog::Only),
            ("--syslog --nosyslog", Syslog::Never),
        ] {
            check(
                &format!("--session {line}"),
                Options {
                    syslog: Some(syslog),
                    ..session()
                },
            );
        }
        assert_eq!(read("--version --session").unwrap(), Command::Version);
        assert_eq!(read("--session --help").unwrap(), Command::Help);
        assert_eq!(read("--introspect").unwrap(), Command::Introspect);
        refused("--bogus", "unknown argument \"--bogus\"");
        refused("x", "unknown argument \"x\"");
        refused("--version --bogus=1", "unknown argument \"--bogus=1\"");
        refused("--session=x", "--session takes no value");
        refused("--config-file", "--config-file must be followed by a value");
        refused(
            "--address=foo",
            "--address: \"foo\": address, byte 3: expected the name of a transport and a colon",
        );
    }

    #[test]
    fn applied() {
        let mut config = Config {
            fork: true,
            pid_file: Some("/p".into()),
            syslog: true,
            ..Config::default()
        };
        session().apply(&mut config);
        assert!(config.fork && config.syslog && config.pid_file.is_some());
        let Ok(Command::Run(options)) = read("--nofork --nopidfile --nosyslog --address=unix:path=/a") else {
            panic!()
        };
        options.apply(&mut config);
        let expected = Config {
            listen: vec!["unix:path=/a".into()],
            ..Config::default()
        };
        assert_eq!(config, expected);
    }
}
