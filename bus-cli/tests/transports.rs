//! TCP, with and without a nonce: who gets in, what a link can do, and that deaths of the worker and upgrades are not felt.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::clock::Deadline;
use bus_wire::Address;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::listening::{ANYBODY, Listening, command};
use support::process::{strike, worker_pid};
use support::speaker::{Speaker, nonce};
use support::wait_until;

fn key<'a>(address: &'a Address, key: &str) -> &'a str {
    address.get_str(key).unwrap_or_default()
}

#[test]
fn tcp_has_any_port_a_guid_and_no_credentials() {
    let bus = Listening::start(&format!("<listen>tcp:host=127.0.0.1,port=0</listen>{ANYBODY}"));
    let other = Listening::start(&format!("<listen>tcp:host=127.0.0.1</listen>{ANYBODY}"));
    let [address] = bus.addresses.as_slice() else {
        panic!()
    };
    assert_eq!((address.transport(), key(address, "host")), ("tcp", "127.0.0.1"));
    assert_eq!(key(address, "family"), "ipv4");
    assert_ne!(key(address, "port"), key(&other.addresses[0], "port"));
    let mut speaker = Speaker::connect(address);
    // The kernel tells nothing of who is there, so EXTERNAL lets nobody in, whoever he says he is.
    let rejected = "REJECTED EXTERNAL ANONYMOUS";
    assert_eq!(speaker.say("AUTH EXTERNAL 30"), rejected);
    assert_eq!(speaker.say("AUTH EXTERNAL"), rejected);
    assert_eq!(
        speaker.say("AUTH ANONYMOUS"),
        format!("OK {}", key(address, "guid"))
    );
    let no_fds = speaker.say("NEGOTIATE_UNIX_FD");
    assert!(no_fds.starts_with("ERROR "), "{no_fds}");
    speaker.begin();
    assert_eq!(speaker.user(), Err("org.freedesktop.DBus.Error.Failed".into()));
    let own = speaker.unique.clone();
    let credentials = speaker.call("GetConnectionCredentials", |body| {
        body.str(&own);
    });
    let mut names = Vec::new();
    credentials
        .body()
        .read_array(|entry| {
            entry.read_dict_entry(|entry| {
                names.push(entry.read_str()?.to_owned());
                entry.skip()
            })
        })
        .unwrap();
    assert!(names.is_empty(), "{names:?}");
    Speaker::anonymous(&other.addresses[0]);
}

#[test]
fn a_host_is_listened_to_at_all_its_addresses_with_one_port() {
    let bus = Listening::start(&format!(
        "<listen>tcp:host=localhost,bind=*,port=0</listen>{ANYBODY}"
    ));
    let [address] = bus.addresses.as_slice() else {
        panic!("{:?}", bus.addresses)
    };
    assert_eq!(key(address, "host"), "localhost");
    assert_eq!(address.get("bind"), None);
    let port: u16 = key(address, "port").parse().unwrap();
    Speaker::anonymous(address);
    // Where the machine has IPv6.
    if std::net::TcpListener::bind(("::1", 0)).is_ok() {
        let six = Address::new("tcp").and_then(|address| address.with("host", "::1"));
        let six = six
            .and_then(|address| address.with("port", port.to_string().as_str()))
            .unwrap();
        Speaker::anonymous(&six);
        assert_eq!(address.get("family"), None);
    }
    let four = Listening::start(&format!(
        "<listen>tcp:host=localhost,bind=127.0.0.1,family=ipv4</listen>{ANYBODY}"
    ));
    assert_eq!(key(&four.addresses[0], "family"), "ipv4");
    Speaker::anonymous(&four.addresses[0]);
}

#[test]
fn several_addresses_are_served_at_once_and_all_printed() {
    let bus = Listening::start(&format!(
        "<listen>unix:path=D/a</listen><listen>tcp:host=127.0.0.1</listen><listen>unix:dir=D/</listen>\
         <listen>nonce-tcp:host=127.0.0.1</listen><listen>nosuch:;unix:path=D/b</listen>{ANYBODY}"
    ));
    let transports: Vec<&str> = bus.addresses.iter().map(|one| one.transport()).collect();
    assert_eq!(transports, ["unix", "tcp", "unix", "nonce-tcp", "unix"]);
    let mut guids: Vec<&str> = bus.addresses.iter().map(|one| key(one, "guid")).collect();
    guids.sort_unstable();
    guids.dedup();
    assert_eq!(guids.len(), 5);
    let ids: Vec<String> = bus
        .addresses
        .iter()
        .map(|one| Speaker::anonymous(one).id())
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

const EACH: &str = "<listen>unix:path=D/bus</listen><listen>tcp:host=127.0.0.1</listen>\
                    <listen>nonce-tcp:host=127.0.0.1</listen>";

#[test]
fn links_and_listeners_outlive_workers_and_upgrades() {
    let bus = Listening::start(&format!("{EACH}{ANYBODY}"));
    let mut old: Vec<Speaker> = bus.addresses.iter().map(Speaker::anonymous).collect();
    let mut answers = 0;
    for round in 0..6 {
        // Each in the middle of its nonce, or of a line.
        let mut half: Vec<Speaker> = Vec::new();
        for address in &bus.addresses {
            let mut speaker = Speaker::silent(address);
            if address.transport() == "nonce-tcp" {
                speaker.send(&nonce(address)[..7]);
            } else {
                speaker.send(b"\0AUTH ANONY");
            }
            half.push(speaker);
        }
        if round % 2 == 0 {
            bus.kill_worker();
        } else {
            bus.upgrade();
        }
        for (speaker, address) in half.iter_mut().zip(&bus.addresses) {
            if address.transport() == "nonce-tcp" {
                speaker.send(&nonce(address)[7..]);
                speaker.send(b"\0AUTH ANONY");
            }
            assert_eq!(
                speaker.say("MOUS"),
                format!("OK {}", key(address, "guid")),
                "{round}"
            );
            speaker.begin();
            old.push(Speaker::anonymous(address));
        }
        old.extend(half);
        for speaker in &mut old {
            speaker.id();
            answers += 1;
        }
    }
    assert_eq!(answers, 3 * (6 + 2 * (1 + 2 + 3 + 4 + 5 + 6)));
}

/// The worker is killed while connections come: each gets in, whether the dead worker had noted it or not.
#[test]
fn connections_that_come_while_workers_die_get_in() {
    let bus = Listening::start(&format!("{EACH}{ANYBODY}"));
    let caller = std::sync::Mutex::new(bus.caller());
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let mut served = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                strike(worker_pid(&mut caller.lock().unwrap()), Signal::SIGKILL);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        for _ in 0..60 {
            for address in &bus.addresses {
                Speaker::anonymous(address).id();
                served += 1;
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(served, 180);
    assert!(support::recoveries(&mut caller.lock().unwrap()) > 5);
}

#[test]
fn a_wrong_nonce_is_refused_and_logged_and_a_late_one_holds_up_nobody() {
    let bus = Listening::start(&format!(
        "<listen>unix:path=D/bus</listen><listen>nonce-tcp:host=127.0.0.1</listen>{ANYBODY}\
         <limit name='auth_timeout'>1500</limit>"
    ));
    let address = &bus.addresses[1];
    let right = nonce(address);
    assert_eq!(right.len(), 16);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(key(address, "noncefile")).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    for after in [false, true] {
        if after {
            // The nonce is state.
            std::fs::remove_file(key(address, "noncefile")).unwrap();
            bus.kill_worker();
            bus.upgrade();
        }
        for wrong in [
            [0; 16].as_slice(),
            b"\0AUTH ANONYMOUS\r\n",
            &[&right[..15], &[!right[15]]].concat(),
        ] {
            let mut speaker = Speaker::silent(address);
            speaker.send(wrong);
            speaker.send(b"\0AUTH ANONYMOUS\r\n");
            speaker.expect_end();
        }
        let mut speaker = Speaker::silent(address);
        for byte in &right {
            speaker.send([*byte]);
            std::thread::sleep(Duration::from_millis(1));
        }
        speaker.send(b"\0");
        assert!(speaker.say("AUTH ANONYMOUS").starts_with("OK "));
        speaker.begin();
    }
    wait_until("the log tells of it", || bus.log().contains("the nonce is wrong"));
    // Somebody who says nothing at all, and somebody who says half of it.
    let silent = [Speaker::silent(address), Speaker::silent(address)];
    let mut others = bus.caller();
    let [mut one, mut other] = silent;
    other.send(&right[..5]);
    let asked = Deadline::after(Duration::from_millis(500));
    others.ask("GetNameOwner", support::DRIVER).unwrap();
    assert!(!asked.passed(), "somebody waited for a nonce");
    assert_eq!((one.line(), other.line()), (String::new(), String::new()));
}

#[test]
fn files_of_nonces_and_sockets_go_with_the_bus() {
    let bus = Listening::start(&format!("{EACH}{ANYBODY}"));
    let files: Vec<PathBuf> = [
        key(&bus.addresses[0], "path"),
        key(&bus.addresses[2], "noncefile"),
    ]
    .map(PathBuf::from)
    .to_vec();
    assert!(files.iter().all(|file| file.exists()));
    bus.upgrade();
    assert!(files.iter().all(|file| file.exists()));
    kill(Pid::from_raw(bus.pid() as i32), Signal::SIGTERM).unwrap();
    wait_until("they are gone", || files.iter().all(|file| !file.exists()));
}

/// What a bus with such a file says that does not start.
fn failure(directory: &Path, configuration: &str) -> String {
    let output = command(directory, configuration).output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    text.replace(&format!("{}/", directory.display()), "D/")
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut cases = vec![
        (
            "<listen>unix:path=D/missing/bus</listen>".to_owned(),
            "D/missing/bus",
        ),
        (
            "<listen>unix:path=D/second</listen><pidfile>D/missing/pid</pidfile>".to_owned(),
            "D/missing/pid",
        ),
        (
            format!("<listen>tcp:host=127.0.0.1,port={port}</listen>"),
            "in use",
        ),
        (
            "<listen>tcp:host=127.0.0.1,bind=203.0.113.1</listen>".to_owned(),
            "203.0.113.1",
        ),
    ];
    if nix::unistd::geteuid().is_root() {
        let unknown = "<user>nobodyofthatname</user>".to_owned();
        cases.push((unknown, "nobodyofthatname"));
    }
    for (rest, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let first = "<listen>unix:path=D/good</listen><listen>nonce-tcp:host=127.0.0.1</listen>";
        let said = failure(directory.path(), &format!("{first}{rest}"));
        assert!(said.contains(expected), "{rest}: {said}");
        let left: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "bus.conf")
            .collect();
        assert!(left.is_empty(), "{rest} leaves {left:?}");
    }
}

#[test]
fn a_port_that_is_none_is_refused_with_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let said = failure(
        directory.path(),
        "\n<listen>tcp:host=127.0.0.1,port=99999</listen>",
    );
    let expected =
        "bus-daemon: D/bus.conf:2: \"tcp:host=127.0.0.1,port=99999\": port is not a number from 0 to 65535\n";
    assert_eq!(said, expected);
}
