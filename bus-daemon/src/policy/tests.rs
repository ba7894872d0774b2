mod asker;
mod points;
mod random;
mod reference;
