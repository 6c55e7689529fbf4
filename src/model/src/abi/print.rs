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
    for list in [LIMITS, STAGES, ENDPOINT_FLAGS, FLOW_FLAGS, RULE_FLAGS, MARKS, IPCACHE_FLAGS, DIRECTIONS, EVENT_FLAGS] {
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

/// `generated/maps.h`: every table, pinned by name but for the stages.
pub fn maps_h() -> String {
    let mut out = String::from(HEAD);
    out.push_str("#pragma once\n#include \"abi.h\"\n#include <bpf.h>\n\n");
    for m in MAPS.iter().chain([&STAGE_MAP]) {
        writeln!(out, "/* {} */\nstruct {{\n\t__uint(type, {});", m.doc, m.kind.c_name()).expect("write to String");
        match m.kind {
            MapKind::RingBuf => {}
            MapKind::ProgArray => out.push_str("\t__type(key, __u32);\n\t__type(value, __u32);\n"),
            MapKind::Array | MapKind::PercpuArray => {
                writeln!(out, "\t__type(key, __u32);\n\t__type(value, struct {});", m.value).expect("write to String")
            }
            MapKind::Hash | MapKind::LruHash | MapKind::LpmTrie => {
                writeln!(out, "\t__type(key, struct {});\n\t__type(value, struct {});", m.key, m.value).expect("write to String")
            }
        }
        writeln!(out, "\t__uint(max_entries, {});", m.max_entries).expect("write to String");
        if m.no_prealloc {
            out.push_str("\t__uint(map_flags, BPF_F_NO_PREALLOC);\n");
        }
        if m.name != STAGE_MAP.name {
            out.push_str("\t__uint(pinning, LIBBPF_PIN_BY_NAME);\n");
        }
        writeln!(out, "}} {} SEC(\".maps\");\n", m.name).expect("write to String");
    }
    out
}
