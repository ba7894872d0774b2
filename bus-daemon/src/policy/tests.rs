mod points;
mod random;
mod reference;
