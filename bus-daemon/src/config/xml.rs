//! The loader of dbus-daemon's configuration files (dbus-daemon(1), "CONFIGURATION FILE").
//!
//! All of the format is understood, and nothing in it is passed over: an element or attribute that does not belong
//! there is an error, as it is for dbus-daemon.

mod file_text;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bus_wire::{Address, AddressList, Mechanism};
use roxmltree::{Document, Node, ParsingOptions};

use super::files::{Environment, Files};
use super::limits::{Slot, limit_slot};
use super::number::c_number;
use super::policy::{Context, Ids, Place, Policy, PolicyBlock, Rule};
use super::services::read_services;
use super::{BusType, Config, ServiceDir};

pub use super::error::{ConfigError, Problem};
use super::error::{MAX_INCLUDES, MOST_BYTES, MOST_FILES};

/// Where a relative path of an `<include selinux_root_relative="yes">` begins.
const SELINUX_ROOT: &str = "/etc/selinux/targeted";

/// A configuration, and what is to be said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration. Of the users and groups that its policy names nobody is known yet: see
    /// [`Policy::resolve`].
    pub config: Config,
    /// What was passed over, and why.
    pub warnings: Vec<String>,
    /// The files and directories that it came from; a change in one of them can change the configuration.
    pub sources: Vec<PathBuf>,
}

/// Loads a configuration file, with all that it includes, and the service files it names.
///
/// # Errors
/// There is something wrong in it, or it asks for something that this bus cannot do.
pub fn load_file(path: &Path, files: &dyn Files, environment: &Environment) -> Result<Loaded, ConfigError> {
    let content = read(path, files)?;
    load(path, &content, files, environment)
}

/// Loads a configuration whose outermost file is at hand; `path` is its name in messages, and where relative paths
/// begin.
///
/// # Errors
/// As [`load_file`].
pub fn load(
    path: &Path,
    content: &[u8],
    files: &dyn Files,
    environment: &Environment,
) -> Result<Loaded, ConfigError> {
    let mut loader = Loader {
        files,
        environment,
        draft: Draft::default(),
        warnings: Vec::new(),
        sources: Vec::new(),
        ancestors: Vec::new(),
        files_read: 0,
        bytes_read: 0,
    };
    loader.file(path, content)?;
    let Loader {
        draft: Draft {
            mut config,
            policy,
            auth,
        },
        mut warnings,
        sources,
        ..
    } = loader;
    config.policy = Arc::new(Policy {
        blocks: policy,
        ids: Ids::default(),
    });
    if let Some(auth) = auth {
        config.auth = auth;
    }
    config.services = read_services(&config.service_dirs, files, &mut warnings);
    Ok(Loaded {
        config,
        warnings,
        sources,
    })
}

fn read(path: &Path, files: &dyn Files) -> Result<Vec<u8>, ConfigError> {
    files.read(path).map_err(|error| ConfigError::Read {
        path: path.to_owned(),
        error,
    })
}

/// What was read so far.
#[derive(Debug, Clone, Default)]
struct Draft {
    config: Config,
    policy: Vec<PolicyBlock>,
    /// `None` until the first `<auth>`.
    auth: Option<Vec<Mechanism>>,
}

struct Loader<'a> {
    files: &'a dyn Files,
    environment: &'a Environment,
    draft: Draft,
    /// As in [`Loaded`].
    warnings: Vec<String>,
    sources: Vec<PathBuf>,
    /// The files that are being read, the outermost first.
    ancestors: Vec<PathBuf>,
    /// How many files were read so far, and how many bytes were in them.
    files_read: usize,
    bytes_read: usize,
}

impl Loader<'_> {
    /// Everything in a file takes effect as if it stood where the file is included.
    fn file(&mut self, path: &Path, content: &[u8]) -> Result<(), ConfigError> {
        let at = |line, problem| {
            let place = Place {
                file: path.display().to_string(),
                line,
            };
            ConfigError::Content { place, problem }
        };
        let line = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() as u32 + 1;
        self.files_read += 1;
        self.bytes_read = self.bytes_read.saturating_add(content.len());
        if self.is_too_much() {
            return Err(at(1, Problem::TooMuch));
        }
        let text = file_text::decode(content);
        let text = text.map_err(|(offset, problem)| at(line(&content[..offset]), problem))?;
        file_text::check_document_type(&text)
            .map_err(|(offset, problem)| at(line(&text.as_bytes()[..offset]), problem))?;
        let options = ParsingOptions {
            allow_dtd: true,
            ..ParsingOptions::default()
        };
        let document = Document::parse_with_options(&text, options)
            .map_err(|error| at(error.pos().row, Problem::Xml(error.to_string())))?;
        self.ancestors.push(path.to_owned());
        self.sources.push(path.to_owned());
        let result = without_namespaces(&document)
            .and_then(|()| self.root(document.root_element()))
            .map_err(|failure| match failure {
                Failure::Here { offset, problem } => at(document.text_pos_at(offset).row, problem),
                Failure::Elsewhere(error) => error,
            });
        self.ancestors.pop();
        result
    }

    fn root(&mut self, root: Node<'_, '_>) -> Result<(), Failure> {
        if root.tag_name().name() != "busconfig" {
            return Err(here(root, Problem::Root(root.tag_name().name().into())));
        }
        attributes(root, &[])?;
        elements(root)?.try_for_each(|node| self.element(node))
    }

    fn element(&mut self, node: Node<'_, '_>) -> Result<(), Failure> {
        let name = node.tag_name().name();
        match name {
            "include" => return self.include(node),
            "limit" => return self.limit(node),
            "policy" => return self.policy(node),
            "selinux" => return selinux(node),
            "apparmor" => return apparmor(node),
            _ => {}
        }
        let config = &mut self.draft.config;
        match name {
            "type" => {
                config.bus_type = match plain_text(node)?.trim() {
                    "session" => BusType::Session,
                    "system" => BusType::System,
                    other => BusType::Other(other.into()),
                }
            }
            "user" => config.user = Some(exact_text(node)?),
            "pidfile" => config.pid_file = Some(plain_text(node)?),
            "servicehelper" => config.service_helper = Some(plain_text(node)?),
            "fork" => config.fork = flag(node)?,
            "keep_umask" => config.keep_umask = flag(node)?,
            "allow_anonymous" => config.allow_anonymous = flag(node)?,
            "syslog" => config.syslog = flag(node)?,
            "listen" => config.listen.push(listen(node)?),
            "auth" => self.auth(node)?,
            "includedir" => self.include_dir(node)?,
            "servicedir" => {
                let path = self.resolve(&plain_text(node)?).display().to_string();
                self.service_dir(path, false);
            }
            "standard_session_servicedirs" => {
                flag(node)?;
                self.standard_session_dirs();
            }
            "standard_system_servicedirs" => {
                flag(node)?;
                for base in ["/etc", "/run", "/usr/local/share", "/usr/share", "/lib"] {
                    self.service_dir(format!("{base}/dbus-1/system-services"), true);
                }
            }
            other => {
                return Err(here(
                    node,
                    Problem::Element {
                        element: other.into(),
                        parent: "busconfig".into(),
                    },
                ));
            }
        }
        Ok(())
    }

    /// "If there are multiple <auth> elements, all the listed mechanisms are allowed."
    fn auth(&mut self, node: Node<'_, '_>) -> Result<(), Failure> {
        let name = exact_text(node)?;
        let auth = self.draft.auth.get_or_insert_default();
        match Mechanism::from_name(&name) {
            Some(mechanism) if auth.contains(&mechanism) => {}
            Some(mechanism) => auth.push(mechanism),
            None => return Err(here(node, Problem::Auth(name))),
        }
        Ok(())
    }

    fn include(&mut self, node: Node<'_, '_>) -> Result<(), Failure> {
        attributes(
            node,
            &["ignore_missing", "if_selinux_enabled", "selinux_root_relative"],
        )?;
        let ignore_missing = yes_or_no(node, "ignore_missing")?;
        let if_selinux_enabled = yes_or_no(node, "if_selinux_enabled")?;
        let selinux_root_relative = yes_or_no(node, "selinux_root_relative")?;
        let name = text(node)?;
        if if_selinux_enabled {
            return Ok(());
        }
        let path = if selinux_root_relative {
            Path::new(SELINUX_ROOT).join(name)
        } else {
            self.resolve(&name)
        };
        self.check_nesting(&path).map_err(|problem| here(node, problem))?;
        match self.files.read(&path) {
            Ok(content) => self.file(&path, &content).map_err(Failure::Elsewhere),
            Err(error) if ignore_missing && error.kind() == io::ErrorKind::NotFound => {
                // It may come.
                self.sources.push(path);
                Ok(())
            }
            Err(error) => Err(Failure::Elsewhere(ConfigError::Read { path, error })),
        }
    }

    /// All `*.conf` of a directory, by name. A drop-in that is broken must not keep the bus from starting: as with
    /// dbus-daemon it is left out as a whole, and a warning says why.
    fn include_dir(&mut self, node: Node<'_, '_>) -> Result<(), Failure> {
        let dir = self.resolve(&plain_text(node)?);
        self.sources.push(dir.clone());
        let mut paths = match self.files.list(&dir) {
            Ok(paths) => paths,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Failure::Elsewhere(ConfigError::Read { path: dir, error })),
        };
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
        paths.sort();
        for path in paths {
            let before = self.draft.clone();
            let (warnings, sources) = (self.warnings.len(), self.sources.len());
            let nesting = self.check_nesting(&path);
            let result = nesting.map_err(|problem| ConfigError::Content {
                place: self.place(node),
                problem,
            });
            let result = result.and_then(|()| self.file(&path, &read(&path, self.files)?));
            if let Err(error) = result {
                if self.is_too_much() {
                    return Err(Failure::Elsewhere(error));
                }
                self.draft = before;
                self.warnings.truncate(warnings);
                self.sources.truncate(sources);
                self.warnings
                    .push(format!("{error}; {} is left out", path.display()));
                self.sources.push(path);
            }
        }
        Ok(())
    }

    fn limit(&mut self, node: Node<'_, '_>) -> Result<(), Failure> {
        attributes(node, &["name"])?;
        let no_name = Problem::NoAttribute {
            element: "limit".into(),
            attribute: "name",
        };
        let name = node.attribute("name").ok_or_else(|| here(node, no_name))?;
        let text = text(node)?;
        let (max, slot) = limit_slot(&mut self.draft.config.limits, name)
            .ok_or_else(|| here(node, Problem::UnknownLimit(name.into())))?;
        let number = c_number(&text).filter(|number| *number <= max);
        let bad = || {
            here(
                node,
                Problem::Limit {
                    name: name.into(),
                    text: text.clone(),
                    max,
                },
            )
        };
        let number: u64 = number.ok_or_else(bad)?;
        match slot {
            Slot::Plain(limit) => *limit = number,
            // As for dbus-daemon: no time is no end.
            Slot::Optional(limit) => *limit = Some(number).filter(|number| *number > 0),
        }
        Ok(())
    }

    fn policy(&mut self, node: Node<'_, '_>) -> Result<(), Failure> {
        let context = Context::parse(node).map_err(|error| here(node, error.into()))?;
        let mut rules = Vec::new();
        for rule in elements(node)? {
            let name = rule.tag_name().name();
            if !matches!(name, "allow" | "deny") {
                return Err(here(
                    rule,
                    Problem::Element {
                        element: name.into(),
                        parent: "policy".into(),
                    },
                ));
            }
            empty(rule)?;
            let place = self.place(rule);
            let rule = Rule::parse(rule, &context, place).map_err(|error| here(rule, error.into()))?;
            rules.push(rule);
        }
        self.draft.policy.push(PolicyBlock { context, rules });
        Ok(())
    }

    /// Whether no more is read: files that include each other twice in each round would be read for ever.
    fn is_too_much(&self) -> bool {
        self.files_read > MOST_FILES || self.bytes_read > MOST_BYTES
    }

    /// Whether the file that is being read may include this one.
    fn check_nesting(&self, path: &Path) -> Result<(), Problem> {
        if self.ancestors.iter().any(|ancestor| ancestor == path) {
            return Err(Problem::Circular(path.to_owned()));
        }
        if self.ancestors.len() >= MAX_INCLUDES {
            Err(Problem::TooDeep)
        } else {
            Ok(())
        }
    }

    /// Where something in the file that is being read stands.
    fn place(&self, node: Node<'_, '_>) -> Place {
        let file = self
            .ancestors
            .last()
            .map_or_else(String::new, |path| path.display().to_string());
        Place {
            file,
            line: node.document().text_pos_at(node.range().start).row,
        }
    }

    /// A path in a file: relative to the directory of the file.
    fn resolve(&self, path: &str) -> PathBuf {
        let base = self.ancestors.last().and_then(|file| file.parent());
        base.map_or_else(|| path.into(), |base| base.join(path))
    }

    fn service_dir(&mut self, path: String, strict_naming: bool) {
        let dirs = &mut self.draft.config.service_dirs;
        if !dirs.iter().any(|dir| dir.path == path) {
            dirs.push(ServiceDir { path, strict_naming });
        }
    }

    /// dbus-daemon(1), "standard_session_servicedirs". The first is made where it is missing.
    fn standard_session_dirs(&mut self) {
        let Environment {
            runtime_dir,
            data_home,
            data_dirs,
        } = self.environment;
        if let Some(base) = runtime_dir {
            let path = format!("{base}/dbus-1/services");
            if let Err(error) = self.files.create_private_dir(Path::new(&path)) {
                self.warnings.push(format!("{path}: {error}"));
            }
            self.service_dir(path, true);
        }
        let installed = String::from("/usr/share");
        for base in data_home.iter().chain(data_dirs).chain([&installed]) {
            self.service_dir(format!("{base}/dbus-1/services"), false);
        }
    }
}

/// What goes wrong in an element: in the file that is being read, or in one that it includes.
enum Failure {
    Here { offset: usize, problem: Problem },
    Elsewhere(ConfigError),
}

fn here(node: Node<'_, '_>, problem: Problem) -> Failure {
    Failure::Here {
        offset: node.range().start,
        problem,
    }
}

fn attributes(node: Node<'_, '_>, known: &[&str]) -> Result<(), Failure> {
    match node
        .attributes()
        .find(|attribute| !known.contains(&attribute.name()))
    {
        None => Ok(()),
        Some(attribute) => {
            let element = node.tag_name().name().into();
            Err(here(
                node,
                Problem::Attribute {
                    element,
                    attribute: attribute.name().into(),
                },
            ))
        }
    }
}

/// The format has no namespaces: what has one is an attribute more, or another.
fn without_namespaces(document: &Document<'_>) -> Result<(), Failure> {
    const BUILT_IN: &str = "http://www.w3.org/XML/1998/namespace";
    let has_one = |node: &Node<'_, '_>| {
        node.is_element()
            && (node.namespaces().any(|namespace| namespace.uri() != BUILT_IN)
                || node.attributes().any(|attribute| attribute.namespace().is_some()))
    };
    match document.descendants().find(has_one) {
        Some(node) => Err(here(node, Problem::Namespace(node.tag_name().name().into()))),
        None => Ok(()),
    }
}

/// The elements in an element that has no text.
fn elements<'a, 'input>(node: Node<'a, 'input>) -> Result<impl Iterator<Item = Node<'a, 'input>>, Failure> {
    let is_text = |child: &Node<'_, '_>| {
        child
            .text()
            .is_some_and(|text| child.is_text() && !text.trim().is_empty())
    };
    match node.children().find(is_text) {
        Some(text) => Err(here(text, Problem::Text(node.tag_name().name().into()))),
        None => Ok(node.children().filter(Node::is_element)),
    }
}

/// The text in an element that has no other elements, with the blanks around it: they are part of a file name.
fn text(node: Node<'_, '_>) -> Result<String, Failure> {
    let name = node.tag_name().name();
    if let Some(child) = node.children().find(Node::is_element) {
        let element = child.tag_name().name().into();
        return Err(here(
            child,
            Problem::Element {
                element,
                parent: name.into(),
            },
        ));
    }
    let text: String = node
        .children()
        .filter(Node::is_text)
        .filter_map(|child| child.text())
        .collect();
    if text.trim().is_empty() {
        return Err(here(node, Problem::NoText(name.into())));
    }
    Ok(text)
}

/// The text in an element that has neither attributes nor other elements.
fn plain_text(node: Node<'_, '_>) -> Result<String, Failure> {
    attributes(node, &[])?;
    text(node)
}

/// The same, of something that has no blanks around it.
fn exact_text(node: Node<'_, '_>) -> Result<String, Failure> {
    let text = plain_text(node)?;
    if text.trim() == text {
        return Ok(text);
    }
    Err(here(node, Problem::Padded(node.tag_name().name().into())))
}

/// An element that says all by being there: it has no attributes, no text and no other elements.
fn flag(node: Node<'_, '_>) -> Result<bool, Failure> {
    attributes(node, &[])?;
    empty(node)
}

/// An element with nothing in it.
fn empty(node: Node<'_, '_>) -> Result<bool, Failure> {
    match elements(node)?.next() {
        None => Ok(true),
        Some(child) => {
            let (element, parent) = (child.tag_name().name().into(), node.tag_name().name().into());
            Err(here(child, Problem::Element { element, parent }))
        }
    }
}

fn yes_or_no(node: Node<'_, '_>, attribute: &str) -> Result<bool, Failure> {
    match node.attribute(attribute) {
        None | Some("no") => Ok(false),
        Some("yes") => Ok(true),
        Some(value) => {
            let (attribute, value) = (attribute.into(), value.into());
            Err(here(
                node,
                Problem::Value {
                    attribute,
                    value,
                    expected: "\"yes\" or \"no\"",
                },
            ))
        }
    }
}

fn listen(node: Node<'_, '_>) -> Result<String, Failure> {
    let text = exact_text(node)?;
    check_listen(&text).map_err(|problem| here(node, problem))
}

/// A list of addresses, of which the first that works is to be listened on. At least one is of a transport that can be.
///
/// # Errors
/// [`Problem::Listen`] or [`Problem::Transport`].
pub fn check_listen(text: &str) -> Result<String, Problem> {
    let bad = |error| Problem::Listen {
        text: text.into(),
        error,
    };
    let list = AddressList::from_str(text).map_err(bad)?;
    let is_known =
        |address: &Address| ["unix", "tcp", "nonce-tcp", "systemd", "bus-tcp"].contains(&address.transport());
    for address in list.as_slice() {
        super::listen::check(address).map_err(|error| Problem::ListenKey {
            text: address.to_string(),
            error,
        })?;
    }
    match list.as_slice() {
        [first, ..] if !list.as_slice().iter().any(is_known) => Err(Problem::Transport {
            text: text.into(),
            transport: first.transport().into(),
        }),
        addresses => {
            let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            Ok(texts.join(";"))
        }
    }
}

/// The elements for SELinux are checked, and have no effect: this bus does not ask SELinux.
fn selinux(node: Node<'_, '_>) -> Result<(), Failure> {
    attributes(node, &[])?;
    for child in elements(node)? {
        let element = child.tag_name().name();
        if element != "associate" {
            return Err(here(
                child,
                Problem::Element {
                    element: element.into(),
                    parent: "selinux".into(),
                },
            ));
        }
        attributes(child, &["own", "context"])?;
        for attribute in ["own", "context"] {
            if !child.has_attribute(attribute) {
                return Err(here(
                    child,
                    Problem::NoAttribute {
                        element: element.into(),
                        attribute,
                    },
                ));
            }
        }
        empty(child)?;
    }
    Ok(())
}

/// "In 'enabled' mode, AppArmor mediation will be performed if AppArmor support is available"; it is not.
fn apparmor(node: Node<'_, '_>) -> Result<(), Failure> {
    attributes(node, &["mode"])?;
    empty(node)?;
    match node.attribute("mode") {
        None | Some("enabled" | "disabled") => Ok(()),
        Some("required") => Err(here(node, Problem::AppArmor)),
        Some(value) => {
            let expected = "\"enabled\", \"disabled\" or \"required\"";
            Err(here(
                node,
                Problem::Value {
                    attribute: "mode".into(),
                    value: value.into(),
                    expected,
                },
            ))
        }
    }
}

#[cfg(test)]
mod tests;
