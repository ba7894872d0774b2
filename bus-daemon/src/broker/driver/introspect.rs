//! The description of the bus's object (specification, "Introspection Data Format").

use super::method::{Interface, PATH};
use super::properties::Property;

/// The XML for the object at `path`, which lists what can be called there and the way from it to the bus's own object.
pub(super) fn introspect(path: &str) -> String {
    let mut xml = String::with_capacity(6144);
    xml.push_str(concat!(
        "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n",
        "\"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n",
        "<node>\n",
    ));
    for interface in Interface::ALL
        .into_iter()
        .filter(|interface| interface.is_at(path))
    {
        describe(interface, &mut xml);
    }
    if let Some(child) = child(path) {
        xml.push_str(&format!("  <node name=\"{child}\"/>\n"));
    }
    xml.push_str("</node>\n");
    xml
}

/// The relative path of the bus's own object, from an object above it.
fn child(path: &str) -> Option<&'static str> {
    if path == "/" {
        return PATH.strip_prefix('/');
    }
    PATH.strip_prefix(path)?.strip_prefix('/')
}

fn describe(interface: Interface, xml: &mut String) {
    xml.push_str(&format!("  <interface name=\"{}\">\n", interface.name()));
    for method in interface.methods() {
        xml.push_str(&format!("    <method name=\"{}\">\n", method.name));
        for (types, direction) in [(method.input, "in"), (method.output, "out")] {
            for signature in types {
                xml.push_str(&format!(
                    "      <arg direction=\"{direction}\" type=\"{signature}\"/>\n"
                ));
            }
        }
        xml.push_str("    </method>\n");
    }
    for property in Property::ALL
        .into_iter()
        .filter(|property| property.interface() == interface)
    {
        let (name, signature) = (property.name(), property.signature());
        let changes = if property.is_constant() { "const" } else { "false" };
        xml.push_str(&format!(
            "    <property name=\"{name}\" type=\"{signature}\" access=\"read\">\n      <annotation \
             name=\"org.freedesktop.DBus.Property.EmitsChangedSignal\" value=\"{changes}\"/>\n    </property>\n"
        ));
    }
    for (name, arguments) in signals(interface) {
        xml.push_str(&format!("    <signal name=\"{name}\">\n"));
        for (name, signature) in *arguments {
            xml.push_str(&format!("      <arg type=\"{signature}\" name=\"{name}\"/>\n"));
        }
        xml.push_str("    </signal>\n");
    }
    xml.push_str("  </interface>\n");
}

/// Name, and the names and types of the arguments.
type Signal = (&'static str, &'static [(&'static str, &'static str)]);

fn signals(interface: Interface) -> &'static [Signal] {
    match interface {
        Interface::Bus => &[
            (
                "NameOwnerChanged",
                &[("name", "s"), ("old_owner", "s"), ("new_owner", "s")],
            ),
            ("NameLost", &[("name", "s")]),
            ("NameAcquired", &[("name", "s")]),
            ("ActivatableServicesChanged", &[]),
        ],
        Interface::Properties => &[(
            "PropertiesChanged",
            &[
                ("interface_name", "s"),
                ("changed_properties", "a{sv}"),
                ("invalidated_properties", "as"),
            ],
        )],
        Interface::Introspectable
        | Interface::Monitoring
        | Interface::Stats
        | Interface::Peer
        | Interface::Restart
        | Interface::Policy => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_well_formed_and_complete() {
        let xml = introspect(PATH);
        let options = roxmltree::ParsingOptions {
            allow_dtd: true,
            ..roxmltree::ParsingOptions::default()
        };
        let document = roxmltree::Document::parse_with_options(&xml, options).unwrap();
        let names = |tag: &str| -> Vec<String> {
            let nodes = document.descendants().filter(|node| node.has_tag_name(tag));
            nodes
                .filter_map(|node| node.attribute("name").map(str::to_owned))
                .collect()
        };
        assert_eq!(
            names("interface"),
            Interface::ALL.map(|interface| interface.name().to_owned())
        );
        assert_eq!(names("method").len(), super::super::method::METHODS.len());
        assert_eq!(names("property").len(), Property::ALL.len());
        assert_eq!(names("signal").len(), 5);
        assert_eq!(names("node").len(), 0);
    }

    #[test]
    fn other_objects_have_less_and_show_the_way() {
        for (path, child) in [
            ("/", "org/freedesktop/DBus"),
            ("/org", "freedesktop/DBus"),
            ("/org/freedesktop", "DBus"),
        ] {
            let xml = introspect(path);
            assert!(xml.contains(&format!("<node name=\"{child}\"/>")), "{path}");
            assert!(!xml.contains("Debug.Stats"));
            assert!(xml.contains("org.freedesktop.DBus.Peer"));
        }
        assert!(!introspect("/or").contains("<node name"));
        assert!(!introspect("/org/freedesktop/DBus/more").contains("<node name"));
    }
}
