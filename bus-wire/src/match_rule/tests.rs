use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(text: &str, canonical: &str) -> MatchRule {
    let rule: MatchRule = text.parse().unwrap();
    assert_eq!(rule.to_string(), canonical, "{text:?}");
    assert_eq!(rule.to_text(), canonical);
    assert_eq!(canonical.parse::<MatchRule>(), Ok(rule.clone()));
    rule
}

#[track_caller]
fn refused(text: &str) -> MatchRuleError {
    text.parse::<MatchRule>().unwrap_err()
}

#[test]
fn every_key() {
    // As dbus-daemon writes them.
    let text = "type='signal',interface='org.freedesktop.DBus',member='Foo',path='/bar/foo',\
                sender='org.freedesktop.DBus',destination=':452345.34',eavesdrop='true',arg2='bar'";
    check(text, text);
    let text = "arg9='b',arg1path='/a',arg10='c',arg0namespace='d'";
    check(text, "arg0namespace='d',arg1path='/a',arg9='b',arg10='c'");
    let text =
        "eavesdrop='true',arg63='',arg5path='/a/',arg0namespace='com',path_namespace='/',sender=':1.5'";
    let canonical =
        "path_namespace='/',sender=':1.5',eavesdrop='true',arg0namespace='com',arg5path='/a/',arg63=''";
    let rule = check(text, canonical);
    assert!(rule.eavesdrop);
    assert_eq!(rule.args.len(), 3);
    for kind in ["signal", "method_call", "method_return", "error"] {
        check(&format!("type={kind}"), &format!("type='{kind}'"));
    }
    check("destination='com.example'", "destination='com.example'");
}

/// What the reference implementation accepts, found by asking it.
#[test]
fn loose_writing() {
    for text in [
        "",
        "  ",
        "eavesdrop='false'",
        "eavesdrop='true',eavesdrop='false'",
    ] {
        assert_eq!(check(text, ""), MatchRule::default());
    }
    for text in [
        "type='signal',",
        "type='signal', ",
        " type ='signal'",
        "\ttype\n=signal",
        "type=si'gn'al",
    ] {
        check(text, "type='signal'");
    }
    check("arg0= 'a' x", "arg0=' a x'");
    check("arg0=a=b,arg1='x,y'z", "arg0='a=b',arg1='x,yz'");
}

/// What the reference implementation makes of it, found by asking it.
#[test]
fn odd_keys() {
    // An empty key ends the rule.
    for text in ["=", "='x'", " = 'x", "=x=y", "='x'bogus", "=,type='signal'"] {
        check(text, "");
    }
    for text in [
        "type='signal',=",
        "type='signal',='x',member='a'",
        "type='signal', = 'x',type='error'",
    ] {
        check(text, "type='signal'");
    }
    // The number of an argument is read as C programs do.
    for (key, canonical) in [
        ("arg00", "arg0"),
        ("arg01", "arg1"),
        ("arg+1", "arg1"),
        ("arg-0", "arg0"),
        ("arg-18446744073709551615", "arg1"),
        ("arg\x0b1", "arg1"),
        ("arg010", "arg8"),
        ("arg077", "arg63"),
        ("arg0000000000000000000000000001", "arg1"),
        ("arg0x1", "arg1"),
        ("arg0X10", "arg16"),
        ("arg0xapath", "arg10path"),
        ("arg01path", "arg1path"),
    ] {
        check(&format!("{key}='x'"), &format!("{canonical}='x'"));
    }
    assert_eq!(
        refused("arg1='x',arg01='y'"),
        MatchRuleError::Duplicate("arg01".into())
    );
}

#[test]
fn quoting() {
    for text in [
        r"arg0=''\''',arg1='\',arg2=',',arg3='\\'",
        r"arg0=\',arg1=\,arg2=',',arg3=\\",
    ] {
        let rule = check(text, r"arg0=''\''',arg1='\',arg2=',',arg3='\\'");
        let values: Vec<&str> = rule.args.iter().map(|condition| &*condition.value).collect();
        assert_eq!(values, ["'", r"\", ",", r"\\"]);
    }
    check(r"arg0=a'b'c'd'e", "arg0='abcde'");
    check(r"arg0=\a\", r"arg0='\a\'");
    assert_eq!(refused("arg0='a"), MatchRuleError::UnbalancedQuote("arg0".into()));
    assert_eq!(
        refused("arg0=a'b'c'"),
        MatchRuleError::UnbalancedQuote("arg0".into())
    );
}

#[test]
fn errors_name_the_key() {
    assert_eq!(refused(","), MatchRuleError::NoValue(",".into()));
    assert_eq!(refused("type"), MatchRuleError::NoValue("type".into()));
    assert_eq!(refused("type='signal','"), MatchRuleError::NoValue("'".into()));
    for key in [
        "Type",
        ",type",
        "foo",
        "arg0foo",
        "arg1namespace",
        "arg0namespacefoo",
        "arg00namespace",
        "arg+0namespace",
        "arg0x0namespace",
        "arg0xpath",
        "arg0b1",
        "arg08",
        "type''",
    ] {
        assert_eq!(
            refused(&format!("{key}='a'")),
            MatchRuleError::UnknownKey(key.into())
        );
    }
    for key in [
        "arg",
        "argx",
        "arg-",
        "arg++1",
        "arg64",
        "arg0100",
        "arg0x40",
        "arg-1",
        "arg-99999999999999999999",
        "arg99999999999999999999",
        "arg256",
    ] {
        assert_eq!(
            refused(&format!("{key}='a'")),
            MatchRuleError::ArgumentIndex(key.into())
        );
    }
    for (text, key) in [
        ("type='signal',type='signal'", "type"),
        ("sender='a.b',sender='a.b'", "sender"),
        ("member='a',member='b'", "member"),
        ("path='/a',path_namespace='/a'", "path_namespace"),
        ("path_namespace='/a',path='/a'", "path"),
        ("arg0='a',arg0path='/a'", "arg0path"),
        ("arg0='a',arg0namespace='a'", "arg0namespace"),
    ] {
        assert_eq!(refused(text), MatchRuleError::Duplicate(key.into()), "{text}");
    }
}

#[test]
fn values_are_checked() {
    for text in [
        "sender='a'",
        "sender=''",
        "destination='a'",
        "interface='a'",
        "interface='a.9b'",
        "member='a.b'",
        "member='9a'",
        "member=''",
        "path=''",
        "path='/a/'",
        "path_namespace='/a/'",
    ] {
        assert!(matches!(refused(text), MatchRuleError::Name { .. }), "{text}");
    }
    for text in [
        "type=''",
        "type='foo'",
        "type='signal' ,member='x'",
        "eavesdrop='TRUE'",
        "eavesdrop=''",
        "arg0namespace=''",
        "arg0namespace='a..b'",
        "arg0namespace='1a'",
        "arg0namespace='a.'",
    ] {
        assert!(matches!(refused(text), MatchRuleError::Value { .. }), "{text}");
    }
    for text in [
        "arg0namespace='a-b'",
        "arg0namespace=':1.0'",
        "arg0namespace='a.b'",
        "arg0path='not a path'",
    ] {
        check(text, text);
    }
}

#[test]
fn length() {
    assert!(
        format!("arg0='{}'", "a".repeat(1017))
            .parse::<MatchRule>()
            .is_ok()
    );
    assert_eq!(
        refused(&format!("arg0='{}'", "a".repeat(1018))),
        MatchRuleError::TooLong(1025)
    );
}

#[test]
fn paths() {
    let rule = check(
        "path_namespace='/com/example/foo'",
        "path_namespace='/com/example/foo'",
    );
    let path = rule.path.unwrap();
    for (text, expected) in [
        ("/com/example/foo", true),
        ("/com/example/foo/bar", true),
        ("/com/example/foobar", false),
        ("/com/example", false),
    ] {
        assert_eq!(path.matches(text), expected, "{text}");
    }
    let root: PathCondition = PathCondition::Namespace("/".into());
    assert!(root.matches("/") && root.matches("/a/b"));
    let exact: PathCondition = PathCondition::Exact("/a".into());
    assert!(exact.matches("/a") && !exact.matches("/a/b"));
}

#[track_caller]
fn check_arg(rule: &str, arg: Option<Arg<'_>>, expected: bool) {
    let rule: MatchRule = rule.parse().unwrap();
    assert_eq!(rule.matches_args(|_| arg), expected, "{rule} {arg:?}");
}

#[test]
fn arguments() {
    for (text, expected) in [
        ("/", true),
        ("/aa/", true),
        ("/aa/bb/", true),
        ("/aa/bb/cc/", true),
        ("/aa/bb/cc", true),
        ("/aa/b", false),
        ("/aa", false),
        ("/aa/bb", false),
        ("", false),
    ] {
        check_arg("arg0path='/aa/bb/'", Some(Arg::Str(text)), expected);
        check_arg("arg0path='/aa/bb/'", Some(Arg::ObjectPath(text)), expected);
    }
    check_arg("arg0path='/aa/bb'", Some(Arg::ObjectPath("/aa/")), true);
    check_arg("arg0path='/aa/bb'", Some(Arg::ObjectPath("/aa/bb/")), false);
    check_arg("arg0path=''", Some(Arg::Str("")), true);
    for (text, expected) in [
        ("com.example.backend1", true),
        ("com.example.backend1.foo.bar", true),
        ("com.example.backend10", false),
        ("com.example", false),
    ] {
        check_arg(
            "arg0namespace='com.example.backend1'",
            Some(Arg::Str(text)),
            expected,
        );
    }
    check_arg("arg0='a'", Some(Arg::Str("a")), true);
    check_arg("arg0='a'", Some(Arg::Str("ab")), false);
    check_arg("arg0='/a'", Some(Arg::ObjectPath("/a")), false);
    check_arg("arg0namespace='a'", Some(Arg::ObjectPath("a")), false);
    check_arg("arg0=''", None, false);
    check_arg("", None, true);
}

fn signal() -> crate::MessageBuilder<'static> {
    crate::MessageBuilder::signal("/a/b", "a.b", "Changed").sender(":1.7")
}

#[test]
fn messages() {
    let path = crate::ObjectPath::from_static("/p/q");
    let bytes = signal().encode(&(1u8, "x.y", (2u32, "no"), path, "last"));
    let message = Message::parse(bytes.unwrap().into()).unwrap();
    for (rule, expected) in [
        ("", true),
        ("type='signal'", true),
        ("type='error'", false),
        ("interface='a.b',member='Changed',path='/a/b'", true),
        ("interface='a.c'", false),
        ("member='Other'", false),
        ("path='/a'", false),
        ("path_namespace='/a'", true),
        ("path_namespace='/a/b/c'", false),
        ("destination=':1.1'", false),
        ("sender=':1.7'", true),
        ("sender=':1.8'", false),
        ("sender='well.known'", false),
        ("arg1='x.y',arg3path='/p/',arg4='last'", true),
        ("arg1='x.y',arg4='first'", false),
        ("arg0='\u{1}'", false),
        ("arg1='x'", false),
        ("arg2='no'", false),
        ("arg3='/p/q'", false),
        ("arg5=''", false),
        ("arg63='last'", false),
    ] {
        let rule: MatchRule = rule.parse().unwrap();
        assert_eq!(rule.matches(&message), expected, "{rule}");
    }
    let well_known: MatchRule = "sender='well.known',arg4='last'".parse().unwrap();
    assert!(well_known.matches_from(&message, |name| name == "well.known"));
    assert!(!well_known.matches_from(&message, |_| false));
    let first: MatchRule = "arg0namespace='x'".parse().unwrap();
    let bytes = signal().encode(&"x.y").unwrap();
    assert!(first.matches(&Message::parse(bytes.into()).unwrap()) && !first.matches(&message));
}

#[test]
fn built() {
    let rule = MatchRule::signals()
        .sender(crate::UniqueName::from_static(":1.7"))
        .interface("a.b")
        .member("Changed")
        .path_namespace("/a")
        .destination(":1.8")
        .arg(3, "it's")
        .arg_path(1, "/p/")
        .arg0_namespace("x")
        .build()
        .unwrap();
    assert_eq!(rule.to_string().parse::<MatchRule>(), Ok(rule.clone()));
    let written = r"type='signal',sender=':1.7',interface='a.b',member='Changed',path_namespace='/a',destination=':1.8',arg3='it'\''s',arg1path='/p/',arg0namespace='x'";
    assert_eq!(written.parse::<MatchRule>(), Ok(rule));
    let bad = [
        MatchRule::builder().interface("a").build(),
        MatchRule::builder().path("a").build(),
        MatchRule::builder().arg(64, "a").build(),
        MatchRule::builder().arg(0, "a").arg_path(0, "/").build(),
        MatchRule::builder().arg(0, "a\0").build(),
        MatchRule::builder().arg0_namespace("a..b").build(),
        MatchRule::builder().message_type(MessageType::Unknown(5)).build(),
    ];
    assert!(bad.iter().all(Result::is_err), "{bad:?}");
    assert!(matches!(
        MatchRule::builder().member("a.b").arg(64, "").build(),
        Err(MatchRuleError::Name { .. })
    ));
}

fn key_and_value() -> impl Strategy<Value = (String, String)> {
    prop_oneof![
        ("type", "signal|error"),
        ("sender|destination|interface", "[a-z]{1,4}\\.[a-z]{1,4}"),
        ("member", "[A-Z][a-z]{0,4}"),
        ("path|path_namespace", "/|(/[a-z]{1,3}){1,3}"),
        ("arg(1|2|63)(path)?", "[ -~é]{0,12}"),
        ("arg0namespace", "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}"),
        ("eavesdrop", "true|false"),
    ]
}

#[test]
fn an_apostrophe_is_found_wherever_it_is() {
    for len in 0..200 {
        let mut text = "é".repeat(len / 2) + &"x".repeat(len % 2);
        assert_eq!(find_apostrophe(&text), None);
        text.push('\'');
        assert_eq!(find_apostrophe(&text), text.find('\''));
        text.push_str(&"'y".repeat(70));
        assert_eq!(find_apostrophe(&text), text.find('\''));
    }
}

/// What holds the texts of a rule makes no difference.
#[test]
fn texts_are_held_by_reference() {
    for text in [
        "",
        r"type='signal',sender=':1.5',arg0='a'\''b',arg3path='/x/',eavesdrop='true'",
        "member='M',path_namespace='/a',interface='a.b',destination='c.d',arg0namespace='e'",
    ] {
        let rule: MatchRule = text.parse().unwrap();
        let held =
            MatchRule::<Cow<'_, str>>::parse_held(text, |value| Cow::Owned(value.into_owned())).unwrap();
        assert_eq!(held.to_text(), rule.to_text());
        assert_eq!(held.map(|value| Box::from(&**value)), rule);
        let mut written = "something".to_owned();
        held.write_to(&mut written);
        assert_eq!(written, rule.to_text());
    }
}

proptest! {
    #[test]
    fn round_trip(pairs in prop::collection::vec(key_and_value(), 0..6)) {
        let quoted = pairs.iter().map(|(key, value)| format!("{key}='{}'", value.replace('\'', r"'\''")));
        if let Ok(rule) = quoted.collect::<Vec<_>>().join(",").parse::<MatchRule>() {
            prop_assert_eq!(rule.to_string().parse::<MatchRule>(), Ok(rule));
        }
    }

    #[test]
    fn arbitrary_text(text in "\\PC*|(arg0|arg1path|member|[a-c,='/\\\\ ]){0,20}") {
        if let Ok(rule) = text.parse::<MatchRule>() {
            prop_assert_eq!(rule.to_string().parse::<MatchRule>(), Ok(rule));
        }
    }
}
