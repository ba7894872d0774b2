//! The configuration that a command line stands for, read from the disk.

use std::path::Path;
use std::sync::Arc;

use super::Config;
use super::accounts::System;
use super::files::{Disk, Environment, Files};
use super::options::{self, Command, Options};
use super::policy::Policy;
use super::xml::ConfigError;

/// Reads what `options` name, and puts what they say themselves in its place. What is worth a warning goes to the log.
///
/// # Errors
/// Something in the files is wrong, or asks for what this bus cannot do; the message names file and line.
pub fn load(options: &Options) -> Result<Config, ConfigError> {
    load_from(options, &Disk)
}

/// The same with another view of the disk.
///
/// # Errors
/// As [`load`].
pub fn load_from(options: &Options, files: &dyn Files) -> Result<Config, ConfigError> {
    let environment = Environment::new(|variable| std::env::var(variable).ok());
    let loaded = options.source.load(files, &environment)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let mut config = loaded.config;
    let policy = Policy::resolve(config.policy.blocks.clone(), &System);
    for (place, text) in policy.unresolved() {
        tracing::warn!("{place}: {text}");
    }
    config.policy = Arc::new(policy);
    options.apply(&mut config);
    if config.listen.is_empty() {
        return Err(ConfigError::NoListen);
    }
    Ok(config)
}

/// The policy of a file and of all that it includes, for the users and groups that there are now, and what was passed over.
///
/// # Errors
/// What is wrong with the files.
pub fn policy_of(file: &Path) -> Result<(Policy, Vec<String>), ConfigError> {
    let environment = Environment::new(|variable| std::env::var(variable).ok());
    let loaded = super::xml::load_file(file, &Disk, &environment)?;
    let blocks = loaded.config.policy.blocks.clone();
    Ok((Policy::resolve(blocks, &System), loaded.warnings))
}

/// The configuration as a start with this command line would find it. `arguments` are those after the program.
///
/// # Errors
/// What is wrong with the command line or the files.
pub fn again(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Config, String> {
    let arguments = arguments
        .into_iter()
        .filter_map(|argument| argument.into_string().ok());
    match options::parse(arguments).map_err(|error| error.to_string())? {
        Command::Run(options) => load(&options).map_err(|error| error.to_string()),
        Command::Help | Command::Version | Command::Introspect => {
            Err("the command line asks for no bus".into())
        }
    }
}
