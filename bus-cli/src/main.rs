//! The bus tool.
fn main() {}
