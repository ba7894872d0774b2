//! The configuration of a bus that was given none, and the files of the two that everybody knows.

use std::io;
use std::path::{Path, PathBuf};

use super::files::{Environment, Files};
use super::xml::{ConfigError, Loaded, load, load_file};

/// The configuration file of the session bus.
pub const SESSION_FILE: &str = "/usr/share/dbus-1/session.conf";

/// The configuration file of the system bus.
pub const SYSTEM_FILE: &str = "/usr/share/dbus-1/system.conf";

/// What stands in messages for the embedded configurations.
const EMBEDDED_NAME: &str = "<embedded session.conf>";
const EMBEDDED_SYSTEM_NAME: &str = "<embedded system.conf>";

/// A session bus as the stock file makes it, without the files of this machine.
const EMBEDDED: &str = r#"
<busconfig>
  <type>session</type>
  <keep_umask/>
  <listen>unix:tmpdir=/tmp</listen>
  <auth>EXTERNAL</auth>
  <standard_session_servicedirs/>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"#;

/// Between the parts of the session bus's configuration, on a machine without [`SESSION_FILE`].
const SESSION_INCLUDES: &str = r#"
  <include ignore_missing="yes">/etc/dbus-1/session.conf</include>
  <includedir>/usr/share/dbus-1/session.d</includedir>
  <includedir>/etc/dbus-1/session.d</includedir>
  <include ignore_missing="yes">/etc/dbus-1/session-local.conf</include>
  <include if_selinux_enabled="yes" selinux_root_relative="yes">contexts/dbus_contexts</include>
</busconfig>
"#;

/// A system bus as the stock file makes it.
const EMBEDDED_SYSTEM: &str = r#"
<busconfig>
  <type>system</type>
  <user>messagebus</user>
  <fork/>
  <standard_system_servicedirs/>
  <servicehelper>/usr/libexec/bus-daemon-launch-helper</servicehelper>
  <pidfile>/run/dbus/pid</pidfile>
  <syslog/>
  <auth>EXTERNAL</auth>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Containers1"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"
          send_member="UpdateActivationEnvironment"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Debug.Stats"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.systemd1.Activator"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.systemd1.Activator"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Debug.Stats"/>
  </policy>
  <include ignore_missing="yes">/etc/dbus-1/system.conf</include>
  <includedir>/usr/share/dbus-1/system.d</includedir>
  <includedir>/etc/dbus-1/system.d</includedir>
  <include ignore_missing="yes">/etc/dbus-1/system-local.conf</include>
  <include if_selinux_enabled="yes" selinux_root_relative="yes">contexts/dbus_contexts</include>
</busconfig>
"#;

/// Where a configuration comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ConfigSource {
    /// Nowhere: a session bus on defaults.
    #[default]
    Embedded,
    /// [`SESSION_FILE`]; where this machine has none, what is usually in it.
    Session,
    /// [`SYSTEM_FILE`]; where this machine has none, what is usually in it.
    System,
    /// Some file.
    File(PathBuf),
}

impl ConfigSource {
    /// Loads it.
    ///
    /// # Errors
    /// As [`load_file`].
    pub fn load(&self, files: &dyn Files, environment: &Environment) -> Result<Loaded, ConfigError> {
        match self {
            Self::Embedded => load_embedded(files, environment),
            Self::File(path) => load_file(path, files, environment),
            Self::System => match load_file(Path::new(SYSTEM_FILE), files, environment) {
                Err(error) if is_missing(&error, SYSTEM_FILE) => load(
                    Path::new(EMBEDDED_SYSTEM_NAME),
                    EMBEDDED_SYSTEM.as_bytes(),
                    files,
                    environment,
                ),
                result => result,
            },
            Self::Session => match load_file(Path::new(SESSION_FILE), files, environment) {
                Err(error) if is_missing(&error, SESSION_FILE) => {
                    let text = embedded_session();
                    load(Path::new(EMBEDDED_NAME), text.as_bytes(), files, environment)
                }
                result => result,
            },
        }
    }
}

/// Whether it is this file that is not there, and not one that it includes.
fn is_missing(error: &ConfigError, file: &str) -> bool {
    matches!(error, ConfigError::Read { path, error }
        if error.kind() == io::ErrorKind::NotFound && path == Path::new(file))
}

/// A session bus as the stock file makes it, with the files of this machine.
fn embedded_session() -> String {
    let own = EMBEDDED.trim_end().trim_end_matches("</busconfig>");
    let limits = super::Limits::session();
    let limits = super::limits::differences(&limits);
    let limits: String = limits
        .iter()
        .map(|(name, number)| format!("  <limit name=\"{name}\">{number}</limit>\n"))
        .collect();
    // Those of the files come before the stock ones.
    let includes = SESSION_INCLUDES.trim_end().trim_end_matches("</busconfig>");
    format!("{own}{includes}{limits}</busconfig>\n")
}

fn load_embedded(files: &dyn Files, environment: &Environment) -> Result<Loaded, ConfigError> {
    let mut loaded = load(Path::new(EMBEDDED_NAME), EMBEDDED.as_bytes(), files, environment)?;
    loaded.config.limits = super::Limits::session();
    loaded.sources.clear();
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use bus_wire::Mechanism;

    use super::super::files::Disk;
    use super::super::{BusType, Config, Connect, Limits, Simple, Traffic};
    use super::*;

    /// A machine without files.
    struct Bare;

    impl Files for Bare {
        fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn create_private_dir(&self, _: &Path) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }

    #[test]
    fn embedded() {
        let loaded = ConfigSource::Embedded
            .load(&Bare, &Environment::default())
            .unwrap();
        let expected = Config {
            bus_type: BusType::Session,
            listen: vec!["unix:tmpdir=/tmp".into()],
            auth: vec![Mechanism::External],
            limits: Limits::session(),
            policy: loaded.config.policy.clone(),
            keep_umask: true,
            service_dirs: loaded.config.service_dirs.clone(),
            ..Config::default()
        };
        assert_eq!(loaded.config, expected);
        let all = Simple {
            connect: Connect::OwnerOnly,
            eavesdrop_allowed: true,
            unrequested_replies_allowed: true,
            ..Simple::OPEN
        };
        assert_eq!(Simple::of(&expected.policy), Some(all));
        assert_eq!((loaded.warnings.len(), loaded.sources.len()), (0, 0));
        let session = ConfigSource::Session.load(&Bare, &Environment::default());
        assert_eq!(session.unwrap().config, loaded.config);
    }

    /// An element with its attributes and text, and what is in it.
    fn shape(node: roxmltree::Node<'_, '_>) -> String {
        let mut attributes: Vec<String> = node
            .attributes()
            .map(|attribute| format!(" {}={:?}", attribute.name(), attribute.value()))
            .collect();
        attributes.sort();
        let inner: String = node
            .children()
            .filter(roxmltree::Node::is_element)
            .map(shape)
            .collect();
        let text = node.text().unwrap_or_default().trim();
        // Ours is elsewhere, and the stock file names its own neighbours.
        let text = match node.tag_name().name() {
            "servicehelper" => "",
            "includedir" => text.trim_start_matches("/usr/share/dbus-1/"),
            _ => text,
        };
        format!(
            "<{}{}>{text}{inner}\n",
            node.tag_name().name(),
            attributes.concat()
        )
    }

    /// The stock files of this machine say the same as the embedded ones, element by element, where it has some.
    #[test]
    fn stock_files() {
        for (file, embedded) in [
            (SESSION_FILE, embedded_session()),
            (SYSTEM_FILE, EMBEDDED_SYSTEM.to_owned()),
        ] {
            let Ok(stock) = std::fs::read_to_string(file) else {
                eprintln!("skipped: {file} not found");
                continue;
            };
            let options = roxmltree::ParsingOptions {
                allow_dtd: true,
                ..roxmltree::ParsingOptions::default()
            };
            let stock = roxmltree::Document::parse_with_options(&stock, options).unwrap();
            let embedded = roxmltree::Document::parse(&embedded).unwrap();
            assert_eq!(
                shape(embedded.root_element()),
                shape(stock.root_element()),
                "{file}"
            );
        }
    }

    /// The stock file of this machine says the same, if it has one that nobody has changed.
    #[test]
    fn stock_session() {
        let Ok(loaded) = load_file(Path::new(SESSION_FILE), &Disk, &Environment::default()) else {
            eprintln!("skipped: {SESSION_FILE} not found");
            return;
        };
        assert_eq!(loaded.config.limits, Limits::session());
        let simple = Simple::of(&loaded.config.policy);
        assert_eq!(simple.map(|simple| simple.traffic), Some(Traffic::Everything));
    }
}
