use super::*;
use crate::config::{Connect, Traffic};

#[track_caller]
fn refused_rule(rule: &str, message: &str) {
    refused(
        &format!("<policy context='default'>\n{rule}</policy>"),
        &format!("/etc/bus/main.conf:3: {message}"),
    );
}

const ALLOW_ALL: &str = "<policy context='default'><allow send_destination='*' eavesdrop='true'/>\
                         <allow eavesdrop='true'/><allow own='*'/></policy>";

#[test]
fn open_policies() {
    let config = loaded(ALLOW_ALL);
    let expected = Config {
        traffic: Traffic::Everything,
        eavesdrop_allowed: true,
        unrequested_replies_allowed: true,
        ..Config::default()
    };
    assert_eq!(config, expected);
    let config = loaded(
        "<policy context='default'><allow send_interface='*'/><allow receive_interface='*'/></policy>
         <policy context='mandatory'><allow own='*'/><allow user='*'/></policy>
         <policy user='x'><allow own='a.b'/></policy><policy at_console='true'/><policy group='g'/>",
    );
    let expected = Config {
        traffic: Traffic::Everything,
        connect: Connect::Anyone,
        ..Config::default()
    };
    assert_eq!(config, expected);
    let config = loaded("<policy context='default'><allow user='*'/></policy>");
    assert_eq!(
        config,
        Config {
            connect: Connect::Anyone,
            ..Config::default()
        }
    );
}

#[test]
fn other_policies_are_refused() {
    let unsupported = |body: &str, line: u32, what: &str| {
        let body = format!("{ALLOW_ALL}\n{body}");
        refused(
            &body,
            &format!("/etc/bus/main.conf:{line}: {what}: this policy is not supported yet"),
        );
    };
    let all = "<policy context='default'>";
    unsupported(
        &format!("{all}\n<deny send_interface='a.b'/></policy>"),
        4,
        "something is denied",
    );
    unsupported(
        &format!("{all}<allow user='root'/></policy>"),
        3,
        "some users may connect",
    );
    unsupported(
        &format!("{all}<allow own='a.b' log='true'/></policy>"),
        3,
        "the use of a rule is to be logged",
    );
    let some = |rules: &str, what: &str| {
        let body = format!("<policy context='default'>{rules}</policy>");
        refused(
            &body,
            &format!("/etc/bus/main.conf:2: {what}: this policy is not supported yet"),
        );
    };
    some(
        "<allow receive_sender='*'/><allow own='*'/>",
        "some messages may be sent, and not all",
    );
    some(
        "<allow send_path='*' max_fds='1'/><allow eavesdrop='true'/>",
        "some messages may be sent, and not all",
    );
    some(
        "<allow send_path='*'/><allow receive_type='signal'/>",
        "some messages may be received, and not all",
    );
    some(
        "<allow send_type='*'/><allow eavesdrop='true'/>",
        "some names may be owned, and not all",
    );
    let mute = loaded("<policy context='default'><allow send_destination='*'/><allow own='*'/></policy>");
    assert_eq!(mute, Config::default());
    let body = ALLOW_ALL.replace("context='default'", "user='root'");
    let what = "some messages may be sent, and not all: this policy is not supported yet";
    refused(&body, &format!("/etc/bus/main.conf:2: {what}"));
}

#[test]
fn wrong_policies() {
    let at = "/etc/bus/main.conf:2:";
    let one = "<policy> must have exactly one of the attributes context, user, group and at_console";
    refused("<policy/>", &format!("{at} {one}"));
    refused("<policy user='root' at_console='true'/>", &format!("{at} {one}"));
    refused(
        "<policy hat='top'/>",
        &format!("{at} <policy> has no attribute \"hat\""),
    );
    refused(
        "<policy context='x'/>",
        &format!("{at} context=\"x\" must be \"default\" or \"mandatory\""),
    );
    refused(
        "<policy at_console='1'/>",
        &format!("{at} at_console=\"1\" must be \"true\" or \"false\""),
    );
    refused(
        "<policy context='default'><bees/></policy>",
        &format!("{at} <policy> has no element <bees>"),
    );
    refused(
        "<policy context='default'>x</policy>",
        &format!("{at} <policy> cannot contain text"),
    );
    refused(
        "<allow own='*'/>",
        &format!("{at} <busconfig> has no element <allow>"),
    );
    let per_user = "a rule about who may connect cannot stand in the policy of a user or group";
    refused(
        "<policy user='root'><allow user='*'/></policy>",
        &format!("{at} {per_user}"),
    );
    refused_rule(
        "<allow/>",
        "a rule must have an attribute that says what it is about",
    );
    refused_rule(
        "<allow log='true' max_fds='1'/>",
        "a rule must have an attribute that says what it is about",
    );
    refused_rule("<allow species='stoat'/>", "<allow> has no attribute \"species\"");
    refused_rule("<allow own='*'>x</allow>", "<allow> cannot contain text");
    refused_rule(
        "<deny send_member='M'/>",
        "a rule with a member must have an interface or a path",
    );
    refused_rule(
        "<allow receive_type='signal' send_destination='a.b'/>",
        "a rule cannot have both send and receive attributes",
    );
    refused_rule(
        "<allow send_broadcast='true' send_destination='a.b'/>",
        "send_broadcast=\"true\" cannot be combined with send_destination",
    );
    refused_rule(
        "<allow send_destination='*' max_fds='33554433'/>",
        "max_fds=\"33554433\" must be a number from 0 to 33554432",
    );
    refused_rule(
        "<allow eavesdrop='yes'/>",
        "eavesdrop=\"yes\" must be \"true\" or \"false\"",
    );
    refused_rule(
        "<allow send_type='bad'/>",
        "send_type=\"bad\" must be \"method_call\", \"method_return\", \"error\", \"signal\" or \"*\"",
    );
}

/// Every pair of attributes, as dbus-daemon judges it.
#[test]
fn pairs_of_attributes() {
    let values = [
        ("send_interface", "a.b"),
        ("send_member", "M"),
        ("send_error", "a.E"),
        ("send_broadcast", "false"),
        ("send_destination", "a.b"),
        ("send_destination_prefix", "a.b"),
        ("send_type", "signal"),
        ("send_path", "/a"),
        ("receive_interface", "a.b"),
        ("receive_member", "M"),
        ("receive_error", "a.E"),
        ("receive_sender", "a.b"),
        ("receive_type", "signal"),
        ("receive_path", "/a"),
        ("send_requested_reply", "true"),
        ("receive_requested_reply", "true"),
        ("eavesdrop", "true"),
        ("own", "a.b"),
        ("own_prefix", "a.b"),
        ("user", "*"),
        ("group", "*"),
        ("log", "true"),
        ("min_fds", "1"),
        ("max_fds", "2"),
    ];
    let mut accepted = 0;
    for (index, (first, value)) in values.iter().enumerate() {
        for (second, other) in &values[index + 1..] {
            let text = format!("<deny {first}='{value}' {second}='{other}'/>");
            let document = Document::parse(&text).unwrap();
            let place = Place {
                file: String::new(),
                line: 0,
            };
            accepted += usize::from(Rule::parse(document.root_element(), &Context::Default, place).is_ok());
        }
    }
    assert_eq!(accepted, 107);
}
