use super::*;

#[track_caller]
fn refused_rule(rule: &str, message: &str) {
    refused(
        &format!("<policy context='default'>\n{rule}</policy>"),
        &format!("/etc/bus/main.conf:3: {message}"),
    );
}

/// The rules of a policy with their places.
#[test]
fn rules_know_where_they_stand() {
    let config = loaded(
        "<policy context='default'><allow send_interface='*'/>\n<deny own='a.b'/></policy>\n<policy user='x'>\n<allow own='a.b' log='true'/></policy>",
    );
    let policy = &config.policy;
    let rules = policy.blocks.iter().flat_map(|block| &block.rules);
    let places: Vec<String> = rules.map(|rule| rule.place.to_string()).collect();
    let at = |line: u32| format!("/etc/bus/main.conf:{line}");
    assert_eq!(places, [at(2), at(3), at(5)]);
    assert_eq!(policy.blocks[1].context, Context::User("x".into()));
    // Nobody is known yet.
    assert_eq!(policy.ids, Ids::default());
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
