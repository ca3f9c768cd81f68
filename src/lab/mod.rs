//! L7: the lab. Hosts made of network namespaces on one machine, each with a real agent process, for trying weft
//! out and for testing it.
//!
//! ```text
//!   weft-lab-n1              weft-lab-net             weft-lab-n2
//!  ┌────────────────┐       ┌─────────────────┐      ┌────────────────┐
//!  │ weft agent     │       │                 │      │ weft agent     │
//!  │ eth0 10.99.0.1 ══════════ nic-n1         │      │                │
//!  │                │       │      ul0 ─ nic-n2 ═══════ eth0 10.99.0.2│
//!  └──────┬─────────┘       └─────────────────┘      └───────┬────────┘
//!  weft-lab-my-web.1                                 weft-lab-my-web.2
//!   eth0 10.0.1.1                                     eth0 10.0.1.2
//! ```
//!
//! - [`Lab`]: made ([`Lab::up`]), found again ([`Lab::open`]), removed ([`Lab::down`]); several at once do not meet.
//! - [`impair`], [`lane`], [`relay`]: links that lose, delay, repeat, reorder and corrupt, from a seed.
//! - [`capture`], [`pcapng`]: what passes a link.
//! - [`audit`]: whether anything was left behind.
//! - [`cli`]: `weft lab …`; [`demo`]: the guided tour.
//!
//! Everything goes by the lab's name; nothing is made in the namespace the lab is started from. Knows the
//! agents by their API only.

pub mod audit;
pub mod capture;
pub mod cli;
pub mod control;
pub mod demo;
pub mod error;
pub mod harness;
pub mod impair;
pub mod kernel;
pub mod lane;
pub mod links;
pub mod offloads;
pub mod pcapng;
pub mod ping;
pub mod plan;
pub mod process;
pub mod relay;
pub mod space;
pub mod state;
pub mod steps;
pub mod summary;
pub mod text;
pub mod throughput;
pub mod web;

pub use error::LabError;
pub use harness::{Lab, Place, Removed};
pub use plan::{LabOptions, Plan};
