//! Files that come, change and go in the directories of the configuration are read by themselves: many are one reload, and what
//! is wrong changes nothing.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod support;

use bus_load::CallError;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use support::listening::Listening;
use support::speaker::Speaker;
use support::wait_until;

fn start(rest: &str) -> Listening {
    let bus = Listening::start(&format!(
        "<listen>unix:path=D/bus</listen><servicedir>D/services</servicedir><includedir>D/conf.d</includedir>{rest}"
    ));
    // It is watched once it was looked at, which is soon after the bus serves.
    wait_until("everything is watched", || watches(&bus) >= 1);
    bus
}

/// How many directories the main process watches.
fn watches(bus: &Listening) -> usize {
    let infos = fs::read_dir(format!("/proc/{}/fdinfo", bus.pid())).unwrap();
    let text = infos.filter_map(|info| fs::read_to_string(info.ok()?.path()).ok());
    text.map(|text| text.lines().filter(|line| line.starts_with("inotify ")).count())
        .sum()
}

fn path(bus: &Listening, name: &str) -> PathBuf {
    bus.directory.path().join(name)
}

/// As a package manager does it.
fn put(bus: &Listening, name: &str, text: &str) {
    let new = path(bus, &format!("{name}.dpkg-new"));
    fs::write(&new, text).unwrap();
    fs::rename(new, path(bus, name)).unwrap();
}

fn names(limit: u32) -> String {
    format!(
        "<busconfig><limit name='max_names_per_connection'>{}</limit></busconfig>",
        limit + 1
    )
}

/// The limit in force: how many names a newcomer can have, of up to 20.
fn limit_in_force(bus: &Listening) -> u32 {
    let mut caller = bus.caller();
    for count in 0..20 {
        let asked = caller.call_bus("RequestName", |body| {
            body.str(&format!("org.example.Name{count}")).u32(4);
        });
        if let Err(CallError::Reply { name, .. }) = asked {
            assert_eq!(name, "org.freedesktop.DBus.Error.LimitsExceeded");
            return count;
        }
    }
    20
}

#[track_caller]
fn comes_into_force(bus: &Listening, limit: u32) {
    wait_until(&format!("the limit {limit} is in force"), || {
        limit_in_force(bus) == limit
    });
}

#[test]
fn directories_and_files_that_come_change_and_go_are_read() {
    let bus = start("");
    assert_eq!(limit_in_force(&bus), 20);
    fs::create_dir(path(&bus, "conf.d")).unwrap();
    put(&bus, "conf.d/a.conf", &names(3));
    comes_into_force(&bus, 3);
    fs::write(path(&bus, "conf.d/a.conf"), names(4)).unwrap();
    comes_into_force(&bus, 4);
    // One that includes another directory, which does not exist yet.
    let more = "<busconfig><includedir>../more.d</includedir></busconfig>";
    put(&bus, "conf.d/b.conf", more);
    std::thread::sleep(Duration::from_millis(1200));
    fs::create_dir(path(&bus, "more.d")).unwrap();
    put(&bus, "more.d/c.conf", &names(5));
    comes_into_force(&bus, 5);
    fs::remove_file(path(&bus, "more.d/c.conf")).unwrap();
    comes_into_force(&bus, 4);
    fs::remove_dir_all(path(&bus, "conf.d")).unwrap();
    comes_into_force(&bus, 20);
    // And again, from where there is nothing.
    fs::create_dir(path(&bus, "conf.d")).unwrap();
    put(&bus, "conf.d/a.conf", &names(2));
    comes_into_force(&bus, 2);
}

#[test]
fn sixty_files_of_a_package_manager_are_one_reload() {
    let bus = start("");
    fs::create_dir(path(&bus, "services")).unwrap();
    wait_until("the directory is watched", || {
        std::thread::sleep(Duration::from_millis(100));
        watches(&bus) >= 2
    });
    std::thread::sleep(Duration::from_millis(1500));
    let mut speaker = Speaker::external(&bus.addresses[0]);
    speaker.call("AddMatch", |body| {
        body.str("member='ActivatableServicesChanged'");
    });
    for number in 0..60 {
        let name = format!("org.example.Service{number}");
        let text = format!("[D-BUS Service]\nName={name}\nExec=/bin/true\n");
        put(&bus, &format!("services/{name}.service"), &text);
        std::thread::sleep(Duration::from_millis(10));
    }
    wait_until("all services are known", || {
        let reply = speaker.call("ListActivatableNames", |_| ());
        let mut count = 0;
        let names = reply.body().read_array(|name| {
            count += u32::from(name.read_str()?.starts_with("org.example.Service"));
            Ok(())
        });
        names.unwrap();
        std::thread::sleep(Duration::from_millis(20));
        count == 60
    });
    std::thread::sleep(Duration::from_millis(1500));
    speaker.id();
    let changes = speaker
        .signals
        .iter()
        .filter(|member| *member == "ActivatableServicesChanged");
    assert_eq!(changes.count(), 1, "{:?}", speaker.signals);
}

#[test]
fn a_bad_file_is_left_out_with_a_warning_and_the_others_count() {
    let bus = start("");
    fs::create_dir(path(&bus, "conf.d")).unwrap();
    put(&bus, "conf.d/a.conf", &names(3));
    comes_into_force(&bus, 3);
    put(
        &bus,
        "conf.d/b.conf",
        "<busconfig>\n<limit name='auth_timeout'>x</limit></busconfig>",
    );
    let place = format!("{}:2: ", path(&bus, "conf.d/b.conf").display());
    wait_until("the log names it", || {
        bus.log().contains(&place) && bus.log().contains("is left out")
    });
    assert_eq!(limit_in_force(&bus), 3);
    put(&bus, "conf.d/c.conf", &names(6));
    comes_into_force(&bus, 6);
}

#[test]
fn a_main_file_that_is_wrong_keeps_what_runs_and_what_is_watched() {
    let bus = start("");
    fs::create_dir(path(&bus, "conf.d")).unwrap();
    put(&bus, "conf.d/a.conf", &names(3));
    comes_into_force(&bus, 3);
    let main = path(&bus, "bus.conf");
    let good = fs::read_to_string(&main).unwrap();
    fs::write(&main, "<busconfig>\n\n<nonsense/></busconfig>").unwrap();
    put(&bus, "conf.d/a.conf", &names(4));
    let place = format!("{}:3: ", main.display());
    wait_until("the log names it", || bus.log().contains(&place));
    assert_eq!(limit_in_force(&bus), 3);
    let error = bus.caller().call_bus("ReloadConfig", |_| ()).unwrap_err();
    let CallError::Reply { name, message: text } = &error else {
        panic!("{error}")
    };
    assert_eq!(name, "org.freedesktop.DBus.Error.Failed");
    assert!(text.contains(&place), "{text}");
    // The main file alone is not watched; with the next change it counts.
    fs::write(&main, good).unwrap();
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(limit_in_force(&bus), 3);
    put(&bus, "conf.d/a.conf", &names(5));
    comes_into_force(&bus, 5);
}

#[test]
fn changes_are_seen_after_deaths_and_upgrades_too() {
    let bus = start("");
    fs::create_dir(path(&bus, "conf.d")).unwrap();
    for limit in 2..6 {
        if limit % 2 == 0 {
            bus.kill_worker();
        } else {
            bus.upgrade();
            wait_until("everything is watched", || watches(&bus) >= 1);
        }
        put(&bus, "conf.d/a.conf", &names(limit));
        comes_into_force(&bus, limit);
    }
}

#[test]
fn what_a_reload_cannot_change_is_named_in_the_log() {
    let bus = start("");
    fs::create_dir(path(&bus, "conf.d")).unwrap();
    put(
        &bus,
        "conf.d/a.conf",
        "<busconfig><listen>unix:path=/nowhere/else</listen><pidfile>/nowhere/pid</pidfile></busconfig>",
    );
    let text = "a reload does not change <listen>, <pidfile>: that takes effect when the bus is started anew";
    wait_until("the log says so", || bus.log().contains(text));
}
