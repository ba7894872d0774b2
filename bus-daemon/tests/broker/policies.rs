//! What the policy lets pass, and who is told when it does not.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bus_daemon::broker::{Action, Attested, Credentials};
use bus_daemon::config::Config;
use bus_daemon::config::files::{Environment, Files};
use bus_daemon::config::policy::{Accounts, Policy};
use bus_daemon::config::xml;
use bus_wire::{Flags, MessageBuilder};

use crate::bus::{Bus, DRIVER, PATH, UNIX, Who, check_with, config, one_way};

/// No other file.
struct NoFiles;

impl Files for NoFiles {
    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn create_private_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// Everybody below 60000 is known, by number.
struct Known;

impl Accounts for Known {
    fn uid_of(&self, user: &str) -> Option<u32> {
        (user == "root").then_some(0)
    }

    fn has_uid(&self, uid: u32) -> bool {
        uid < 60_000
    }

    fn gid_of(&self, _: &str) -> Option<u32> {
        None
    }

    fn has_gid(&self, gid: u32) -> bool {
        gid < 60_000
    }
}

/// Lets everybody do everything that is not overheard, as the first rules of a file do.
const BASE: &str = "<policy context='default'><allow user='*'/><allow send_destination='*'/>\
                    <allow receive_sender='*'/><allow own='*'/></policy>";

/// A bus with this policy. Its rules begin in line 2.
fn ruled(policy: &str) -> Config {
    let text = format!("<busconfig>\n{policy}</busconfig>");
    let loaded = xml::load(
        Path::new("p.conf"),
        text.as_bytes(),
        &NoFiles,
        &Environment::default(),
    );
    let policy = loaded.unwrap().config.policy;
    let policy = Policy::resolve(policy.blocks.clone(), &Known);
    Config {
        policy: Arc::new(policy),
        ..config()
    }
}

/// [`BASE`], and then these rules in a default policy, the first in line 3.
fn with(rules: &str) -> Config {
    ruled(&format!("{BASE}\n<policy context='default'>{rules}</policy>"))
}

/// Somebody of another user, who has said BEGIN.
fn authenticate(bus: &mut Bus, uid: u32, gids: &[u32]) -> Who {
    let attested = Attested {
        credentials: Credentials {
            uid: Some(uid),
            gid: Some(uid),
            pid: Some(7),
        },
        groups: Some(gids.iter().copied().chain([uid]).collect()),
        ..Attested::default()
    };
    let who = bus.accept_from(UNIX, attested);
    let hex: String = uid
        .to_string()
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    bus.bytes(who, format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes(), &[]);
    bus.drain(who);
    who
}

fn connect(bus: &mut Bus, uid: u32, gids: &[u32]) -> Who {
    let who = authenticate(bus, uid, gids);
    bus.driver(who, "Hello", |_| {});
    bus.read(who);
    who
}

/// Asks for a name, and reads what comes of it.
fn own(bus: &mut Bus, who: Who, name: &str, flags: u32) {
    bus.request_name(who, name, flags);
    bus.read(who);
}

/// Warnings since the last call.
fn warned(bus: &mut Bus) -> Vec<String> {
    let asked = bus.asked().into_iter();
    let warnings = asked.filter_map(|action| match action {
        Action::Warn { text, .. } => Some(text),
        _ => None,
    });
    warnings.collect()
}

fn denied(from: &str, member: &str, to: &str, count: u32) -> String {
    format!(
        "Rejected send message, {count} matched rules; type=\"method_call\", sender=\"{from}\" (uid=1000 pid=42) \
         interface=\"a.b\" member=\"{member}\" error name=\"(unset)\" requested_reply=\"0\" destination=\"{to}\" \
         (uid=1000 pid=42)"
    )
}

#[test]
fn a_denied_call_is_answered_and_logged_with_the_rule_for_those_who_may_know_it() {
    check_with(&with("<deny send_interface='a.b' send_member='No'/>"), |bus| {
        let (caller, _callee) = (bus.connect(), bus.connect());
        bus.asked();
        bus.call(caller, ":1.1", "Yes");
        bus.expect(_callee, &["call Yes() from :1.0 to :1.1"]);
        bus.call(caller, ":1.1", "No");
        bus.expect(_callee, &[]);
        let text = format!("{} (rule p.conf:3)", denied(":1.0", "No", ":1.1", 2));
        bus.expect(
            caller,
            &[&format!("error AccessDenied({text}) from bus to :1.0 re 3")],
        );
        assert_eq!(warned(bus), [text]);
        // Nothing tells whoever wants no answer.
        bus.send(caller, one_way(":1.1", "No").interface("a.b"));
        bus.expect(caller, &[]);
        assert_eq!(warned(bus).len(), 1);
        let stranger = connect(bus, 1, &[]);
        bus.call(stranger, ":1.1", "No");
        let got = bus.read(stranger);
        assert!(got.len() == 1 && !got[0].contains("rule p.conf"), "{got:?}");
        assert!(warned(bus)[0].ends_with("(rule p.conf:3)"));
    });
}

#[test]
fn the_receivers_rules_deny_as_well() {
    check_with(
        &with("<deny receive_interface='a.b' receive_type='method_call'/>"),
        |bus| {
            let (caller, callee) = (bus.connect(), bus.connect());
            bus.asked();
            bus.call(caller, ":1.1", "M");
            bus.expect(callee, &[]);
            let got = bus.read(caller);
            assert!(
                got[0].starts_with("error AccessDenied(Rejected receive message, 2 matched rules; "),
                "{got:?}"
            );
            assert_eq!(warned(bus).len(), 1);
        },
    );
}

#[test]
fn names_are_owned_by_whom_the_policy_lets() {
    let rules = "<policy user='1'><allow own_prefix='a.b'/></policy>";
    let config = ruled(&format!("{}{rules}", BASE.replace("<allow own='*'/>", "")));
    check_with(&config, |bus| {
        let owner = bus.connect();
        let one = connect(bus, 1, &[]);
        let ask = |bus: &mut Bus, who, name: &str| {
            bus.driver(who, "RequestName", |w| {
                w.str(name).u32(0);
            });
            bus.read(who)
        };
        let got = ask(bus, one, "a.b.c");
        assert!(got.iter().any(|line| line.starts_with("return (1)")), "{got:?}");
        for name in ["a.bc", "x.y"] {
            let got = ask(bus, one, name);
            let text = format!(
                "Connection \":1.1\" is not allowed to own the service \"{name}\" due to security policies in the \
                 configuration file"
            );
            assert!(
                got[0].starts_with(&format!("error AccessDenied({text})")),
                "{got:?}"
            );
        }
        let got = ask(bus, owner, "a.b.c");
        assert!(got[0].starts_with("error AccessDenied("), "{got:?}");
        // A bad name is a bad name first.
        assert!(ask(bus, owner, "nodots")[0].starts_with("error InvalidArgs("));
    });
}

#[test]
fn a_broadcast_reaches_whom_both_sides_rules_let_and_nobody_is_told() {
    let rules = "<policy context='default'><deny send_destination='a.b' send_type='signal'/></policy>\
                 <policy user='2'><deny receive_interface='a.b'/></policy>";
    check_with(&ruled(&format!("{BASE}{rules}")), |bus| {
        let sender = bus.connect();
        let owner = connect(bus, 1, &[]);
        let deaf = connect(bus, 2, &[]);
        let hears = connect(bus, 3, &[]);
        own(bus, owner, "a.b", 0);
        for who in [owner, deaf, hears] {
            bus.add_match(who, "type='signal',interface='a.b'");
            bus.read(who);
        }
        bus.asked();
        bus.signal(sender, "S");
        bus.expect(hears, &["signal S() from :1.0"]);
        for who in [owner, deaf, sender] {
            bus.expect(who, &[]);
        }
        assert_eq!(warned(bus), [""; 0]);
        // To one peer it is refused in so many words.
        bus.send(sender, MessageBuilder::signal("/", "a.b", "S").destination("a.b"));
        bus.expect(owner, &[]);
        let got = bus.read(sender);
        assert!(
            got[0].starts_with("error AccessDenied(Rejected send message"),
            "{got:?}"
        );
    });
}

#[test]
fn whoever_waits_for_a_name_has_it_for_rules() {
    check_with(&with("<deny send_destination='a.b'/>"), |bus| {
        let (caller, first, second) = (bus.connect(), bus.connect(), bus.connect());
        own(bus, first, "a.b", 1);
        own(bus, second, "a.b", 0);
        for _ in [first, second] {
            bus.read(first);
            bus.read(second);
        }
        let is_reached = |bus: &mut Bus, who: Who| {
            bus.call(caller, &format!(":1.{who}"), "M");
            bus.read(caller);
            !bus.read(who).is_empty()
        };
        assert!(!is_reached(bus, first) && !is_reached(bus, second));
        // The second replaces the first, which waits from then on.
        bus.driver(second, "RequestName", |w| {
            w.str("a.b").u32(2);
        });
        bus.read(first);
        bus.read(second);
        assert!(!is_reached(bus, first) && !is_reached(bus, second));
        bus.driver(first, "ReleaseName", |w| {
            w.str("a.b");
        });
        bus.read(first);
        assert!(is_reached(bus, first) && !is_reached(bus, second));
        bus.driver(second, "ReleaseName", |w| {
            w.str("a.b");
        });
        bus.read(second);
        bus.read(first);
        assert!(is_reached(bus, second));
    });
}

#[test]
fn a_replaced_owner_that_does_not_wait_has_the_name_no_more() {
    check_with(&with("<deny send_destination='a.b'/>"), |bus| {
        let (caller, first, second) = (bus.connect(), bus.connect(), bus.connect());
        own(bus, first, "a.b", 1 | 4);
        bus.driver(second, "RequestName", |w| {
            w.str("a.b").u32(2);
        });
        bus.read(first);
        bus.call(caller, ":1.1", "M");
        assert_eq!(bus.read(first).len(), 1);
        bus.call(caller, ":1.2", "M");
        assert!(bus.read(caller)[0].contains("AccessDenied"));
    });
}

#[test]
fn the_bus_is_a_peer_with_one_name() {
    let rules = "<deny send_destination='org.freedesktop.DBus' send_member='GetId' \
                 send_interface='org.freedesktop.DBus'/>\n\
                 <deny receive_sender='org.freedesktop.DBus' receive_member='NameOwnerChanged' \
                 receive_interface='org.freedesktop.DBus'/>\n\
                 <deny send_destination='org.freedesktop.DBus' send_interface='org.busdaemon.Restart1'/>";
    check_with(&with(rules), |bus| {
        let who = bus.connect();
        bus.driver(who, "GetId", |_| {});
        let got = bus.read(who);
        assert!(got[0].contains("(bus) (rule p.conf:3)"), "{got:?}");
        bus.add_match(who, "type='signal'");
        bus.read(who);
        bus.connect();
        bus.expect(who, &[]);
        // A check of its own is in the place of the policy.
        let call = |interface: &'static str, member: &'static str| {
            MessageBuilder::method_call(PATH, member)
                .destination(DRIVER)
                .interface(interface)
        };
        let call = call("org.freedesktop.DBus.Properties", "GetAll");
        bus.send(
            who,
            call.body(|w| {
                w.str("org.busdaemon.Restart1");
            }),
        );
        assert!(bus.read(who)[0].starts_with("return "));
        // What the bus would not look at is refused, since nobody waits for it.
        bus.asked();
        bus.reply(who, DRIVER, 7);
        bus.expect(who, &[]);
        assert_eq!(warned(bus).len(), 1);
    });
}

#[test]
fn a_rule_without_conditions_shuts_out_answers_too() {
    // The example of dbus-daemon's manual page.
    check_with(&with("<deny receive_sender='*' min_fds='1'/>"), |bus| {
        let who = bus.authenticate();
        bus.driver(who, "Hello", |_| {});
        bus.expect(who, &[]);
        assert!(bus.is_open(who));
        bus.driver(who, "Hello", |_| {});
        bus.expect(who, &[]);
    });
}

#[test]
fn a_denied_reply_ends_the_call_for_whoever_waits() {
    check_with(
        &with("<deny send_error='a.Error' send_requested_reply='true' send_type='error'/>"),
        |bus| {
            let (caller, callee) = (bus.connect(), bus.connect());
            let serial = bus.call(caller, ":1.1", "M");
            bus.read(callee);
            bus.asked();
            bus.send(
                callee,
                MessageBuilder::error("a.Error", serial).destination(":1.0"),
            );
            bus.expect(callee, &[]);
            let got = bus.read(caller);
            assert_eq!(got.len(), 1);
            assert!(
                got[0].starts_with("error AccessDenied(Rejected send message"),
                "{got:?}"
            );
            assert!(got[0].ends_with(&format!("re {serial}")), "{got:?}");
            // The call is over.
            bus.send(
                callee,
                MessageBuilder::error("b.Error", serial).destination(":1.0"),
            );
            bus.expect(caller, &[]);
            assert_eq!(warned(bus).len(), 2);
        },
    );
}

#[test]
fn a_reload_holds_at_once_and_takes_no_name_away() {
    let open = with("");
    let shut = with("<deny own='a.b'/><deny send_destination='a.b'/>");
    check_with(&open, |bus| {
        let (caller, owner) = (bus.connect(), bus.connect());
        own(bus, owner, "a.b", 0);
        let reload = |bus: &mut Bus, config: &Config| {
            bus.driver(caller, "ReloadConfig", |_| {});
            bus.wait(250);
            let errand = bus.errands()[0].0;
            bus.end_reading(errand, Ok(config.clone()));
            assert!(bus.read(caller)[0].starts_with("return ()"));
        };
        bus.call(caller, "a.b", "M");
        assert_eq!(bus.read(owner).len(), 1);
        reload(bus, &shut);
        bus.call(caller, "a.b", "M");
        bus.expect(owner, &[]);
        assert!(bus.read(caller)[0].contains("AccessDenied"));
        bus.driver(owner, "RequestName", |w| {
            w.str("a.b").u32(0);
        });
        assert!(bus.read(owner)[0].contains("is not allowed to own"));
        bus.driver(owner, "ListQueuedOwners", |w| {
            w.str("a.b");
        });
        assert!(bus.read(owner)[0].contains(":1.1"));
        reload(bus, &open);
        bus.call(caller, "a.b", "M");
        assert_eq!(bus.read(owner).len(), 1);
    });
}

#[test]
fn rules_about_connecting_count_groups_of_the_process() {
    let rules = "<policy context='default'><allow user='0'/><deny group='9'/><allow group='8'/></policy>";
    let base = BASE.replace("<allow user='*'/>", "");
    check_with(&ruled(&format!("{base}{rules}")), |bus| {
        for (uid, gids, is_admitted) in [
            (0, &[][..], true),
            (1, &[8], true),
            (1, &[9], false),
            (1, &[9, 8], true),
            (0, &[9], false),
            (1, &[7], false),
            (60_001, &[8], true),
            // Whose the bus is, where no rule says anything.
            (1000, &[], true),
        ] {
            let who = authenticate(bus, uid, gids);
            assert_eq!(bus.is_open(who), is_admitted, "{uid} {gids:?}");
        }
    });
}

#[test]
fn blocks_of_groups_and_users_apply_to_their_peers() {
    let rules = "<policy group='8'><allow send_destination='a.b'/></policy>\
                 <policy user='5'><deny send_destination='a.b'/></policy>\
                 <policy user='nobody.there'><allow send_destination='*'/></policy>";
    let base = BASE.replace(
        "<allow send_destination='*'/>",
        "<allow send_destination='org.freedesktop.DBus'/>",
    );
    check_with(&ruled(&format!("{base}{rules}")), |bus| {
        let owner = bus.connect();
        own(bus, owner, "a.b", 0);
        for (uid, gids, is_let) in [
            (1, &[8][..], true),
            (1, &[], false),
            (5, &[8], false),
            (8, &[], true),
        ] {
            let who = connect(bus, uid, gids);
            bus.call(who, "a.b", "M");
            assert_eq!(bus.read(owner).len(), usize::from(is_let), "{uid} {gids:?}");
        }
    });
}

#[test]
fn who_sits_at_the_machine_is_asked_when_a_peer_comes_and_at_a_reload() {
    let rules = "<policy at_console='true'><deny send_interface='a.b'/></policy>";
    let config = ruled(&format!("{BASE}{rules}"));
    check_with(&config, |bus| {
        let callee = bus.connect();
        bus.descriptors.at_console.insert(1);
        let (seated, other) = (connect(bus, 1, &[]), connect(bus, 2, &[]));
        let is_let = |bus: &mut Bus, who: Who| {
            bus.call(who, ":1.0", "M");
            bus.read(who);
            !bus.read(callee).is_empty()
        };
        assert!(!is_let(bus, seated) && is_let(bus, other));
        bus.descriptors.at_console = [2].into();
        assert!(!is_let(bus, seated) && is_let(bus, other));
        bus.driver(callee, "ReloadConfig", |_| {});
        bus.wait(250);
        let errand = bus.errands()[0].0;
        bus.end_reading(errand, Ok(config.clone()));
        bus.read(callee);
        assert!(is_let(bus, seated) && !is_let(bus, other));
    });
}

#[test]
fn a_name_that_nobody_owns_is_looked_at_where_a_service_could_be_started() {
    let mut config = with("<deny send_destination='a.b'/><deny send_destination='c.d'/>");
    config.services = vec![bus_daemon::config::Service {
        name: "a.b".into(),
        exec: vec!["/bin/false".into()],
        user: None,
        systemd_service: None,
        assumed_apparmor_label: None,
        file: String::new(),
    }];
    check_with(&config, |bus| {
        let who = bus.connect();
        bus.call(who, "a.b", "M");
        assert!(bus.read(who)[0].contains("AccessDenied"));
        bus.call(who, "c.d", "M");
        assert!(bus.read(who)[0].contains("ServiceUnknown"));
        let call = MessageBuilder::method_call("/", "M").destination("a.b");
        bus.send(who, call.flags(Flags::NO_AUTO_START));
        assert!(bus.read(who)[0].contains("NameHasNoOwner"));
    });
}

#[test]
fn replies_are_overheard_where_the_senders_rules_let_others_pass() {
    let base = "<policy context='default'><allow user='*'/><allow send_destination='*'/>\
                <allow receive_sender='*' eavesdrop='true'/><allow own='*'/></policy>";
    for (base, hears_reply) in [
        (base.to_owned(), false),
        (
            base.replace("send_destination='*'", "send_destination='*' eavesdrop='true'"),
            true,
        ),
    ] {
        check_with(&ruled(&base), |bus| {
            let (caller, callee, curious) = (bus.connect(), bus.connect(), bus.connect());
            bus.add_match(curious, "eavesdrop='true',type='method_call',interface='a.b'");
            bus.add_match(curious, "eavesdrop='true',type='method_return'");
            bus.read(curious);
            let serial = bus.call(caller, ":1.1", "M");
            bus.reply(callee, ":1.0", serial);
            assert_eq!(bus.read(caller).len(), 1);
            assert_eq!(bus.read(curious).len(), 1 + usize::from(hears_reply));
        });
    }
}

#[test]
fn the_bus_says_which_rules_say_so() {
    let rules =
        "<deny send_destination='a.b' send_interface='a.b'/>\n<allow own='x.y'/><deny own_prefix='x'/>";
    check_with(&with(rules), |bus| {
        let who = bus.connect();
        let owner = connect(bus, 1, &[]);
        own(bus, owner, "a.b", 0);
        let ask = |bus: &mut Bus, who: Who, query: &[(&str, &str)]| {
            let call = MessageBuilder::method_call(PATH, "Explain")
                .destination(DRIVER)
                .interface("org.busdaemon.Policy1");
            let call = call.body(|w| {
                w.array("{sv}", |w| {
                    for (key, value) in query {
                        w.dict_entry(|w| {
                            w.str(key).variant("s", |w| {
                                w.str(value);
                            });
                        });
                    }
                });
            });
            bus.send(who, call);
            let mut answers = bus.read_messages(who);
            assert_eq!(answers.len(), 1);
            answers.remove(0).0
        };
        let explain = |bus: &mut Bus, query: &[(&str, &str)]| {
            let answer = ask(bus, who, query);
            let mut body = answer.body();
            let allowed = body.read_bool().unwrap();
            let mut rules = Vec::new();
            body.read_array(|element| {
                element.read_struct(|fields| {
                    let (text, file) = (fields.read_str()?, fields.read_str()?);
                    let (line, decided) = (fields.read_u32()?, fields.read_bool()?);
                    let mark = if decided { "* " } else { "" };
                    rules.push(format!("{mark}{file}:{line} {text}"));
                    Ok(())
                })
            })
            .unwrap();
            (allowed, rules)
        };
        let default = "<policy context=\"default\">";
        let send = format!("p.conf:2 {default} <allow send_destination=\"*\"/>");
        let receive = format!("* p.conf:2 {default} <allow receive_sender=\"*\"/>");
        let deny = format!("* p.conf:3 {default} <deny send_destination=\"a.b\" send_interface=\"a.b\"/>");
        let to_owner = [("destination", "a.b"), ("interface", "a.b"), ("member", "M")];
        let expected = (false, vec![deny.clone(), send.clone(), receive.clone()]);
        assert_eq!(explain(bus, &to_owner), expected);
        // The owner is known by the name however it is addressed.
        let to_unique = [("destination", ":1.1"), ("interface", "a.b"), ("sender", "5:6,7")];
        assert_eq!(explain(bus, &to_unique), expected);
        let (allowed, rules) = explain(bus, &[("destination", "a.b"), ("interface", "a.c")]);
        assert!(allowed && rules == [format!("* {send}"), receive]);
        let (allowed, rules) = explain(bus, &[("own", "x.y"), ("sender", "a.b")]);
        assert!(!allowed);
        assert_eq!(rules[0], format!("* p.conf:4 {default} <deny own_prefix=\"x\"/>"));
        assert_eq!(rules.len(), 3);
        let connect = format!("* p.conf:2 {default} <allow user=\"*\"/>");
        assert_eq!(explain(bus, &[("connect", "77")]), (true, vec![connect]));
        // Nothing was sent to anybody.
        bus.expect(owner, &[]);
        for (query, error) in [
            (&[("own", "x.y"), ("connect", "1")][..], "InvalidArgs"),
            (&[], "InvalidArgs"),
            (&[("colour", "red")], "InvalidArgs"),
            (&[("destination", "a.b"), ("type", "letter")], "InvalidArgs"),
            (&[("own", "x.y"), ("sender", "somebody")], "InvalidArgs"),
            (&[("own", "x.y"), ("sender", "no.body")], "NameHasNoOwner"),
        ] {
            let answer = ask(bus, who, query);
            let name = answer.error_name().unwrap();
            assert!(name.ends_with(error), "{query:?}: {name}");
        }
        // Only the superuser and the bus's own user may know.
        let answer = ask(bus, owner, &to_owner);
        assert!(answer.error_name().unwrap().ends_with("AccessDenied"));
    });
}
