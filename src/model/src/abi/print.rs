// SPDX-License-Identifier: Apache-2.0
//! Prints the C side of the shared shapes.

use super::layout::{CStruct, Field};
use super::maps::{MAPS, MapKind, STAGE_MAP};
use super::shapes::*;
use std::fmt::Write;

const HEAD: &str =
    "/* SPDX-License-Identifier: GPL-2.0 */\n/* Printed by model::abi; edit the Rust declaration, then run `make generated`. */\n";

fn constants(out: &mut String, list: &[(&str, u64)]) {
    out.push_str("enum {\n");
    for (name, value) in list {
        writeln!(out, "\t{name} = {value:#x},").expect("write to String");
    }
    out.push_str("};\n\n");
}

fn enumeration(out: &mut String, (prefix, values): (&str, Vec<(&str, u64)>)) {
    out.push_str("enum {\n");
    for (name, value) in values {
        writeln!(out, "\t{prefix}_{name} = {value},").expect("write to String");
    }
    out.push_str("};\n\n");
}

fn structure<T: CStruct>(out: &mut String) {
    let fields: Vec<Field> = T::fields();
    writeln!(out, "/*{} */\nstruct {} {{", T::DOC, T::NAME).expect("write to String");
    for f in &fields {
        let doc = if f.doc.is_empty() { String::new() } else { format!(" /*{} */", f.doc) };
        writeln!(out, "\t{};{doc}", f.declaration).expect("write to String");
    }
    out.push_str("};\n");
    writeln!(out, "_Static_assert(sizeof(struct {}) == {}, \"{}\");", T::NAME, T::SIZE, T::NAME).expect("write to String");
    for f in &fields {
        writeln!(out, "_Static_assert(__builtin_offsetof(struct {0}, {1}) == {2}, \"{0}.{1}\");", T::NAME, f.name, f.offset)
            .expect("write to String");
        writeln!(out, "_Static_assert(sizeof(((struct {0} *)0)->{1}) == {2}, \"{0}.{1} size\");", T::NAME, f.name, f.size)
            .expect("write to String");
    }
    out.push('\n');
}

/// `generated/abi.h`: constants, enums and structures with asserted layout.
pub fn abi_h() -> String {
    let mut out = String::from(HEAD);
    out.push_str("#pragma once\n#include <linux/types.h>\n\n");
    for list in
        [LIMITS, STAGES, ENDPOINT_FLAGS, FLOW_FLAGS, RULE_FLAGS, DENIAL_WHAT, DENIAL_COUNTER, MARKS, IPCACHE_FLAGS, DIRECTIONS, EVENT_FLAGS]
    {
        constants(&mut out, list);
    }
    for e in
        [Reserved::c_constants(), EventKind::c_constants(), TracePoint::c_constants(), FlowState::c_constants(), DropReason::c_constants()]
    {
        enumeration(&mut out, e);
    }
    structure::<Endpoint>(&mut out);
    structure::<FlowKey4>(&mut out);
    structure::<FlowKey6>(&mut out);
    structure::<Flow>(&mut out);
    structure::<Flow4>(&mut out);
    structure::<Flow6>(&mut out);
    structure::<Denial>(&mut out);
    structure::<Opened>(&mut out);
    structure::<PolicyKey>(&mut out);
    structure::<PolicyRule>(&mut out);
    structure::<PolicyBlock>(&mut out);
    structure::<RuleRecord>(&mut out);
    structure::<Counter>(&mut out);
    structure::<IpcacheKey>(&mut out);
    structure::<IpcacheLpmKey>(&mut out);
    structure::<IpcacheEntry>(&mut out);
    structure::<NextHop>(&mut out);
    structure::<DeviceKey>(&mut out);
    structure::<DeviceEntry>(&mut out);
    structure::<DirectEntry>(&mut out);
    structure::<Nat46Range>(&mut out);
    structure::<FragKey>(&mut out);
    structure::<FragEntry>(&mut out);
    structure::<FlowTimeouts>(&mut out);
    structure::<Reporting>(&mut out);
    structure::<Event>(&mut out);
    out
}

/// `generated/maps.h`: every table as a macro, for the header that owns it to expand. The kernel, and libbpf, pay for each table
/// that an object declares, used or not.
pub fn maps_h() -> String {
    let mut out = String::from(HEAD);
    out.push_str("#pragma once\n#include \"abi.h\"\n#include <bpf.h>\n\n");
    for m in MAPS.iter().chain([&STAGE_MAP]) {
        let mut lines = vec![format!("#define TABLE_{}", m.name), "struct {".into(), format!("\t__uint(type, {});", m.kind.c_name())];
        let types = match m.kind {
            MapKind::RingBuf => None,
            MapKind::ProgArray => Some(("__u32".into(), "__u32".into())),
            MapKind::Array | MapKind::PercpuArray => Some(("__u32".into(), format!("struct {}", m.value))),
            MapKind::Hash | MapKind::LruHash | MapKind::LpmTrie => Some((format!("struct {}", m.key), format!("struct {}", m.value))),
        };
        lines.extend(
            types.into_iter().flat_map(|(k, v): (String, String)| [format!("\t__type(key, {k});"), format!("\t__type(value, {v});")]),
        );
        lines.push(format!("\t__uint(max_entries, {});", m.max_entries));
        if m.no_prealloc {
            lines.push("\t__uint(map_flags, BPF_F_NO_PREALLOC);".into());
        }
        if m.name != STAGE_MAP.name {
            lines.push("\t__uint(pinning, LIBBPF_PIN_BY_NAME);".into());
        }
        lines.push(format!("}} {} SEC(\".maps\")", m.name));
        writeln!(out, "/* {} */\n{}\n", m.doc, lines.join(" \\\n")).expect("write to String");
    }
    out
}
