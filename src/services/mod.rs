//! L5: what makes networks usable. Which backend a connection goes to, and the rules that bring it there and back.
//!
//! Pure: functions of services, records and addresses to texts of rules. Who applies them, and when, is the agent's matter.

pub mod balance;
pub mod rules;
