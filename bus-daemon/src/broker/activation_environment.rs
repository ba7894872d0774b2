//! What `UpdateActivationEnvironment` has set, for services that are started.

use std::collections::BTreeMap;

use super::Broker;

/// Bytes that all variables together may be charged. A process cannot be started with much more than a few of these (the
/// system's own limit for arguments and environment is 2 MiB, and 128 KiB for one string), and each checkpoint and each
/// upgrade writes all of it.
pub(crate) const MOST: u64 = 256 * 1024;

/// What a variable is charged beside its name and its value.
const EACH: u64 = 128;

/// Environment variables, within [`MOST`].
#[derive(Debug, Default)]
pub(super) struct ActivationEnvironment {
    variables: BTreeMap<String, String>,
    /// What they are charged.
    charge: u64,
}

/// All variables together would be charged more than [`MOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl ActivationEnvironment {
    /// As it was saved: an environment beyond the limit, which an older version may have had, stays.
    pub(super) fn restore(variables: Vec<(String, String)>) -> Self {
        let variables: BTreeMap<String, String> = variables.into_iter().collect();
        let charge = variables.iter().map(|(name, value)| charge(name, value)).sum();
        Self { variables, charge }
    }

    /// To be continued by [`restore`](Self::restore).
    pub(super) fn save(&self) -> Vec<(String, String)> {
        let Self {
            variables,
            // Counted again.
            charge: _,
        } = self;
        variables.clone().into_iter().collect()
    }

    /// What all of it is charged, in bytes.
    pub(super) fn charge(&self) -> u64 {
        self.charge
    }

    /// Adds variables, or gives them other values: all of these, or none. What makes the environment no larger than it is
    /// is never refused.
    fn update(&mut self, variables: Vec<(String, String)>) -> Result<(), TooLarge> {
        let new: BTreeMap<String, String> = variables.into_iter().collect();
        let gain: u64 = new.iter().map(|(name, value)| charge(name, value)).sum();
        let replaced = new
            .keys()
            .filter_map(|name| Some(charge(name, self.variables.get(name)?)));
        let after = self.charge + gain - replaced.sum::<u64>();
        if after > MOST && after > self.charge {
            return Err(TooLarge);
        }
        self.charge = after;
        self.variables.extend(new);
        Ok(())
    }
}

fn charge(name: &str, value: &str) -> u64 {
    (name.len() + value.len()) as u64 + EACH
}

impl Broker {
    /// `UpdateActivationEnvironment`
    pub(crate) fn update_activation_environment(
        &mut self,
        variables: Vec<(String, String)>,
    ) -> Result<(), TooLarge> {
        self.activation_environment.update(variables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(names: std::ops::Range<u32>, bytes: usize) -> Vec<(String, String)> {
        names.map(|n| (format!("V{n}"), "x".repeat(bytes))).collect()
    }

    #[test]
    fn an_environment_grows_to_its_limit_and_not_beyond() {
        let mut environment = ActivationEnvironment::default();
        let (mut taken, mut n) = (0, 0);
        while environment.update(variables(n..n + 1, 1000)).is_ok() {
            n += 1;
            taken = environment.charge();
        }
        assert!(taken <= MOST && taken + 1000 + EACH + 8 > MOST, "{taken}");
        assert_eq!(environment.charge(), taken, "what was refused is charged");
        // All or none.
        assert_eq!(environment.update(variables(n - 1..n + 1, 1000)), Err(TooLarge));
        assert_eq!(environment.save().len() as u32, n);
        // Other values for what is there, and smaller ones.
        environment.update(variables(0..n, 1000)).unwrap();
        environment.update(variables(0..n, 10)).unwrap();
        let restored = ActivationEnvironment::restore(environment.save());
        assert_eq!(restored.charge(), environment.charge());
        assert_eq!(environment.charge(), {
            let saved = environment.save();
            saved.iter().map(|(name, value)| charge(name, value)).sum::<u64>()
        });
    }

    #[test]
    fn an_environment_that_is_too_large_already_may_shrink() {
        let mut environment = ActivationEnvironment::restore(variables(0..10, MOST as usize));
        environment.update(variables(0..5, 0)).unwrap();
        assert!(environment.charge() > MOST);
        assert_eq!(environment.update(variables(10..11, 0)), Err(TooLarge));
    }

    #[test]
    fn many_empty_variables_are_charged() {
        let mut environment = ActivationEnvironment::default();
        let n = (MOST / EACH) as u32;
        assert_eq!(environment.update(variables(0..n, 0)), Err(TooLarge));
    }
}
