//! The daemon with the format of the state that its successor might have, for tests of the way there and back.

use std::process::ExitCode;

fn main() -> ExitCode {
    bus_daemon::main_from(std::env::args_os().skip(1).collect())
}
