//! The daemon alone, with dbus-daemon's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    bus_daemon::main_from(std::env::args_os().skip(1).collect())
}
