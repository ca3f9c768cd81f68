//! Policy routing: rules by mark and interface, and the default routes of the tables they lead to.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::{HostError, Netlink};

/// What a packet has to be for a rule, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyRule {
    /// Packets with this mark are routed by the table of the same number.
    MarkToTable(u32),
    /// Packets that came in by this interface and lack this bit of the mark go nowhere.
    Prohibit {
        /// The interface.
        iif: String,
        /// The bit.
        unless: u32,
    },
}

impl PolicyRule {
    fn message(&self, v6: bool) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(v6);
        message.attributes = match self {
            PolicyRule::MarkToTable(number) => {
                message.header.action = RuleAction::ToTable;
                vec![
                    RuleAttribute::FwMark(*number),
                    RuleAttribute::FwMask(u32::MAX),
                    RuleAttribute::Table(*number),
                ]
            }
            PolicyRule::Prohibit { iif, unless } => {
                message.header.action = RuleAction::Prohibit;
                vec![
                    RuleAttribute::Iifname(iif.clone()),
                    RuleAttribute::FwMark(0),
                    RuleAttribute::FwMask(*unless),
                ]
            }
        };
        message.attributes.push(RuleAttribute::Priority(PRIORITY));
        message
            .attributes
            .push(RuleAttribute::Protocol(RouteProtocol::Static));
        message
    }
}

impl Netlink {
    /// Puts a rule for one address family; fine if it is there.
    pub(super) async fn put_rule(&self, rule: &PolicyRule, v6: bool) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::NewRule(rule.message(v6));
        let operation = format!("put policy rule {rule:?}");
        match self
            .change(operation, request, NLM_F_CREATE | NLM_F_EXCL)
            .await
        {
            Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Takes a rule away; fine if it is not there.
    pub(super) async fn delete_rule(&self, rule: &PolicyRule, v6: bool) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::DelRule(rule.message(v6));
        let operation = format!("delete policy rule {rule:?}");
        match self.change(operation, request, 0).await {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// The marks of the rules [`PolicyRule::MarkToTable`] of one address family, ours and others'.
    pub(super) async fn marked_tables(&self, v6: bool) -> Result<Vec<u32>, HostError> {
        let mut message = RuleMessage::default();
        message.header.family = family(v6);
        let request = RouteNetlinkMessage::GetRule(message);
        let replies = self.list("list policy rules".into(), request).await?;
        Ok(replies.into_iter().filter_map(as_marked_table).collect())
    }

    /// Makes `gateway` on link `index` the default route of a table.
    pub(super) async fn put_table_default(
        &self,
        index: u32,
        table: u32,
        gateway: IpAddr,
    ) -> Result<(), HostError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway.is_ipv6());
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Gateway(match gateway {
                IpAddr::V4(ip) => RouteAddress::Inet(ip),
                IpAddr::V6(ip) => RouteAddress::Inet6(ip),
            }),
            RouteAttribute::Oif(index),
            RouteAttribute::Table(table),
        ];
        let operation = format!("put default route of table {table} via {gateway} on link {index}");
        let request = RouteNetlinkMessage::NewRoute(message);
        self.change(operation, request, NLM_F_CREATE | NLM_F_REPLACE)
            .await
    }

    /// Whether the main table has a default route of the address family that does not lead through link `but`.
    pub(super) async fn has_default_route(
        &self,
        v6: bool,
        but: Option<u32>,
    ) -> Result<bool, HostError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v6);
        let request = RouteNetlinkMessage::GetRoute(message);
        let replies = self.list("list routes".into(), request).await?;
        Ok(replies.iter().any(|reply| {
            let RouteNetlinkMessage::NewRoute(route) = reply else {
                return false;
            };
            let out = route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
            route.header.destination_prefix_length == 0
                && route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.kind == RouteType::Unicast
                && (out.is_none() || out != but)
        }))
    }
}

impl Netlink {
    /// Where the routes of the main table lead but default ones, and those through link `but`.
    pub(super) async fn route_prefixes(
        &self,
        v6: bool,
        but: Option<u32>,
    ) -> Result<Vec<IpNetwork>, HostError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v6);
        let request = RouteNetlinkMessage::GetRoute(message);
        let replies = self.list("list routes".into(), request).await?;
        let prefix = |reply: RouteNetlinkMessage| {
            let RouteNetlinkMessage::NewRoute(route) = reply else {
                return None;
            };
            let len = route.header.destination_prefix_length;
            if route.header.table != RouteHeader::RT_TABLE_MAIN || len == 0 {
                return None;
            }
            let through_but = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Oif(index) if Some(*index) == but);
            if route.attributes.iter().any(through_but) {
                return None;
            }
            let destination = route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                    RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                    _ => None,
                })?;
            IpNetwork::new(destination, len).ok()
        };
        Ok(replies.into_iter().filter_map(prefix).collect())
    }
}

fn as_marked_table(message: RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewRule(rule) = message else {
        return None;
    };
    let of = |wanted: fn(&RuleAttribute) -> Option<u32>| rule.attributes.iter().find_map(wanted);
    let mark = of(|attribute| match attribute {
        RuleAttribute::FwMark(mark) => Some(*mark),
        _ => None,
    })?;
    let table = of(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    })?;
    (mark == table).then_some(mark)
}

fn family(v6: bool) -> AddressFamily {
    match v6 {
        true => AddressFamily::Inet6,
        false => AddressFamily::Inet,
    }
}

/// Before the main table (32766), behind the one of local addresses (0).
const PRIORITY: u32 = 4789;
