//! What this node sees of services and their backends, told as events where it has changed.
//!
//! Two views are compared, so that what stays as it is is told once, however often it is looked at.

use std::collections::BTreeMap;

use crate::agent::events::Event;
use crate::agent::handle::Agent;
use crate::agent::state::NodeState;
use crate::model::service::Service;
use crate::tables::record::Standing;

/// What was seen last; nothing before the first look, which is told to nobody: it is what was there already.
#[derive(Debug, Default)]
pub struct Seen {
    last: Option<View>,
}

/// Services and their backends at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
struct View {
    /// Name and time of the last change, by id.
    services: BTreeMap<String, (String, u64)>,
    /// By service and endpoint.
    backends: BTreeMap<(String, String), Backend>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Backend {
    service: String,
    name: String,
    network: String,
    node: String,
    standing: Standing,
}

impl View {
    fn of(node: &NodeState, own_name: &str) -> View {
        let mut view = View::default();
        let mut by_network: BTreeMap<&str, Vec<&Service>> = BTreeMap::new();
        for service in node.services.values() {
            let told = (service.name.clone(), service.updated);
            view.services.insert(service.id.clone(), told);
            for part in &service.networks {
                by_network.entry(&part.network).or_default().push(service);
            }
        }
        let local = node.endpoints.values().map(|e| {
            let names = (e.service.as_str(), &e.aliases[..]);
            let backend = (&e.id, &e.name, own_name, e.backing.standing);
            (e.network.as_str(), names, backend)
        });
        let remote = node.remote.records().map(|r| {
            let names = (r.service.as_str(), &r.aliases[..]);
            let backend = (&r.endpoint, &r.name, r.node.as_str(), r.backing.standing);
            (r.network.as_str(), names, backend)
        });
        for (network, (service, aliases), (id, name, node, standing)) in local.chain(remote) {
            let services = by_network.get(network).into_iter().flatten();
            for service in services.filter(|known| known.is_backed_by(service, aliases)) {
                let backend = Backend {
                    service: service.name.clone(),
                    name: name.clone(),
                    network: network.to_owned(),
                    node: node.to_owned(),
                    standing,
                };
                let key = (service.id.clone(), id.clone());
                view.backends.insert(key, backend);
            }
        }
        view
    }
}

impl Seen {
    /// What has changed since the last look.
    fn look(&mut self, now: View) -> Vec<Event> {
        let Some(before) = &self.last else {
            self.last = Some(now);
            return Vec::new();
        };
        if *before == now {
            return Vec::new();
        }
        let mut events = services(before, &now);
        let mut backends = backends(before, &now);
        // The ring of events is not for one round alone.
        if backends.len() > BACKENDS_MAX {
            let count = backends.len() - BACKENDS_MAX;
            backends.truncate(BACKENDS_MAX);
            backends.push(Event::BackendsChanged { count });
        }
        events.extend(backends);
        self.last = Some(now);
        events
    }
}

fn services(before: &View, now: &View) -> Vec<Event> {
    let mut events = Vec::new();
    for (id, (name, updated)) in &now.services {
        let (service, name) = (id.clone(), name.clone());
        match before.services.get(id) {
            None => events.push(Event::ServiceCreated { service, name }),
            Some((_, known)) if known != updated => {
                events.push(Event::ServiceUpdated { service, name });
            }
            Some(_) => {}
        }
    }
    for (id, (name, _)) in &before.services {
        if !now.services.contains_key(id) {
            let (service, name) = (id.clone(), name.clone());
            events.push(Event::ServiceRemoved { service, name });
        }
    }
    events
}

fn backends(before: &View, now: &View) -> Vec<Event> {
    let mut events = Vec::new();
    for (key, backend) in &now.backends {
        let known = before.backends.get(key);
        if known.is_some_and(|known| known.standing == backend.standing) {
            continue;
        }
        let Backend {
            service,
            name,
            network,
            node,
            standing,
        } = backend.clone();
        let endpoint = key.1.clone();
        events.push(match standing {
            Standing::Ready => Event::BackendReady {
                service,
                network,
                endpoint,
                name,
                node,
            },
            Standing::Draining => Event::BackendDraining {
                service,
                network,
                endpoint,
                name,
                node,
            },
            Standing::Unhealthy => Event::BackendUnhealthy {
                service,
                network,
                endpoint,
                name,
                node,
            },
        });
    }
    for (key, backend) in &before.backends {
        // With a service its backends are no backends any more: that need not be said of each.
        if now.backends.contains_key(key) || !now.services.contains_key(&key.0) {
            continue;
        }
        let backend = backend.clone();
        events.push(Event::BackendGone {
            service: backend.service,
            network: backend.network,
            endpoint: key.1.clone(),
            name: backend.name,
            node: backend.node,
        });
    }
    events
}

/// Tells what has changed.
pub(super) async fn settle(agent: &Agent) {
    let now = View::of(&agent.live().node, &agent.settings().node);
    let mut seen = agent.inner.edge.seen.lock().await;
    for event in seen.look(now) {
        agent.emit(event);
    }
}

/// Backends told of one by one in one round; of more only the number is told. A quarter of what the ring of events keeps.
const BACKENDS_MAX: usize = crate::agent::events::RING_LEN / 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn view(services: &[(&str, u64)], backends: &[(&str, &str, Standing)]) -> View {
        let services = services.iter().map(|(name, updated)| {
            let told = ((*name).to_owned(), *updated);
            (format!("id of {name}"), told)
        });
        let backends = backends.iter().map(|(service, name, standing)| {
            let key = (format!("id of {service}"), format!("id of {name}"));
            let backend = Backend {
                service: (*service).into(),
                name: (*name).into(),
                network: "n".into(),
                node: "n2".into(),
                standing: *standing,
            };
            (key, backend)
        });
        View {
            services: services.collect(),
            backends: backends.collect(),
        }
    }

    /// Events as `kind name`.
    fn told(events: &[Event]) -> Vec<String> {
        let texts = events.iter().map(|event| {
            let json = serde_json::to_value(event).unwrap();
            let word = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}", word("event"), word("name"))
        });
        texts.collect()
    }

    #[test]
    fn changes_are_told_once_and_what_was_there_at_first_is_not() {
        let mut seen = Seen::default();
        let (ready, unhealthy) = (Standing::Ready, Standing::Unhealthy);
        let mut look = |services: &[(&str, u64)], backends: &[(&str, &str, Standing)]| {
            told(&seen.look(view(services, backends)))
        };
        let none: [&str; 0] = [];
        assert_eq!(look(&[("old", 1)], &[("old", "a", ready)]), none);
        let both = [("old", 1), ("web", 2)];
        let (a, b) = (("old", "a", ready), ("web", "b", unhealthy));
        assert_eq!(
            look(&both, &[a, b]),
            ["service_created web", "backend_unhealthy b"]
        );
        assert_eq!(look(&both, &[a, b]), none, "nothing has changed");
        let b = ("web", "b", ready);
        assert_eq!(look(&both, &[a, b]), ["backend_ready b"]);
        let b = ("web", "b", Standing::Draining);
        assert_eq!(look(&both, &[b]), ["backend_draining b", "backend_gone a"]);
        let changed = [("old", 1), ("web", 3)];
        assert_eq!(look(&changed, &[b]), ["service_updated web"]);
        assert_eq!(look(&[("old", 1)], &[]), ["service_removed web"]);
    }

    #[test]
    fn many_changes_at_once_are_told_in_a_bounded_number_of_events() {
        let mut seen = Seen::default();
        seen.look(view(&[("web", 1)], &[]));
        let names: Vec<String> = (0..1000).map(|n| format!("b{n}")).collect();
        let backends: Vec<(&str, &str, Standing)> = names
            .iter()
            .map(|name| ("web", name.as_str(), Standing::Ready))
            .collect();
        let events = seen.look(view(&[("web", 1)], &backends));
        assert_eq!(events.len(), BACKENDS_MAX + 1);
        let rest = Event::BackendsChanged {
            count: 1000 - BACKENDS_MAX,
        };
        assert_eq!(events.last(), Some(&rest));
        assert!(seen.look(view(&[("web", 1)], &backends)).is_empty());
    }
}
