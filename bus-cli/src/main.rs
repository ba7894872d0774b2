//! The `bus` tool: one binary that is the daemon, inspects it, upgrades it in place and demonstrates it.

mod carry;
mod connection;
mod demo;
#[cfg(feature = "network")]
mod keygen;
mod output;
mod policy;
mod running;
mod status;
mod upgrade;
mod value;

use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs, inspects, upgrades and demonstrates a message bus.
#[derive(Parser)]
#[command(name = "bus", version, about)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand but `daemon`.
#[derive(Args, Debug, Default)]
struct Global {
    /// The session bus: $DBUS_SESSION_BUS_ADDRESS, or the socket `bus` in $XDG_RUNTIME_DIR
    #[arg(long, global = true, conflicts_with_all = ["system", "address"])]
    session: bool,
    /// The system bus
    #[arg(long, global = true, conflicts_with = "address")]
    system: bool,
    /// The bus at this address
    #[arg(long, global = true, value_name = "ADDRESS")]
    address: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Start a real bus, put it under load, upgrade it in place and kill its worker, over and over, and count every message
    Demo(demo::Options),
    /// Be the daemon, with dbus-daemon's command line (see `bus daemon --help`)
    #[command(disable_help_flag = true)]
    Daemon {
        /// The daemon's own options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        options: Vec<OsString>,
    },
    /// Make a key for bus-tcp: addresses: FILE, which only its owner can read, and FILE.pub with what others know it by
    #[cfg(feature = "network")]
    Keygen {
        /// The private key; must not exist
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Carry a bus-tcp session over stdin and stdout to a listener on this machine, for `ssh HOST bus carry`
    Carry {
        /// The unix socket of the listener
        #[arg(long, value_name = "PATH")]
        connect: PathBuf,
    },
    /// Say who may do what, and which rules say so
    #[command(subcommand)]
    Policy(policy::Command),
    /// Show what a bus is doing and what it has survived
    Status,
    /// Replace a running bus by another binary, in place; its clients stay connected
    Upgrade {
        /// The new binary; by default the one now at the path that the bus was started from
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
        /// Every running bus of this kind on this machine
        #[arg(long, conflicts_with_all = ["session", "system", "address"])]
        all: bool,
    },
}

fn main() -> ExitCode {
    // The daemon shares this process with nothing: its arguments go to it as they are, before anything is set up.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "daemon") {
        return bus_daemon::main_from(arguments.collect());
    }
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Demo(options) => demo::run(&options, cli.global.json),
        Command::Daemon { options } => return bus_daemon::main_from(options),
        #[cfg(feature = "network")]
        Command::Keygen { file } => keygen::run(&file, cli.global.json),
        Command::Carry { connect } => carry::run(&connect),
        Command::Policy(command) => policy::run(&cli.global, &command),
        Command::Status => status::run(&cli.global),
        Command::Upgrade { binary, all: false } => upgrade::run(&cli.global, binary.as_deref()),
        Command::Upgrade { binary, all: true } => upgrade::run_all(cli.global.json, binary.as_deref()),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            output::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
