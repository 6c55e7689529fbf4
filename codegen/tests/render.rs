// SPDX-License-Identifier: Apache-2.0
//! Templates: what they become, where their errors are, and what enters a key.

mod common;

use common::{Tree, endpoint};
use pilus_codegen::{Build, BuildError, NodeConfig, Templates, ValueKind, shape_key};

#[test]
fn a_container_header_is_exactly_this() {
    let rendered = Tree::new().load().render_container(&endpoint()).unwrap();
    let address = format!("{:#010x}", u32::from_ne_bytes([10, 0, 0, 1]));
    let expected = format!(
        "/* SPDX-License-Identifier: GPL-2.0 */
/* Endpoint 12: default/web */
/* FEATURE decides the shape of the program; VALUE is fixed for the life of the endpoint. */

FEATURE(IPV4, 1)
FEATURE(EVENTS, 1)

VALUE(u32, EP_SLOT, 7)
VALUE(u32, EP_IFINDEX, 42)
VALUE(mac, EP_MAC, {{ 0x02, 0x00, 0x5e, 0x10, 0xff, 0x01 }})
VALUE(mac, EP_HOST_MAC, {{ 0x02, 0x00, 0x5e, 0x10, 0xff, 0x02 }})
VALUE(be32, EP_IPV4, {address})
VALUE(in6, EP_IPV6, {{ 0xfd, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01 }})
VALUE(u16, EP_ID, 12)
VALUE(u16, EP_MTU, 1450)
"
    );
    assert_eq!(rendered.header, expected);
    assert_eq!(rendered.features.iter().map(|(n, on)| (n.as_str(), *on)).collect::<Vec<_>>(), [("EVENTS", true), ("IPV4", true)]);
    assert_eq!(rendered.values.len(), 8);
    let ipv4 = rendered.value("EP_IPV4").unwrap();
    assert_eq!((ipv4.kind, ipv4.bytes.as_slice()), (ValueKind::Be32, [10, 0, 0, 1].as_slice()));
    assert_eq!(rendered.value("EP_MTU").unwrap().bytes, 1450u16.to_ne_bytes());
    assert_eq!(rendered.value("EP_IPV6").unwrap().bytes[..2], [0xfd, 0]);
    assert_eq!(rendered.value("EP_MAC").unwrap().bytes, endpoint().mac);
}

#[test]
fn the_projects_own_templates_render() {
    let own = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../bpf-templates");
    let tree = Tree::new();
    for file in ["container_config.h.tera", "netdev_config.h.tera"] {
        std::fs::copy(own.join(file), tree.path().join(file)).unwrap();
    }
    let templates = tree.load();
    templates.check().unwrap();
    assert!(templates.render_netdev(&NodeConfig::default()).unwrap().values.is_empty());
}

#[test]
fn a_value_may_be_computed_in_the_template() {
    let tree = Tree::new();
    let rendered = tree.edit("container_config.h.tera", "{{ mtu }}", "{{ mtu - 50 }}").load().render_container(&endpoint()).unwrap();
    assert_eq!(rendered.value("EP_MTU").unwrap().bytes, 1400u16.to_ne_bytes());
}

#[test]
fn an_endpoint_without_ipv4_has_address_zero() {
    let rendered = Tree::new().load().render_container(&pilus_codegen::EndpointConfig { ipv4: None, ..endpoint() }).unwrap();
    assert_eq!(rendered.value("EP_IPV4").unwrap().bytes, [0; 4]);
}

#[test]
fn errors_name_file_line_and_expectation() {
    let file = "container_config.h.tera";
    for (from, to, expected) in [
        ("{{ mtu }}", "{{ mtu - 2000 }}", "15: EP_MTU: expected a number from 0 to 65535, found `-500`"),
        ("{{ mtu }}", "{{ mtuu }}", "15: "),
        ("{{ mtu }}", "{{ mtu", "15: "),
        ("{{ mtu }}", "{{ mtu | mac }}", "15: "),
        ("{{ features.ipv4 | flag }}", "{{ features.ipv5 | flag }}", "5: "),
        ("EP_ID,", "EP_SLOT,", "14: EP_SLOT is defined twice"),
        ("FEATURE(EVENTS", "{% if 1 %}FEATURE(EVENTS", "6: a template holds no statements"),
        (
            "FEATURE(EVENTS",
            "int x; FEATURE(EVENTS",
            "6: expected a comment, FEATURE(NAME, 0|1) or VALUE(type, NAME, literal), found `int x;",
        ),
        ("{{ name }}", "{{ \"a\nb\" }}", "2: "),
    ] {
        let tree = Tree::new();
        tree.edit(file, from, to);
        let error = Templates::load(tree.path()).and_then(|t| t.check()).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("{file}:{expected}")), "{to}: {text}");
        assert!(!error.is_retryable());
    }
}

#[test]
fn a_missing_field_is_named() {
    let tree = Tree::new();
    let error = tree.edit("container_config.h.tera", "{{ mtu }}", "{{ mtuu }}").load().render_container(&endpoint()).unwrap_err();
    assert!(error.to_string().contains("mtuu"), "{error}");
}

#[test]
fn a_tree_lacks_nothing_that_is_asked_of_it() {
    let tree = Tree::new();
    std::fs::remove_file(tree.path().join("netdev.c")).unwrap();
    let templates = tree.load();
    assert!(templates.render_container(&endpoint()).is_ok());
    assert_eq!(templates.check().unwrap_err().to_string(), "netdev.c: missing from the template tree");
    assert!(matches!(Templates::load(tree.path().join("absent")), Err(BuildError::Io { .. })));
    tree.write("lib/container_config.h", "");
    assert!(Templates::load(tree.path()).unwrap_err().to_string().starts_with("lib/container_config.h: this name belongs"));
}

#[test]
fn the_tree_hash_is_over_what_is_compiled() {
    let tree = Tree::new();
    let first = tree.load();
    tree.write(".hidden", "x").write("lib/ct.h~", "x").write(".git/config", "x").write("README.md", "x").write("generated/abi.h", "stale");
    assert_eq!(tree.load().tree_hash(), first.tree_hash());
    assert_eq!(Tree::new().load().tree_hash(), first.tree_hash(), "the place of a tree has no part in it");
    tree.write("custom/hook.h", "/* changed */\n");
    let second = tree.load();
    assert_ne!(second.tree_hash(), first.tree_hash());
    std::fs::rename(tree.path().join("custom/hook.h"), tree.path().join("custom/hook2.h")).unwrap();
    assert_ne!(tree.load().tree_hash(), second.tree_hash());
}

#[test]
fn a_key_is_made_of_what_decides_the_object() {
    let tree = Tree::new();
    let templates = tree.load();
    let key = |config: &pilus_codegen::EndpointConfig, build| shape_key(&templates, &templates.render_container(config).unwrap(), build);
    let (a, b) = (endpoint(), pilus_codegen::EndpointConfig { id: 13, ifindex: 43, ..endpoint() });
    assert_eq!(key(&a, Build::Shared), key(&b, Build::Shared));
    assert_ne!(key(&a, Build::Own), key(&b, Build::Own));
    assert_ne!(key(&a, Build::Own), key(&a, Build::Shared));

    let renamed = pilus_codegen::EndpointConfig { name: "other".to_owned(), ..endpoint() };
    assert_eq!(key(&a, Build::Own), key(&renamed, Build::Own));

    let no_ipv4 = pilus_codegen::EndpointConfig { features: a.features.clone().with("ipv4", false), ..endpoint() };
    assert_ne!(key(&a, Build::Shared), key(&no_ipv4, Build::Shared));

    let netdev = shape_key(&templates, &templates.render_netdev(&NodeConfig::default()).unwrap(), Build::Shared);
    assert_ne!(key(&a, Build::Shared), netdev);

    let again = Tree::new().load();
    assert_eq!(key(&a, Build::Shared), shape_key(&again, &again.render_container(&a).unwrap(), Build::Shared));
    let edited = tree.edit("lib/extra.h", "* 2", "* 3").load();
    assert_ne!(key(&a, Build::Shared), shape_key(&edited, &edited.render_container(&a).unwrap(), Build::Shared));

    let shown = key(&a, Build::Shared);
    assert_eq!(shown.to_string().len(), 64);
    assert!(shown.to_string().starts_with(&shown.short()) && shown.short().len() == 16);
}
