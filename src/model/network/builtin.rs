//! The networks every node has, and catalogs of when `ingress` was but one of these names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Catalog, INGRESS_NAME, Network, fnv1a};
use crate::model::ident;

/// A network every node has, as Docker does, of which weft keeps the name only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Builtin {
    /// Name.
    pub name: String,
    /// Id, stable over restarts.
    pub id: String,
    /// Nanoseconds since 1970.
    pub created: u64,
}

impl Builtin {
    /// Driver and scope as Docker shows them.
    pub fn driver_and_scope(&self) -> (&'static str, &'static str) {
        match self.name.as_str() {
            "host" => ("host", "local"),
            "none" => ("null", "local"),
            _ => ("bridge", "local"),
        }
    }
}

/// A catalog as it was written, perhaps when `ingress` was but a name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    builtins: Vec<Builtin>,
    networks: BTreeMap<String, Network>,
    last_vni: u32,
}

impl From<Stored> for Catalog {
    fn from(stored: Stored) -> Catalog {
        let Stored {
            mut builtins,
            mut networks,
            last_vni,
        } = stored;
        let known = networks.values().any(|network| network.ingress);
        let named = builtins.iter().position(|b| b.name == INGRESS_NAME);
        let named = named.map(|index| builtins.remove(index));
        if !known {
            let ids: String = builtins.iter().map(|b| b.id.as_str()).collect();
            let (id, created) = match named {
                Some(builtin) => (builtin.id, builtin.created),
                // Of an edited file: an id that every reader of the same file comes to.
                None => (ident::id_from_bits(fnv1a(ids.as_bytes()).into()), 0),
            };
            networks.insert(id.clone(), Network::new_ingress(id, created));
        }
        Catalog {
            builtins,
            networks,
            last_vni,
        }
    }
}
