//! The configuration of a bus that was given none, and the files of the two that everybody knows.

use std::io;
use std::path::{Path, PathBuf};

use super::files::{Environment, Files};
use super::xml::{ConfigError, Loaded, load, load_file};

/// The configuration file of the session bus.
pub const SESSION_FILE: &str = "/usr/share/dbus-1/session.conf";

/// The configuration file of the system bus.
pub const SYSTEM_FILE: &str = "/usr/share/dbus-1/system.conf";

/// What stands in messages for the embedded configuration.
const EMBEDDED_NAME: &str = "<embedded session.conf>";

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

/// Where a configuration comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ConfigSource {
    /// Nowhere: a session bus on defaults.
    #[default]
    Embedded,
    /// [`SESSION_FILE`]; where this machine has none, as [`Embedded`](Self::Embedded).
    Session,
    /// [`SYSTEM_FILE`].
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
            Self::System => load_file(Path::new(SYSTEM_FILE), files, environment),
            Self::Session => match load_file(Path::new(SESSION_FILE), files, environment) {
                Err(ConfigError::Read { path, error })
                    if error.kind() == io::ErrorKind::NotFound && path == Path::new(SESSION_FILE) =>
                {
                    load_embedded(files, environment)
                }
                result => result,
            },
        }
    }
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
        assert_eq!(
            ConfigSource::Session
                .load(&Bare, &Environment::default())
                .unwrap(),
            loaded
        );
        ConfigSource::System
            .load(&Bare, &Environment::default())
            .unwrap_err();
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
