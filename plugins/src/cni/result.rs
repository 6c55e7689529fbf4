// SPDX-License-Identifier: Apache-2.0
//! Results, in the shape of each version.

use std::net::IpAddr;

use pilus_api::types::EndpointModel;
use serde_json::{Map, Value, json};

use super::conf::{Attachment, Conf};

/// Gateways that every container has (the node's program answers for them).
const GATEWAYS: [(&str, &str); 2] = [("::/0", "fe80::1"), ("0.0.0.0/0", "169.254.1.1")];

/// An endpoint's addresses, IPv6 first.
pub fn addresses(endpoint: &EndpointModel) -> Vec<IpAddr> {
    [endpoint.ipv6.map(IpAddr::from), endpoint.ipv4.map(IpAddr::from)].into_iter().flatten().collect()
}

fn list<'a>(result: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Vec<Value>> {
    let entry = result.entry(key).or_insert_with(|| json!([]));
    if entry.is_null() {
        *entry = json!([]);
    }
    entry.as_array_mut()
}

/// What ADD answers: the result of the plugins before this one, and what this one made.
pub fn added(conf: &Conf, attachment: &Attachment, endpoint: &EndpointModel) -> Value {
    let mut result = conf.prev_result.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
    result.insert("cniVersion".into(), conf.cni_version.as_str().into());
    let [untyped, with_mtu] = ["1.0.0", "1.1.0"].map(|v| conf.version_index() >= super::VERSIONS.iter().position(|w| *w == v).unwrap_or(0));
    let mut host = json!({ "name": endpoint.interface.name, "mac": endpoint.interface.host_mac });
    let mut inside = json!({ "name": attachment.ifname, "mac": endpoint.interface.mac, "sandbox": attachment.netns });
    if with_mtu {
        host["mtu"] = endpoint.interface.mtu.into();
        inside["mtu"] = endpoint.interface.mtu.into();
    }
    let mut index = 0;
    if let Some(interfaces) = list(&mut result, "interfaces") {
        index = interfaces.len() + 1;
        interfaces.extend([host, inside]);
    }
    for ip in addresses(endpoint) {
        let (version, length, (any, gateway)) = if ip.is_ipv6() { ("6", 128, GATEWAYS[0]) } else { ("4", 32, GATEWAYS[1]) };
        let mut entry = json!({ "address": format!("{ip}/{length}"), "gateway": gateway, "interface": index });
        if !untyped {
            entry["version"] = version.into();
        }
        list(&mut result, "ips").into_iter().for_each(|l| l.push(entry.clone()));
        list(&mut result, "routes").into_iter().for_each(|l| l.push(json!({ "dst": any, "gw": gateway })));
    }
    result.entry("dns").or_insert_with(|| json!({}));
    Value::Object(result)
}

/// Whether a result still speaks of this endpoint: its interface, its namespace and all its addresses.
pub fn is_in(result: &Value, attachment: &Attachment, endpoint: &EndpointModel) -> Result<(), String> {
    let entries = |key: &str| result[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = entries("interfaces").iter().any(|i| {
        i["name"] == attachment.ifname.as_str()
            && i["sandbox"] == attachment.netns.as_str()
            && i["mac"].as_str().is_none_or(|mac| mac.eq_ignore_ascii_case(&endpoint.interface.mac))
    });
    if !found {
        return Err(format!("prevResult has no interface {} with Ethernet address {}", attachment.ifname, endpoint.interface.mac));
    }
    let has = |ip: &IpAddr| {
        let of = |entry: &Value| entry["address"].as_str().and_then(|a| a.split('/').next()?.parse::<IpAddr>().ok());
        entries("ips").iter().any(|entry| of(entry) == Some(*ip))
    };
    addresses(endpoint).iter().find(|ip| !has(ip)).map_or(Ok(()), |ip| Err(format!("prevResult has no address {ip}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilus_api::types::{DatapathModel, EndpointPolicyModel, IdentityModel, InterfaceModel};

    fn endpoint() -> EndpointModel {
        EndpointModel {
            id: 256,
            name: "cni:pilus:a:eth0".into(),
            state: "ready".into(),
            identity: IdentityModel { id: 256, labels: Vec::new() },
            labels: Vec::new(),
            ports: Vec::new(),
            ipv6: Some("fd00::5".parse().unwrap()),
            nat46: None,
            ipv4: Some("10.0.0.5".parse().unwrap()),
            interface: InterfaceModel {
                name: "plx00000100".into(),
                index: 65792,
                mac: "02:00:00:00:00:01".into(),
                host_mac: "06:00:00:00:00:01".into(),
                container_name: "eth0".into(),
                mtu: 1450,
            },
            netns: "/n".into(),
            container_id: None,
            policy: EndpointPolicyModel { revision: 0, ingress: "open".into(), egress: "open".into() },
            datapath: DatapathModel::default(),
            health: "ok".into(),
            options: Default::default(),
            log: Vec::new(),
        }
    }

    fn result(version: &str, more: &str) -> (Value, Attachment) {
        let conf = Conf::parse(&format!(r#"{{"cniVersion":"{version}","name":"pilus"{more}}}"#)).unwrap();
        let attachment = Attachment { container: "a".into(), netns: "/n".into(), ifname: "eth0".into(), args: Default::default() };
        (added(&conf, &attachment, &endpoint()), attachment)
    }

    #[test]
    fn each_version_has_its_shape() {
        for version in super::super::VERSIONS {
            let (result, attachment) = result(version, "");
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["interfaces"][1], {
                let mut inside = json!({ "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/n" });
                if version == "1.1.0" {
                    inside["mtu"] = 1450.into();
                }
                inside
            });
            assert_eq!(result["ips"][0]["address"], "fd00::5/128");
            assert_eq!(result["ips"][1]["address"], "10.0.0.5/32");
            assert_eq!(result["ips"][0]["interface"], 1);
            assert_eq!(result["ips"][1]["version"].as_str(), version.starts_with('0').then_some("4"));
            assert_eq!(result["routes"][1], json!({ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }));
            assert_eq!(is_in(&result, &attachment, &endpoint()), Ok(()));
        }
    }

    #[test]
    fn what_came_before_stays() {
        let prev = r#","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"lo","sandbox":"/n"}],"ips":[{"address":"127.0.0.1/8","interface":0}],
            "routes":null,"dns":{"nameservers":["fd00::53"]}}"#;
        let (result, attachment) = result("1.0.0", prev);
        assert_eq!(result["interfaces"][0]["name"], "lo");
        assert_eq!(result["ips"].as_array().map(Vec::len), Some(3));
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["dns"]["nameservers"][0], "fd00::53");
        assert_eq!(is_in(&result, &attachment, &endpoint()), Ok(()));
        let mut changed = endpoint();
        changed.ipv4 = Some("10.0.0.6".parse().unwrap());
        assert!(is_in(&result, &attachment, &changed).is_err());
        changed = endpoint();
        changed.interface.mac = "02:00:00:00:00:02".into();
        assert!(is_in(&result, &attachment, &changed).is_err());
    }
}
