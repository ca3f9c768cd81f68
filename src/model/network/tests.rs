//! Rules of creation, one by one, and properties of the allocation.

use proptest::prelude::*;

use super::*;

fn fresh_catalog(now: u64) -> Catalog {
    Catalog::new(now, u128::MAX / 3)
}

fn pools() -> Pools {
    Pools {
        pool: "10.0.0.0/8".parse().unwrap(),
        prefix_len: 24,
        avoid: vec![],
    }
}

/// Ids that differ in their first characters, as random ones do.
fn fresh(n: u128) -> Fresh {
    Fresh {
        id: ident::id_from_bits(n << 96),
        now: 1,
        vtep: "192.0.2.1".parse().unwrap(),
    }
}

fn wish(name: &str, subnets: &[&str]) -> CreateNetwork {
    let config = subnets.iter().map(|s| IpamConfigRequest {
        subnet: (*s).into(),
        ..Default::default()
    });
    let mut wish = CreateNetwork {
        name: name.into(),
        ..Default::default()
    };
    wish.ipam.config = config.collect();
    wish
}

fn create(catalog: &mut Catalog, wish: &CreateNetwork) -> Result<Network, ApiError> {
    let n = catalog.networks.len() as u128 + 1000;
    let plan = catalog.plan(wish, &pools(), &fresh(n))?;
    catalog.insert(plan.clone());
    Ok(plan.network)
}

fn code(catalog: &Catalog, wish: &CreateNetwork) -> ErrorCode {
    let error = catalog.plan(wish, &pools(), &fresh(1)).unwrap_err();
    assert!(!error.message.is_empty() && !error.next.is_empty());
    error.code
}

#[test]
fn first_network_gets_vni_4097_and_first_address_as_gateway() {
    let mut catalog = fresh_catalog(0);
    let net = create(&mut catalog, &wish("a", &["10.0.1.0/24"])).unwrap();
    assert_eq!(net.segments[0].vni, Vni::FIRST_USER);
    assert_eq!(net.segments[0].v4.gateway.to_string(), "10.0.1.1");
    assert_eq!(net.options()[OPTION_VXLANID_LIST], "4097");
    assert!(ident::is_id(&net.id));
}

#[test]
fn default_pool_skips_the_ingress_subnet_and_those_in_use() {
    let mut catalog = fresh_catalog(0);
    let prefix = |net: Network| net.segments[0].v4.prefix.to_string();
    assert_eq!(
        prefix(create(&mut catalog, &wish("a", &[])).unwrap()),
        "10.0.1.0/24"
    );
    create(&mut catalog, &wish("b", &["10.0.2.128/25"])).unwrap();
    assert_eq!(
        prefix(create(&mut catalog, &wish("c", &[])).unwrap()),
        "10.0.3.0/24"
    );
    let avoid = Pools {
        avoid: vec!["10.0.4.9".parse().unwrap()],
        ..pools()
    };
    let plan = catalog.plan(&wish("d", &[]), &avoid, &fresh(1)).unwrap();
    assert_eq!(
        plan.network.segments[0].v4.prefix.to_string(),
        "10.0.5.0/24"
    );
}

#[test]
fn one_vni_per_ipv4_subnet_and_fixed_ones_first() {
    let mut catalog = fresh_catalog(0);
    let mut two = wish("two", &["10.0.1.0/24", "10.0.2.0/24"]);
    two.options
        .insert(OPTION_VXLANID_LIST.into(), "9000".into());
    let net = create(&mut catalog, &two).unwrap();
    assert_eq!(net.options()[OPTION_VXLANID_LIST], "9000,4097");
    let next = create(&mut catalog, &wish("next", &[])).unwrap();
    assert_eq!(
        next.options()[OPTION_VXLANID_LIST],
        "4098",
        "a fixed VNI does not move the mark"
    );
}

#[test]
fn a_freed_vni_rests_until_the_numbers_have_gone_round() {
    let mut catalog = fresh_catalog(0);
    let first = create(&mut catalog, &wish("a", &[])).unwrap();
    catalog.networks.remove(&first.id);
    let second = create(&mut catalog, &wish("a", &[])).unwrap();
    assert_eq!(second.segments[0].vni.value(), 4098);
    catalog.last_vni = Vni::MAX.value();
    let third = create(&mut catalog, &wish("b", &[])).unwrap();
    assert_eq!(third.segments[0].vni.value(), 4097);
}

#[test]
fn gateway_range_and_reserved_addresses_must_be_inside() {
    let catalog = fresh_catalog(0);
    let with = |subnet: &str, gateway: &str, range: &str, aux: &str| {
        let mut wish = wish("a", &[subnet]);
        wish.ipam.config[0].gateway = gateway.into();
        wish.ipam.config[0].ip_range = range.into();
        if !aux.is_empty() {
            wish.ipam.config[0]
                .auxiliary_addresses
                .insert("h".into(), aux.into());
        }
        wish
    };
    assert!(
        catalog
            .plan(
                &with("10.0.1.0/24", "10.0.1.254", "10.0.1.64/26", "10.0.1.9"),
                &pools(),
                &fresh(1)
            )
            .is_ok()
    );
    for gateway in ["10.0.2.1", "10.0.1.0", "10.0.1.255", "gateway", "fd00::1"] {
        assert_eq!(
            code(&catalog, &with("10.0.1.0/24", gateway, "", "")),
            ErrorCode::InvalidGateway,
            "{gateway}"
        );
    }
    for range in ["10.0.0.0/16", "10.0.2.0/25", "10.0.1.1/25", "10.0.1.4", "x"] {
        assert_eq!(
            code(&catalog, &with("10.0.1.0/24", "", range, "")),
            ErrorCode::InvalidSubnet,
            "{range}"
        );
    }
    assert_eq!(
        code(&catalog, &with("10.0.1.0/24", "", "", "10.0.2.1")),
        ErrorCode::InvalidSubnet
    );
    assert_eq!(
        code(&catalog, &with("", "10.0.1.1", "", "")),
        ErrorCode::InvalidSubnet
    );
}

#[test]
fn impossible_subnets_are_refused() {
    let catalog = fresh_catalog(0);
    let bad = [
        "10.0.1.5/24",
        "10.0.1.0",
        "10.0.1.0/31",
        "10.0.1.0/33",
        "127.0.0.0/8",
        "224.0.0.0/24",
        "240.0.0.0/8",
        "0.0.0.0/0",
        "169.254.1.0/24",
        "text",
        "10.0.1.0/24/2",
        "fd00::/64",
        "64.0.0.0/2",
    ];
    for subnet in bad {
        assert_eq!(
            code(&catalog, &wish("a", &[subnet])),
            ErrorCode::InvalidSubnet,
            "{subnet}"
        );
    }
    let error = catalog
        .plan(&wish("a", &["10.0.1.5/24"]), &pools(), &fresh(1))
        .unwrap_err();
    assert_eq!(error.next, "did you mean 10.0.1.0/24?");
}

#[test]
fn overlaps_are_refused_within_and_between_networks_and_with_ingress() {
    let mut catalog = fresh_catalog(0);
    create(&mut catalog, &wish("a", &["10.0.1.0/24"])).unwrap();
    for subnets in [
        &["10.0.1.0/24"][..],
        &["10.0.0.0/16"],
        &["10.0.1.128/25"],
        &["10.0.0.0/24"],
        &["10.1.0.0/16", "10.1.9.0/24"],
    ] {
        assert_eq!(
            code(&catalog, &wish("b", subnets)),
            ErrorCode::SubnetOverlap,
            "{subnets:?}"
        );
    }
}

#[test]
fn names_ids_and_vnis_belong_to_one_network() {
    let mut catalog = fresh_catalog(0);
    let first = create(&mut catalog, &wish("a", &["10.0.1.0/24"])).unwrap();
    assert_eq!(code(&catalog, &wish("a", &[])), ErrorCode::NameTaken);
    assert_eq!(code(&catalog, &wish("ingress", &[])), ErrorCode::NameTaken);
    let mut same_id = wish("b", &[]);
    same_id.id = Some(first.id.clone());
    assert_eq!(code(&catalog, &same_id), ErrorCode::IdTaken);
    let mut same_kernel_name = wish("b", &[]);
    same_kernel_name.id = Some(format!("{}{}", ident::short(&first.id), "z".repeat(13)));
    assert_eq!(code(&catalog, &same_kernel_name), ErrorCode::IdTaken);
    for (vni, expect) in [
        ("4097", ErrorCode::VniTaken),
        ("4096", ErrorCode::VniTaken),
        ("0", ErrorCode::InvalidVni),
        ("16777216", ErrorCode::InvalidVni),
        ("x", ErrorCode::InvalidVni),
        ("5000,5000", ErrorCode::InvalidVni),
        ("5000,5001", ErrorCode::InvalidVni),
        ("", ErrorCode::InvalidVni),
    ] {
        let mut fixed = wish("b", &["10.0.9.0/24"]);
        fixed.options.insert(OPTION_VXLANID_LIST.into(), vni.into());
        assert_eq!(code(&catalog, &fixed), expect, "{vni}");
    }
    for name in ["", "prune", "-a", "a b", "a/b", "é", &"a".repeat(64)] {
        assert_eq!(
            code(&catalog, &wish(name, &[])),
            ErrorCode::InvalidName,
            "{name}"
        );
    }
    let mut bad_id = wish("b", &[]);
    bad_id.id = Some("ABC".into());
    assert_eq!(code(&catalog, &bad_id), ErrorCode::InvalidId);
}

#[test]
fn the_same_wish_with_an_id_is_done_already() {
    let mut catalog = fresh_catalog(0);
    let mut fixed = wish("a", &[]);
    fixed.id = Some(ident::id_from_bits(7));
    let first = create(&mut catalog, &fixed).unwrap();
    create(&mut catalog, &wish("between", &[])).unwrap();
    let again = catalog.plan(&fixed, &pools(), &fresh(2)).unwrap();
    assert!(again.exists);
    assert_eq!(again.network, first);
    fixed.internal = true;
    assert_eq!(code(&catalog, &fixed), ErrorCode::NameTaken);
}

#[test]
fn a_wish_that_leaves_some_vnis_open_is_the_same_wish_when_repeated() {
    let mut catalog = fresh_catalog(0);
    let mut wish = wish("a", &["10.1.0.0/24", "10.2.0.0/24"]);
    wish.id = Some(ident::id_from_bits(7));
    wish.options
        .insert(OPTION_VXLANID_LIST.into(), "5000".into());
    let first = create(&mut catalog, &wish).unwrap();
    let again = catalog.plan(&wish, &pools(), &fresh(2)).unwrap();
    assert!(again.exists);
    assert_eq!(again.network, first);
    wish.options
        .insert(OPTION_VXLANID_LIST.into(), "5001".into());
    assert_eq!(code(&catalog, &wish), ErrorCode::NameTaken);
}

#[test]
fn rules_for_frames_reach_the_dataplane_and_survive_the_state_file() {
    let mut catalog = fresh_catalog(0);
    let made = |catalog: &mut Catalog, name: &str, options: &[(&str, &str)]| {
        let mut wish = wish(name, &[]);
        let options = options
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        wish.options.extend(options);
        create(catalog, &wish).unwrap()
    };
    let usual = made(&mut catalog, "usual", &[]);
    assert_eq!(usual.policy(), SegmentPolicy::default());
    let options = [
        (OPTION_BUM_RATE, "0"),
        (OPTION_CARRY_VLAN, "false"),
        (OPTION_INHERIT_DSCP, "true"),
        (OPTION_STRICT_RESERVED_BITS, "false"),
    ];
    let other = made(&mut catalog, "other", &options);
    let expected = SegmentPolicy {
        strict_reserved_bits: false,
        carry_vlan: false,
        inherit_dscp: true,
        bum_rate: 0,
        ..SegmentPolicy::default()
    };
    assert_eq!(other.policy(), expected);
    let shown = other.options();
    assert!(
        options.iter().all(|(key, value)| shown[*key] == *value),
        "{shown:?}"
    );
    let text = serde_json::to_string(&other).unwrap();
    assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), other);
    let before: Network = {
        let text = serde_json::to_string(&usual).unwrap();
        assert!(
            !text.contains("rules"),
            "what nobody said takes no room: {text}"
        );
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(before, usual);

    let mixed = made(
        &mut catalog,
        "mixed",
        &[(OPTION_INTEROP, "true"), (OPTION_BUM_RATE, "50")],
    );
    let expected = SegmentPolicy {
        bum_rate: 50,
        ..SegmentPolicy::interop()
    };
    assert_eq!(mixed.policy(), expected);
}

#[test]
fn rules_for_frames_are_checked() {
    let catalog = fresh_catalog(0);
    let refusal = |name: &str, value: &str| {
        let mut wish = wish("a", &[]);
        wish.options.insert(name.into(), value.into());
        catalog.plan(&wish, &pools(), &fresh(1)).unwrap_err()
    };
    for (name, value) in [
        (OPTION_STRICT_RESERVED_BITS, "no"),
        (OPTION_CARRY_VLAN, "off"),
        (OPTION_INHERIT_DSCP, "2"),
        (OPTION_BUM_RATE, ""),
        (OPTION_BUM_RATE, "-1"),
        (OPTION_BUM_RATE, "4294967296"),
        (OPTION_BUM_RATE, "many"),
    ] {
        let error = refusal(name, value);
        assert_eq!(error.code, ErrorCode::InvalidOption, "{name}={value}");
        assert!(
            error.message.contains(name) && !error.next.is_empty(),
            "{error}"
        );
    }
    for (typed, meant) in [
        ("weft.strict-reserved-bit", OPTION_STRICT_RESERVED_BITS),
        ("weft.carry_vlan", OPTION_CARRY_VLAN),
        ("inherit-dscp", OPTION_INHERIT_DSCP),
        ("weft.bumrate", OPTION_BUM_RATE),
    ] {
        let error = refusal(typed, "true");
        assert_eq!(error.code, ErrorCode::InvalidOption);
        let hint = format!("did you mean \"{meant}\"?");
        assert!(error.message.ends_with(&hint), "{error}");
        assert!(
            error.next.contains(meant) && !error.next.contains("encrypted"),
            "{error}"
        );
    }
}

#[test]
fn options_are_known_or_refused_with_a_suggestion() {
    let catalog = fresh_catalog(0);
    let with = |name: &str, value: &str| {
        let mut wish = wish("a", &[]);
        wish.options.insert(name.into(), value.into());
        wish
    };
    let plan = catalog
        .plan(&with(OPTION_MTU, "1400"), &pools(), &fresh(1))
        .unwrap();
    assert_eq!(plan.network.options()[OPTION_MTU], "1400");
    for value in ["0", "625", "65536", "auto"] {
        assert_eq!(
            code(&catalog, &with(OPTION_MTU, value)),
            ErrorCode::InvalidMtu,
            "{value}"
        );
    }
    let plan = catalog
        .plan(&with(OPTION_INTEROP, "true"), &pools(), &fresh(1))
        .unwrap();
    assert!(plan.network.interop && plan.network.options()[OPTION_INTEROP] == "true");
    assert_eq!(
        code(&catalog, &with(OPTION_INTEROP, "yes")),
        ErrorCode::InvalidOption
    );
    assert_eq!(
        code(&catalog, &with("encrypted", "")),
        ErrorCode::Unsupported
    );
    assert_eq!(
        code(&catalog, &with("encrypted", "false")),
        ErrorCode::Unsupported
    );
    let error = catalog
        .plan(
            &with("com.docker.network.driver.mtuu", "1"),
            &pools(),
            &fresh(1),
        )
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidOption);
    assert!(
        error
            .message
            .ends_with(&format!("did you mean \"{OPTION_MTU}\"?")),
        "{error}"
    );
    let mut small_v6 = with(OPTION_MTU, "1300");
    small_v6.enable_ipv6 = true;
    assert_eq!(code(&catalog, &small_v6), ErrorCode::InvalidMtu);
}

#[test]
fn ipv6_rides_with_ipv4_and_is_made_from_the_id() {
    let catalog = fresh_catalog(0);
    let mut dual = wish("a", &["10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64"]);
    dual.enable_ipv6 = true;
    dual.id = Some(ident::id_from_bits(99));
    let net = catalog.plan(&dual, &pools(), &fresh(1)).unwrap().network;
    let v6: Vec<String> = net
        .segments
        .iter()
        .map(|s| s.v6.as_ref().unwrap().prefix.to_string())
        .collect();
    assert_eq!(v6[0], "fd00:1::/64");
    assert!(
        v6[1].starts_with("fd") && v6[1].ends_with("::/64") || v6[1].ends_with(":1::/64"),
        "{v6:?}"
    );
    let other_node = fresh_catalog(5)
        .plan(&dual, &pools(), &fresh(2))
        .unwrap()
        .network;
    assert_eq!(net.segments, other_node.segments);
    let mut too_many = wish("a", &["10.0.1.0/24", "fd00:1::/64", "fd00:2::/64"]);
    too_many.enable_ipv6 = true;
    assert_eq!(code(&catalog, &too_many), ErrorCode::InvalidSubnet);
}

#[test]
fn other_drivers_scopes_and_kinds_are_refused_clearly() {
    let catalog = fresh_catalog(0);
    let check = |change: &dyn Fn(&mut CreateNetwork), expect| {
        let mut wish = wish("a", &[]);
        change(&mut wish);
        assert_eq!(code(&catalog, &wish), expect);
    };
    check(
        &|w| w.driver = Some("bridge".into()),
        ErrorCode::InvalidDriver,
    );
    check(&|w| w.scope = Some("local".into()), ErrorCode::Unsupported);
    check(&|w| w.ingress = true, ErrorCode::Unsupported);
    check(&|w| w.enable_ipv4 = Some(false), ErrorCode::Unsupported);
    check(
        &|w| w.ipam.driver = Some("null".into()),
        ErrorCode::Unsupported,
    );
    check(
        &|w| w.ipam.options = Some(BTreeMap::from([("a".into(), "b".into())])),
        ErrorCode::InvalidOption,
    );
    check(
        &|w| drop(w.labels.insert(" ".into(), "x".into())),
        ErrorCode::InvalidRequest,
    );
}

#[test]
fn references_are_id_then_name_then_beginning_of_id() {
    let mut catalog = fresh_catalog(0);
    let a = create(&mut catalog, &wish("alpha", &[])).unwrap();
    let b = create(&mut catalog, &wish("beta", &[])).unwrap();
    for reference in [a.id.as_str(), "alpha"] {
        assert_eq!(catalog.find(reference).unwrap().name(), "alpha");
    }
    assert_eq!(catalog.find(&b.id[..25]).unwrap().name(), "beta");
    assert_eq!(
        catalog.find("000").unwrap_err().code,
        ErrorCode::AmbiguousReference
    );
    let error = catalog.find("alhpa").unwrap_err();
    assert_eq!(error.code, ErrorCode::NetworkNotFound);
    let near = catalog.find("alpah").unwrap_err();
    assert!(
        near.message.contains("this node knows no network"),
        "{near}"
    );
    assert_eq!(
        catalog.find("").unwrap_err().code,
        ErrorCode::NetworkNotFound
    );
    assert_eq!(
        catalog.find_overlay("host", "remove").unwrap_err().code,
        ErrorCode::BuiltinNetwork
    );
}

#[test]
fn builtins_have_dockers_drivers_and_scopes() {
    let catalog = fresh_catalog(0);
    let rows: Vec<_> = catalog
        .builtins
        .iter()
        .map(|b| (b.name.as_str(), b.driver_and_scope()))
        .collect();
    assert_eq!(
        rows,
        [
            ("bridge", ("bridge", "local")),
            ("docker_gwbridge", ("bridge", "local")),
            ("host", ("host", "local")),
            ("none", ("null", "local")),
        ]
    );
}

#[test]
fn ingress_is_a_network_that_nobody_changes() {
    let mut catalog = fresh_catalog(7);
    let ingress = catalog.ingress().clone();
    assert_eq!((ingress.name.as_str(), ingress.created), ("ingress", 7));
    assert!(ingress.ingress && ingress.ipv6 && !ingress.attachable && ident::is_id(&ingress.id));
    let segment = &ingress.segments[0];
    assert_eq!(segment.vni, Vni::INGRESS);
    assert_eq!(segment.v4.prefix, IpNetwork::V4(INGRESS_SUBNET));
    assert_eq!(segment.v4.gateway.to_string(), "10.0.0.1");
    let v6 = segment.v6.as_ref().unwrap();
    assert!(v6.prefix.prefix() == 64 && v6.prefix.ip().to_string().starts_with("fd"));
    for reference in ["ingress", &ingress.id, ident::short(&ingress.id)] {
        let error = catalog.find_overlay(reference, "remove").unwrap_err();
        assert_eq!(error.code, ErrorCode::BuiltinNetwork);
        assert!(
            error.message.contains("cannot remove \"ingress\""),
            "{error}"
        );
    }
    assert_eq!(catalog.remove(&ingress.id), None);
    create(&mut catalog, &wish("web", &[])).unwrap();
    let own: Vec<&str> = catalog.own().map(|n| n.name.as_str()).collect();
    assert_eq!(own, ["web"]);
    assert_eq!(catalog.without_own(), fresh_catalog(7));
}

#[test]
fn a_catalog_of_when_ingress_was_a_name_gets_the_network_with_its_id() {
    let mut catalog = fresh_catalog(7);
    create(&mut catalog, &wish("web", &[])).unwrap();
    let mut old = serde_json::to_value(&catalog).unwrap();
    let ingress = catalog.ingress().id.clone();
    old["networks"].as_object_mut().unwrap().remove(&ingress);
    let builtin = serde_json::json!({"name": "ingress", "id": ingress, "created": 7});
    let builtins = old["builtins"].as_array_mut().unwrap();
    builtins.insert(3, builtin);
    let read =
        |value: &serde_json::Value| -> Catalog { serde_json::from_value(value.clone()).unwrap() };
    assert_eq!(read(&old), catalog);
    let written = serde_json::to_value(read(&old)).unwrap();
    assert_eq!(read(&written), catalog);
    // An edited file without either still has one, and the same for every reader.
    let builtins = old["builtins"].as_array_mut().unwrap();
    builtins.remove(3);
    assert_eq!(read(&old), read(&old));
    assert_eq!(read(&old).networks.len(), 2);
}

#[test]
fn a_full_pool_says_so() {
    let mut catalog = fresh_catalog(0);
    let small = Pools {
        pool: "10.0.0.0/23".parse().unwrap(),
        prefix_len: 24,
        avoid: vec![],
    };
    let plan = catalog.plan(&wish("a", &[]), &small, &fresh(1)).unwrap();
    catalog.insert(plan);
    let error = catalog
        .plan(&wish("b", &[]), &small, &fresh(2))
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::SubnetsExhausted);
}

#[derive(Clone, Debug)]
enum Step {
    Create { subnets: u8, vni: Option<u32> },
    Remove(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let create = (0u8..4, prop::option::weighted(0.2, 4090u32..4110))
        .prop_map(|(subnets, vni)| Step::Create { subnets, vni });
    let remove = any::<prop::sample::Index>().prop_map(Step::Remove);
    prop::collection::vec(prop_oneof![3 => create, 1 => remove], 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn vnis_and_subnets_never_collide(steps in steps()) {
        let mut catalog = fresh_catalog(0);
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Create { subnets, vni } => {
                    let given: Vec<String> =
                        (0..subnets).map(|i| format!("172.{}.{i}.0/24", 16 + n % 16)).collect();
                    let given: Vec<&str> = given.iter().map(String::as_str).collect();
                    let mut wish = wish(&format!("n{n}"), &given);
                    if let Some(vni) = vni {
                        wish.options.insert(OPTION_VXLANID_LIST.into(), vni.to_string());
                    }
                    if let Ok(plan) = catalog.plan(&wish, &pools(), &fresh(n as u128 + 1)) {
                        catalog.insert(plan);
                    }
                }
                Step::Remove(index) if catalog.own().next().is_some() => {
                    let id = index.get(&catalog.own().map(|n| n.id.clone()).collect::<Vec<_>>()).clone();
                    catalog.remove(&id);
                }
                Step::Remove(_) => {}
            }
            let mut vnis = BTreeSet::new();
            let mut prefixes: Vec<IpNetwork> = Vec::new();
            for net in catalog.networks.values() {
                for segment in &net.segments {
                    prop_assert!(vnis.insert(segment.vni), "VNI {} twice", segment.vni);
                }
                for subnet in net.subnets() {
                    prop_assert!(subnet.prefix.contains(subnet.gateway));
                    prop_assert!(!is_edge(subnet.prefix, subnet.gateway));
                    prop_assert!(!prefixes.iter().any(|p| overlap(*p, subnet.prefix)));
                    prefixes.push(subnet.prefix);
                }
            }
        }
    }

    #[test]
    fn no_request_text_panics(name in ".{0,8}", subnet in "[0-9a-f.:/]{0,20}", gateway in "[0-9a-f.:]{0,16}", vni in "[0-9,-]{0,9}", ipv6: bool) {
        let mut wish = wish(&name, &[&subnet]);
        wish.ipam.config[0].gateway = gateway;
        wish.enable_ipv6 = ipv6;
        wish.options.insert(OPTION_VXLANID_LIST.into(), vni);
        if let Err(error) = fresh_catalog(0).plan(&wish, &pools(), &fresh(1)) {
            prop_assert!(!error.next.is_empty());
        }
    }
}
