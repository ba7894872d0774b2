//! The table and the JSON.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Map, Value, json};

/// All rounds of one case.
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) operations: usize,
    /// CPU microseconds per operation, per round and candidate.
    pub(crate) rounds: Vec<Vec<f64>>,
}

/// What has been measured so far. The last candidate, as a rule the relay, is what the others are set in relation to.
pub(crate) struct Report {
    candidates: Vec<String>,
    cases: Vec<Measured>,
}

impl Report {
    pub(crate) fn new(candidates: Vec<String>) -> Report {
        Report {
            candidates,
            cases: Vec::new(),
        }
    }

    /// The head of the table.
    pub(crate) fn heading(&self) -> String {
        let last = self.candidates.last().map_or("", String::as_str);
        let mut line = format!("CPU microseconds per operation (x {last})\n{:30}", "");
        for candidate in &self.candidates {
            let _ = write!(line, " {candidate:>17}");
        }
        line
    }

    /// Takes a case in and gives its line of the table.
    pub(crate) fn add(&mut self, measured: Measured) -> String {
        let mut line = format!("{:30}", measured.name);
        let last = self.candidates.len() - 1;
        for candidate in 0..self.candidates.len() {
            let ratio = format!("({:.2})", measured.ratio(candidate, last));
            let _ = write!(line, " {:>9.2} {ratio:>7}", measured.cost(candidate));
        }
        self.cases.push(measured);
        line
    }

    /// Everything, with every round.
    pub(crate) fn json(&self) -> Result<String> {
        let cases: Vec<Value> = self.cases.iter().map(|case| self.case_json(case)).collect();
        let all = json!({ "unit": "CPU microseconds of the bus per operation", "cases": cases });
        Ok(serde_json::to_string_pretty(&all)? + "\n")
    }

    fn case_json(&self, case: &Measured) -> Value {
        let mut candidates = Map::new();
        for (number, name) in self.candidates.iter().enumerate() {
            let rounds: Vec<f64> = case.rounds.iter().map(|round| round[number]).collect();
            let ratios: Map<String, Value> = self
                .candidates
                .iter()
                .enumerate()
                .filter(|&(other, _)| other != number)
                .map(|(other, name)| (name.clone(), json!(case.ratio(number, other))))
                .collect();
            let entry = json!({ "median": case.cost(number), "rounds": rounds, "ratio_to": ratios });
            candidates.insert(name.clone(), entry);
        }
        json!({ "case": case.name, "operation": case.unit, "operations": case.operations, "buses": candidates })
    }
}

impl Measured {
    /// The median cost of a candidate.
    fn cost(&self, candidate: usize) -> f64 {
        median(self.rounds.iter().map(|round| round[candidate]).collect())
    }

    /// The median of the ratios within each round.
    fn ratio(&self, candidate: usize, other: usize) -> f64 {
        median(
            self.rounds
                .iter()
                .map(|round| round[candidate] / round[other])
                .collect(),
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}
