use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::mpsc;

use nix::fcntl::{FcntlArg, fcntl};
use nix::pty::openpty;

use super::*;

/// Longer than any of the buffers of the kernel holds, in lines of `line`.
const MANY: u32 = 30_000;
/// How long a test may take that must not wait.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn line(number: u32) -> String {
    format!(" WARN peer {number} is disconnected: it sent what nobody understands\n")
}

/// Writes `MANY` lines while nobody reads, and gives the sink back. Fails if that waits.
fn flood(mut sink: Sink) -> Sink {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        for number in 0..MANY {
            sink.write(line(number).as_bytes());
        }
        done.send(sink).unwrap();
    });
    is_done.recv_timeout(PATIENCE).expect("the sink waits")
}

/// Reads what there is until the end of a line with `last`, and gives it without the carriage returns of terminals.
fn read_until(mut reader: impl Read + Send + 'static, last: &str) -> String {
    let (done, is_done) = mpsc::channel();
    let last = last.to_owned();
    std::thread::spawn(move || {
        let (mut all, mut chunk) = (String::new(), [0; 4096]);
        while !all
            .split_once(&last)
            .is_some_and(|(_, after)| after.contains('\n'))
        {
            let len = reader.read(&mut chunk).unwrap();
            assert!(len > 0, "the end came first");
            all.push_str(std::str::from_utf8(&chunk[..len]).unwrap());
        }
        done.send(all).unwrap();
    });
    let all = is_done.recv_timeout(PATIENCE).expect("it does not come");
    all.replace('\r', "")
}

/// Floods, reads, writes one more line while `reader` reads: every line is whole, in order, and what is missing was
/// counted exactly.
fn check(sink: Sink, reader: impl Read + Send + 'static) {
    let mut sink = flood(sink);
    assert!(sink.left_out > 0, "all of it was taken");
    let left_out = u32::try_from(sink.left_out).unwrap();
    let reader = std::thread::spawn(move || read_until(reader, "peer 77777 "));
    // The reader has to make room first.
    let mut more = 0;
    while sink.left_out > 0 || !sink.rest.is_empty() {
        sink.write(line(77_777).as_bytes());
        more += 1;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let all = reader.join().unwrap();
    // The kernel may make room by itself in the middle of the flood (a terminal's buffers are passed on by a thread of its
    // own), and a reader that makes room for one line at a time gets more than one notice.
    let mut expected = 0;
    let mut last_lines = 0;
    for one in all.split_inclusive('\n') {
        if let Some(count) = left_out_by(one) {
            expected += count;
        } else if one == line(77_777) {
            last_lines += 1;
        } else {
            assert_eq!(one, line(expected), "after {expected} lines");
            expected += 1;
        }
    }
    assert!(last_lines > 0);
    // Lines of the end may have been left out, too.
    assert!(
        (MANY..MANY + more).contains(&expected) && left_out > 0,
        "{expected} lines are accounted for, and {more} are of the end"
    );
}

/// How many lines a notice says were left out, if the line is one.
fn left_out_by(line: &str) -> Option<u32> {
    let (count, what) = line.strip_prefix(" WARN ")?.split_once(' ')?;
    let is_notice = what == "log lines were left out: nobody read them\n"
        || what == "log line was left out: nobody read them\n";
    is_notice.then(|| count.parse().ok())?
}

/// The open file description of the descriptor has not become non-blocking for those who share it.
fn is_blocking(fd: impl AsFd) -> bool {
    !OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
}

#[test]
fn a_terminal_that_nobody_reads() {
    let pty = openpty(None, None).unwrap();
    let sink = Sink::new(pty.slave.as_raw_fd());
    assert!(matches!(sink.way, Way::Own(_)));
    assert!(is_blocking(&pty.slave));
    check(sink, File::from(pty.master));
}

#[test]
fn a_terminal_that_cannot_be_opened_again() {
    let pty = openpty(None, None).unwrap();
    let mut sink = Sink::new(pty.slave.as_raw_fd());
    sink.way = Way::Polled(1);
    check(sink, File::from(pty.master));
}

#[test]
fn a_terminal_that_was_stopped() {
    use nix::sys::termios::{FlowArg, tcflow};
    let pty = openpty(None, None).unwrap();
    tcflow(&pty.slave, FlowArg::TCOOFF).unwrap();
    let mut sink = flood(Sink::new(pty.slave.as_raw_fd()));
    assert_eq!(sink.left_out, u64::from(MANY));
    tcflow(&pty.slave, FlowArg::TCOON).unwrap();
    sink.write(line(77_777).as_bytes());
    let all = read_until(File::from(pty.master), "peer 77777 ");
    let notice = format!(" WARN {MANY} log lines were left out: nobody read them\n");
    assert_eq!(all, notice + &line(77_777));
}

#[test]
fn a_pipe_that_nobody_reads() {
    let (output, input) = std::io::pipe().unwrap();
    let sink = Sink::new(input.as_raw_fd());
    assert!(matches!(sink.way, Way::Own(_)));
    assert!(is_blocking(&input));
    check(sink, output);
}

#[test]
fn a_pipe_that_cannot_be_opened_again() {
    for way in [Way::NoWait, Way::Polled(LINE)] {
        let (output, input) = std::io::pipe().unwrap();
        let mut sink = Sink::new(input.as_raw_fd());
        sink.way = way;
        check(sink, output);
        drop(input);
    }
}

#[test]
fn a_socket_that_nobody_reads() {
    let (reader, writer) = UnixStream::pair().unwrap();
    let sink = Sink::new(writer.as_raw_fd());
    assert!(is_blocking(&writer));
    check(sink, reader);
}

#[test]
fn a_datagram_socket_that_nobody_reads() {
    let (reader, writer) = UnixDatagram::pair().unwrap();
    let sink = flood(Sink::new(writer.as_raw_fd()));
    assert!(sink.left_out > 0);
    let mut chunk = [0; 4096];
    for number in 0..MANY - u32::try_from(sink.left_out).unwrap() {
        let len = reader.recv(&mut chunk).unwrap();
        assert_eq!(&chunk[..len], line(number).as_bytes());
    }
}

#[test]
fn a_pipe_without_a_reader() {
    for reopened in [true, false] {
        let (output, input) = std::io::pipe().unwrap();
        let mut sink = Sink::new(input.as_raw_fd());
        if !reopened {
            sink.way = Way::Polled(LINE);
        }
        drop(output);
        let sink = flood(sink);
        assert_eq!((sink.left_out, sink.why), (u64::from(MANY), Errno::EPIPE));
    }
}

#[test]
fn a_disk_that_is_full() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let sink = flood(Sink::new(full.as_raw_fd()));
    assert_eq!(sink.left_out, u64::from(MANY));
    assert_eq!(
        sink.notice(),
        format!(
            " WARN {MANY} log lines were left out: they could not be written (No space left on device)\n"
        )
    );
}

#[test]
fn a_line_that_is_taken_in_part_is_ended_before_the_next() {
    use std::os::unix::fs::MetadataExt;
    let pty = openpty(None, None).unwrap();
    let mut sink = flood(Sink::new(pty.slave.as_raw_fd()));
    // However much the terminal has taken of the last line.
    sink.rest = b"the end of a line\n".to_vec();
    sink.left_out = 1;
    let reader = std::thread::spawn(move || read_until(File::from(pty.master), "peer 77777 "));
    while sink.left_out > 0 || !sink.rest.is_empty() {
        sink.write(line(77_777).as_bytes());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let all = reader.join().unwrap();
    let (_, after) = all.split_once("the end of a line\n").unwrap();
    assert!(after.contains("left out: nobody read them\n"), "{after}");
    // A file takes everything.
    let file = tempfile::tempfile().unwrap();
    let mut sink = Sink::new(file.as_raw_fd());
    sink.write(line(1).as_bytes());
    assert_eq!(file.metadata().unwrap().size(), line(1).len() as u64);
}

#[test]
fn a_line_that_is_too_long_is_cut_between_characters() {
    let long = format!("{}\n", "ä".repeat(4_000));
    let short = cut(long.as_bytes());
    assert!(short.len() <= LINE && short.len() > LINE - 6);
    let text = std::str::from_utf8(&short).unwrap();
    assert!(text.ends_with("ä...\n"));
    assert_eq!(&*cut(b"as it is\n"), b"as it is\n");
}
