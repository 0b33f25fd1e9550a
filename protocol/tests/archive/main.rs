//! Archives from outside: what is written, what is read, what is refused.

mod fixture;
mod golden;
mod hostile;
mod inspect;
mod properties;
