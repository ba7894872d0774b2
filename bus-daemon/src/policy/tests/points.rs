//! What dbus-daemon was seen to mean by its rules, each a test named after what it says. Where this bus differs, the test says so.

use bus_wire::MessageType::{self, Error, Signal};

use super::asker::{
    BASE, DRIVER, PEER, answer, base, broadcast, call, message, policy, unrequested, with_fds,
};
use crate::config::policy::{PolicyError, blocks_of};
use crate::policy::compile::Indexes;
use crate::policy::rules::Subject;
use crate::policy::verdict::{Access, Verdict, Who};

#[test]
fn point_1_a_rule_without_conditions_throws_away_all_of_its_kind_before_it() {
    // The example of the manual: nothing can be received.
    let mute = base("<deny receive_sender='*' min_fds='1'/>");
    assert!(!mute.receives(call(), PEER) && !mute.receives(answer(), &[DRIVER]));
    assert!(mute.sends(call(), PEER));
    for rule in [
        "<deny send_broadcast='true'/>",
        "<deny send_destination='*' eavesdrop='true'/>",
    ] {
        assert!(!base(rule).sends(call(), PEER), "{rule}");
    }
    for rule in ["<deny eavesdrop='true'/>", "<deny receive_error='*'/>"] {
        assert!(!base(rule).receives(call(), PEER), "{rule}");
    }
    let open = base("<deny send_destination='a.b'/><allow send_destination='*' max_fds='0'/>");
    assert!(open.sends(call(), &["a.b"]));
    assert!(!open.sends(with_fds(call(), 1), PEER));
    let only_broadcasts = base("<allow send_broadcast='true'/>");
    assert!(only_broadcasts.sends(broadcast(), PEER));
    assert!(!only_broadcasts.sends(call(), PEER));
    // One real condition, and it behaves.
    let behaves = base("<deny send_type='signal' send_broadcast='true'/>");
    assert!(behaves.sends(call(), PEER) && !behaves.sends(broadcast(), PEER));
}

#[test]
fn point_1_it_does_so_in_all_contexts_of_the_peer() {
    let text = format!(
        "{BASE}<policy user='u1'><allow send_destination='a.b'/></policy>\
         <policy context='mandatory'><deny send_destination='*' min_fds='1'/></policy>"
    );
    let asker = policy(&text);
    assert!(!asker.sends(call(), &["a.b"]));
    assert!(asker.owns("a.b"), "another kind of rule");
    assert_eq!(asker.send_verdict(call(), &["a.b"]), Verdict::NO_RULE);
}

#[test]
fn point_2_contexts_have_an_order_that_the_file_does_not_change() {
    let rule = |what: &str| format!("<{what} send_interface='i.I'/>");
    let block = |attribute: &str, what: &str| format!("<policy {attribute}>{}</policy>", rule(what));
    let ordered = [
        "context='default'",
        "group='g1'",
        "user='u1'",
        "at_console='false'",
        "context='mandatory'",
    ];
    for (later, first) in ordered.iter().enumerate().skip(1) {
        for earlier in &ordered[..later] {
            // The stronger one stands first in the file.
            let text = format!("{BASE}{}{}", block(first, "deny"), block(earlier, "allow"));
            let asker = policy(&text).by(1001, &[1001, 11]);
            assert!(!asker.sends(call(), PEER), "{earlier} does not beat {first}");
        }
    }
    let text = format!(
        "{BASE}{}{}",
        block("user='u1'", "deny"),
        block("user='1001'", "allow")
    );
    assert!(
        policy(&text).sends(call(), PEER),
        "the place in the file decides for one user"
    );
}

#[test]
fn point_3_the_highest_group_wins_whatever_the_order_in_the_file() {
    let block =
        |group: &str, what: &str| format!("<policy group='{group}'><{what} send_interface='i.I'/></policy>");
    for text in [
        block("g2", "deny") + &block("g1", "allow") + &block("g9", "allow"),
        block("g9", "allow") + &block("g1", "allow") + &block("g2", "deny"),
    ] {
        for gids in [[9, 11, 12], [12, 11, 9], [11, 12, 12]] {
            let asker = policy(&format!("{BASE}{text}")).by(1001, &gids);
            assert!(!asker.sends(call(), PEER), "{gids:?} {text}");
        }
    }
    let user = "<policy user='u1'><allow send_interface='i.I'/></policy>";
    let asker = policy(&format!("{BASE}{user}{}", block("g2", "deny"))).by(1001, &[12]);
    assert!(asker.sends(call(), PEER), "groups lose to the user");
}

#[test]
fn point_4_without_a_rule_all_is_denied_and_only_the_bus_s_user_connects() {
    let empty = policy("<policy context='default'/>");
    assert!(!empty.sends(call(), PEER) && !empty.receives(call(), PEER) && !empty.owns("a.b"));
    assert!(!empty.receives(answer(), &[DRIVER]), "answers of the bus as well");
    assert!(!empty.connects());
    assert!(
        !policy("").by(0, &[0]).connects(),
        "root is refused when the bus is somebody else's"
    );
    assert!(policy("").by(1002, &[]).connects());
}

#[test]
fn point_5_connect_rules_are_one_list_of_default_then_mandatory() {
    let connects = |rules: &str, uid, gids: &[u32]| {
        let text = format!("<policy context='default'>{rules}</policy>");
        policy(&text).by(uid, gids).connects()
    };
    let shut = "<deny user='*'/><allow user='u1'/>";
    assert!(connects(shut, 1001, &[]) && !connects(shut, 0, &[0]));
    assert!(!connects(shut, 1002, &[]), "the bus's own user too");
    let group_then_user = "<allow user='*'/><deny group='g1'/><allow user='u1'/>";
    assert!(connects(group_then_user, 1001, &[11]) && !connects(group_then_user, 1003, &[11]));
    let user_then_group = "<allow user='u1'/><deny group='*'/>";
    assert!(!connects(user_then_group, 1001, &[]));
    let mandatory = "<policy context='mandatory'><deny user='u1'/></policy>\
                     <policy context='default'><allow user='u1'/></policy>";
    assert!(!policy(mandatory).connects());
}

#[test]
fn point_6_connect_rules_of_one_are_refused_and_those_at_the_console_never_apply() {
    for context in ["user='u1'", "group='g1'"] {
        let text = format!("<policy {context}><allow user='*'/></policy>");
        assert_eq!(blocks_of(&text), Err(PolicyError::ConnectOfOne));
    }
    let console = policy("<policy at_console='true'><allow user='*'/></policy>").at_console();
    assert!(!console.connects());
}

#[test]
fn point_11_whoever_is_not_at_the_console_is_elsewhere_root_too() {
    let text = format!(
        "{BASE}<policy at_console='true'><deny send_interface='i.I'/></policy>\
         <policy at_console='false'><deny own='a.b'/></policy><policy user='root'><allow own='a.b'/></policy>"
    );
    let away = policy(&text).by(0, &[0]);
    assert!(away.sends(call(), PEER) && !away.owns("a.b"));
    let there = policy(&text).by(0, &[0]).at_console();
    assert!(!there.sends(call(), PEER) && there.owns("a.b"));
}

#[test]
fn point_12_a_name_that_does_not_resolve_never_widens_a_rule() {
    for unknown in [
        "nobody-here",
        "",
        "*",
        "60777",
        "01001",
        " u1",
        "+1001",
        "-1",
        "4294967295",
        "99999999999",
    ] {
        for kind in ["user", "group"] {
            let text = format!("<policy {kind}='{unknown}'><allow own='*'/></policy>");
            let asker = policy(&text).by(u32::MAX, &[u32::MAX, 0, 11]);
            assert!(!asker.owns("a.b"), "{text}");
            let text = format!("<policy context='default'><allow {kind}='{unknown}'/></policy>");
            let connects = policy(&text).by(u32::MAX, &[u32::MAX, 0, 11]).connects();
            assert_eq!(connects, unknown == "*", "{text}");
        }
    }
    let zero = policy("<policy context='default'><allow user='0'/></policy>").by(0, &[]);
    assert!(zero.connects(), "0 is root");
}

#[test]
fn point_14_a_destination_is_any_name_that_the_recipient_owns_or_queues_for() {
    let shut = base("<deny send_destination='a.b'/>");
    assert!(!shut.sends(call(), &[":1.5", "x.y", "a.b"]));
    assert!(shut.sends(call(), &[":1.5", "x.y"]) && shut.sends(call(), &["a.b.c"]));
    let open = policy("<policy context='default'><allow send_destination='a.b'/></policy>");
    assert!(open.sends(call(), &["x.y", "a.b"]) && !open.sends(call(), &["x.y"]));
    let prefix = base("<deny send_destination_prefix='a.b'/>");
    assert!(!prefix.sends(call(), &["x.y", "a.b.c"]) && !prefix.sends(call(), &["a.b"]));
    assert!(prefix.sends(call(), &["a.bc"]));
    assert!(!base("<deny send_destination=':1.2'/>").sends(call(), &[":1.2"]));
}

#[test]
fn point_15_the_text_of_an_activatable_name_is_compared_the_prefix_too() {
    let text = "org.x.Service";
    assert!(!base("<deny send_destination='org.x.Service'/>").sends(call(), &[text]));
    assert!(!base("<deny send_destination_prefix='org.x'/>").sends(call(), &[text]));
    assert!(base("<deny send_destination_prefix='org.x.S'/>").sends(call(), &[text]));
}

#[test]
fn point_16_a_broadcast_is_asked_about_for_each_recipient() {
    let one = policy("<policy context='default'><allow send_destination='a.b'/></policy>");
    assert!(one.sends(broadcast(), &["a.b"]) && !one.sends(broadcast(), &["x.y"]));
    let others = base("<deny send_destination='a.b'/>");
    assert!(!others.sends(broadcast(), &["a.b"]) && others.sends(broadcast(), &["x.y"]));
}

#[test]
fn point_17_the_driver_is_org_freedesktop_dbus() {
    for rule in [
        "<deny send_destination='org.freedesktop.DBus'/>",
        "<deny send_destination_prefix='org.freedesktop'/>",
        "<deny send_destination_prefix='org.freedesktop.DBus'/>",
    ] {
        assert!(
            !base(rule).sends(call(), &[DRIVER]) && base(rule).sends(call(), PEER),
            "{rule}"
        );
    }
    assert!(
        !base("").sends(unrequested(answer()), &[DRIVER]),
        "nobody asked for it"
    );
}

#[test]
fn point_19_what_a_message_lacks_satisfies_a_condition_and_the_interface_only_that_of_a_deny() {
    let no_interface = Access {
        interface: None,
        ..call()
    };
    assert!(!base("<deny send_interface='x.X'/>").sends(no_interface, PEER));
    let with_member = base("<deny send_interface='x.X' send_member='M'/>");
    assert!(!with_member.sends(no_interface, PEER));
    let other_member = base("<deny send_interface='x.X' send_member='N'/>");
    assert!(other_member.sends(no_interface, PEER));
    let allowing = policy("<policy context='default'><allow send_interface='i.I'/></policy>");
    assert!(allowing.sends(call(), PEER) && !allowing.sends(no_interface, PEER));
    let path = "<policy context='default'><allow send_path='/zz' send_member='Q'/></policy>";
    assert!(
        policy(path).sends(answer(), PEER),
        "every reply that was asked for"
    );
    assert!(!policy(path).sends(call(), PEER));
    assert!(!base("<deny receive_interface='x.X'/>").receives(no_interface, PEER));
}

#[test]
fn point_20_a_rule_about_an_error_without_its_type_matches_all_but_other_errors() {
    let error = |name| Access {
        error_name: Some(name),
        ..message(Error)
    };
    let opens = policy("<policy context='default'><allow send_error='e.One'/></policy>");
    assert!(
        [call(), broadcast(), answer(), error("e.One")]
            .iter()
            .all(|access| opens.sends(*access, PEER))
    );
    assert!(!opens.sends(error("e.Two"), PEER));
    let shuts = base("<deny send_error='e.One'/>");
    assert!(!shuts.sends(call(), PEER) && !shuts.sends(broadcast(), PEER));
    assert!(!shuts.sends(unrequested(error("e.One")), PEER));
    assert!(shuts.sends(error("e.Two"), PEER) && shuts.sends(answer(), PEER));
    let of_type = base("<deny send_error='e.One' send_type='error' send_requested_reply='true'/>");
    assert!(of_type.sends(call(), PEER) && !of_type.sends(error("e.One"), PEER));
}

#[test]
fn point_21_paths_are_compared_whole_and_values_are_never_checked() {
    let path = base("<deny send_path='/p'/>");
    let below = Access {
        path: Some("/p/q"),
        ..call()
    };
    assert!(!path.sends(call(), PEER) && path.sends(below, PEER));
    assert!(base("<deny send_path='nonsense'/><deny own='x y!'/>").sends(call(), PEER));
    assert!(base("<deny own_prefix='*'/>").owns("a.b") && base("<deny own_prefix=''/>").owns("a.b"));
    assert!(base("<deny send_destination_prefix='*'/>").sends(call(), &["a.b"]));
    assert!(base("<deny send_destination_prefix=''/>").sends(call(), &["a.b"]));
}

#[test]
fn point_22_a_deny_never_hits_a_requested_reply_unless_it_says_so() {
    let error = message(Error);
    for rule in [
        "<deny receive_sender='org.freedesktop.DBus'/>",
        "<deny receive_type='error'/>",
        "<deny receive_error='e.Two'/>",
    ] {
        let asker = base(rule);
        assert!(
            asker.receives(answer(), &[DRIVER]) && asker.receives(error, &[DRIVER]),
            "{rule}"
        );
        let says_so = rule.replace("/>", " receive_requested_reply='true'/>");
        assert!(!base(&says_so).receives(error, &[DRIVER]), "{says_so}");
    }
    assert!(!base("<deny receive_sender='org.freedesktop.DBus'/>").receives(message(Signal), &[DRIVER]));
}

#[test]
fn point_23_eavesdrop_on_an_allow_also_lets_unrequested_replies_through() {
    let late = unrequested(answer());
    for rule in [
        "<allow send_type='method_return' eavesdrop='true'/>",
        "<allow send_type='method_return' send_requested_reply='false'/>",
    ] {
        let asker = base(rule);
        assert!(asker.sends(late, PEER), "{rule}");
        assert!(
            !asker.receives(late, PEER),
            "the receiving side needs one as well"
        );
    }
    assert!(base("<allow receive_type='method_return' eavesdrop='true'/>").receives(late, PEER));
    assert!(!base("").sends(late, PEER));
}

#[test]
fn point_24_requested_reply_is_ignored_for_calls_and_signals() {
    let text = "<policy context='default'>\
                <allow send_type='method_call' send_requested_reply='true'/>\
                <allow send_type='signal' send_requested_reply='true'/></policy>";
    assert!(policy(text).sends(call(), PEER) && policy(text).sends(broadcast(), PEER));
    let denied = base("<deny send_type='method_call' send_requested_reply='true'/>");
    assert!(!denied.sends(call(), PEER));
}

#[test]
fn point_28_types_above_4_are_denied_whatever_the_rules() {
    let unknown = message(MessageType::Unknown(5));
    assert!(!base("").sends(unknown, PEER) && !base("").receives(unknown, PEER));
    let error_name_on_a_signal = Access {
        error_name: Some("e.One"),
        ..message(Signal)
    };
    assert!(base("").sends(error_name_on_a_signal, PEER));
}

#[test]
fn point_31_eavesdropping_needs_an_allow_that_says_so_on_the_receiving_side() {
    let overheard = |access| Access {
        eavesdrops: true,
        ..access
    };
    assert!(!base("").receives(overheard(call()), PEER));
    let bare = base("<allow eavesdrop='true'/>");
    assert!(bare.receives(overheard(call()), PEER) && bare.receives(call(), PEER));
    assert!(matches!(
        blocks_of("<policy context='default'><allow eavesdrop='true'/></policy>").unwrap()[0].rules[0]
            .subject,
        Subject::Receive(_)
    ));
    let not_calls = base("<allow eavesdrop='true'/><deny receive_type='method_call' eavesdrop='true'/>");
    assert!(!not_calls.receives(overheard(call()), PEER));
    assert!(not_calls.receives(call(), PEER) && not_calls.receives(overheard(message(Signal)), PEER));
}

#[test]
fn point_32_descriptors_are_counted_inclusively_and_senders_by_any_of_their_names() {
    let some = base("<deny send_type='method_call' min_fds='1' max_fds='2'/>");
    let denied: Vec<bool> = (0..4)
        .map(|fds| !some.sends(with_fds(call(), fds), PEER))
        .collect();
    assert_eq!(denied, [false, true, true, false]);
    let sender = base("<deny receive_sender='a.b'/>");
    assert!(!sender.receives(call(), &[":1.1", "x.y", "a.b"]) && sender.receives(call(), &[":1.1"]));
    assert!(!base("<deny receive_sender=':1.1'/>").receives(call(), &[":1.1"]));
    let of_bus = base("<deny receive_interface='org.freedesktop.DBus' receive_member='NameOwnerChanged'/>");
    let changed = Access {
        interface: Some(DRIVER),
        member: Some("NameOwnerChanged"),
        ..broadcast()
    };
    assert!(!of_bus.receives(changed, &[DRIVER]) && of_bus.receives(broadcast(), &[DRIVER]));
}

#[test]
fn point_33_own_is_exact_and_own_prefix_continues_with_a_period() {
    let owned = |rule: &str| {
        let text = format!("<policy context='default'>{rule}</policy>");
        ["a.b", "a.b.c", "a.bc", "a"].map(|name| policy(&text).owns(name))
    };
    assert_eq!(owned("<allow own='a.b'/>"), [true, false, false, false]);
    assert_eq!(owned("<allow own_prefix='a.b'/>"), [true, true, false, false]);
    assert_eq!(owned("<allow own='*'/>"), [true; 4]);
    assert_eq!(
        owned("<allow own='*'/><deny own_prefix='a.b'/>"),
        [false, false, true, true]
    );
}

#[test]
fn point_34_log_is_yes_for_true_and_no_for_any_other_word() {
    let logs = |word: &str| {
        let asker = base(&format!("<allow send_interface='i.I' log='{word}'/>"));
        asker.send_verdict(call(), PEER).log
    };
    assert!(logs("true") && !logs("maybe") && !logs("false") && !logs(""));
}

#[test]
fn point_34_all_rules_that_match_are_counted_and_the_last_one_is_named() {
    let asker = base(
        "<deny send_interface='i.I'/>\n<deny send_interface='i.I'/>\n\
         <deny send_member='M' send_path='/p'/>\n<deny send_interface='x.X'/>",
    );
    let verdict = asker.send_verdict(call(), &["a.b"]);
    assert_eq!((verdict.allowed, verdict.matched), (false, 4));
    let rule = asker.policy.policy().rule(verdict.rule.unwrap()).unwrap();
    assert_eq!(rule.place.to_string(), "test.conf:4");
}

#[test]
fn point_46_which_attributes_make_a_rule() {
    let parsed = |rule: &str| blocks_of(&format!("<policy context='default'>{rule}</policy>"));
    let empty = [
        "<deny min_fds='1'/>",
        "<deny max_fds='1'/>",
        "<deny log='true'/>",
        "<deny/>",
    ];
    for rule in empty {
        assert_eq!(parsed(rule), Err(PolicyError::Empty), "{rule}");
    }
    for rule in [
        "<deny eavesdrop='true'/>",
        "<deny send_requested_reply='true'/>",
        "<deny receive_requested_reply='false'/>",
    ] {
        assert!(parsed(rule).unwrap()[0].rules[0].subject.discards(), "{rule}");
    }
    for rule in [
        "<allow own='a.b' log='true'/>",
        "<allow user='u1' log='true'/>",
        "<allow send_interface='*' send_member='M'/>",
        "<allow send_path='/p' send_member='M'/>",
        "<allow send_error='e.E' send_path='/p' send_type='error'/>",
        "<allow send_broadcast='true' send_destination='*'/>",
        "<allow send_broadcast='true' send_destination_prefix='a'/>",
        "<allow send_broadcast='true' send_type='method_call'/>",
        "<allow send_type='signal' min_fds='0x10' max_fds='010'/>",
        "<allow send_type='signal' min_fds='33554432'/>",
    ] {
        assert!(parsed(rule).is_ok(), "{rule}");
    }
    for rule in [
        "<allow own='a.b' eavesdrop='true'/>",
        "<allow own='a.b' min_fds='1'/>",
        "<allow send_member='M'/>",
        "<allow send_member='M' send_destination='a.b'/>",
        "<allow send_error='e.E' send_interface='i.I'/>",
        "<allow send_error='e.E' send_member='M' send_path='/p'/>",
        "<allow send_broadcast='true' send_destination='a.b'/>",
        "<allow send_broadcast='True'/>",
        "<allow send_type='signal' min_fds='33554433'/>",
    ] {
        assert!(parsed(rule).is_err(), "{rule}");
    }
}

#[test]
fn peers_whom_no_block_names_share_one_index_that_goes_with_the_last() {
    let asker = policy(&format!(
        "{BASE}<policy user='u1'><deny own='a.b'/></policy><policy group='g1'/>"
    ));
    let of = |uid, gids: &[u32]| {
        let who = Who {
            uid,
            gids,
            at_console: uid % 2 == 0,
        };
        asker.policy.applicable(who)
    };
    let mut indexes = Indexes::default();
    let strangers: Vec<_> = (2000..7000)
        .map(|uid| indexes.join(of(uid, &[uid, 11])))
        .collect();
    assert_eq!((indexes.len(), indexes.made()), (1, 0));
    let named = indexes.join(of(1001, &[]));
    assert_eq!(indexes.len(), 2);
    assert!(
        !indexes
            .get(named, &asker.policy)
            .unwrap()
            .may_own("a.b", &asker.policy)
            .allowed
    );
    assert!(
        indexes
            .get(strangers[0], &asker.policy)
            .unwrap()
            .may_own("a.b", &asker.policy)
            .allowed
    );
    assert_eq!(indexes.made(), 2);
    indexes.leave(named);
    assert!(indexes.get(named, &asker.policy).is_none());
    assert_eq!(indexes.join(of(1001, &[5])), named, "its place is used again");
    indexes.leave(named);
    strangers.into_iter().for_each(|id| indexes.leave(id));
    assert!(indexes.is_empty() && indexes.made() == 0);
}
