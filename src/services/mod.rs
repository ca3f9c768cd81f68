//! L5: what makes networks usable: names, and which backend a connection goes to.
//!
//! [`dns`] serves names. [`balance`] and [`rules`] are pure: functions of services, records and addresses to texts of rules;
//! [`counts`] adds up what these count. Who applies them, and when, is the agent's matter.

pub mod balance;
pub mod counts;
pub mod dns;
pub mod rules;
