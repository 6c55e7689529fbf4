// SPDX-License-Identifier: Apache-2.0
//! The OpenAPI 3.1 document of the API, made from the wire types. The agent serves it; `openapi.json` is a snapshot.

use crate::types::{
    ApiError, ConfigModel, ConfigPatch, EndpointHealth, EndpointModel, EndpointRequest, FlowEntry, FlowEvent, FlushResult, HeaderModel,
    IdentityModel, IpamModel, LabelsRequest, Lines, LogEntry, MapInfo, MapModel, MetricModel, NamedPort, NodeModel, NodeRequest,
    PolicyAnswer, PolicyDiff, PolicyImport, PolicyModel, PolicyQuestion, PolicyRevision, PolicyValidation, PolicyWait, ServiceModel,
    ServiceRequest, StatusModel, TemplateResult, TemplateStatus,
};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

type Options = BTreeMap<String, String>;

/// The whole document.
pub fn document() -> Value {
    let mut doc = Document::new();
    node(&mut doc);
    endpoint(&mut doc);
    addressing(&mut doc);
    policy(&mut doc);
    tables(&mut doc);
    kernel(&mut doc);
    template(&mut doc);
    doc.finish()
}

fn node(doc: &mut Document) {
    doc.get("/v1/healthz", "getStatus", "State of the agent").answer::<StatusModel>(200, "Status").done();
    doc.get("/v1/config", "getConfig", "Every option with its value").answer::<ConfigModel>(200, "Options").done();
    doc.route("patch", "/v1/config", "patchConfig", "Changes options")
        .body::<ConfigPatch>()
        .answer::<ConfigModel>(200, "All options")
        .fails(&[400])
        .done();
    doc.get("/v1/debuginfo", "getDebugInfo", "What a bug report needs").answer::<Lines>(200, "Lines of text").done();
    doc.route("post", "/v1/cleanup", "cleanup", "Removes everything that Pilus made on the node")
        .query("confirm", "boolean", true, "Must be true")
        .answer::<Lines>(200, "What was removed")
        .fails(&[400])
        .done();
    doc.get("/v1/openapi.json", "getOpenApi", "This document").answer::<Map<String, Value>>(200, "OpenAPI document").done();
}

fn endpoint(doc: &mut Document) {
    let one = "/v1/endpoint/{id}";
    let config = "/v1/endpoint/{id}/config";
    let labels = "/v1/endpoint/{id}/labels";
    doc.get("/v1/endpoint", "listEndpoints", "All endpoints").answer::<Vec<EndpointModel>>(200, "Endpoints").done();
    doc.get(one, "getEndpoint", "One endpoint").answer::<EndpointModel>(200, "Endpoint").fails(&[400, 404]).done();
    doc.route("put", one, "putEndpoint", "Connects a network namespace; the id is name:NAME")
        .query("wait", "boolean", false, "Answer when traffic flows")
        .body::<EndpointRequest>()
        .answer::<EndpointModel>(200, "It existed so")
        .answer::<EndpointModel>(201, "Created")
        .fails(&[400, 409])
        .done();
    doc.route("patch", one, "patchEndpoint", "Changes options of an endpoint")
        .body::<Options>()
        .answer::<Options>(200, "All options of the endpoint")
        .fails(&[400, 404])
        .done();
    doc.route("delete", one, "deleteEndpoint", "Disconnects an endpoint")
        .query("wait", "boolean", false, "Answer when nothing is left of it (default), not when it is sure that nothing will be")
        .empty(204, "Gone; the header pilus-deleted is false if there was none")
        .header(crate::client::DELETED_HEADER, "false if there was no such endpoint")
        .fails(&[400])
        .done();
    doc.get(config, "getEndpointConfig", "Options of an endpoint").answer::<Options>(200, "Options").fails(&[400, 404]).done();
    doc.route("patch", config, "patchEndpointConfig", "Changes options of an endpoint")
        .body::<Options>()
        .answer::<Options>(200, "All options of the endpoint")
        .fails(&[400, 404])
        .done();
    doc.get(labels, "getEndpointLabels", "Labels of an endpoint").answer::<Vec<String>>(200, "Labels").fails(&[400, 404]).done();
    doc.route("patch", labels, "patchEndpointLabels", "Adds and removes labels")
        .body::<LabelsRequest>()
        .answer::<EndpointModel>(200, "Endpoint with its new labels")
        .fails(&[400, 404])
        .done();
    let ports = "/v1/endpoint/{id}/ports";
    doc.get(ports, "getEndpointPorts", "Names of an endpoint's ports").answer::<Vec<NamedPort>>(200, "Ports").fails(&[400, 404]).done();
    doc.route("put", ports, "putEndpointPorts", "Names an endpoint's ports; answers when rules follow")
        .body::<Vec<NamedPort>>()
        .answer::<Vec<NamedPort>>(200, "All of them")
        .fails(&[400, 404])
        .done();
    doc.get("/v1/endpoint/{id}/log", "getEndpointLog", "What happened to an endpoint")
        .answer::<Vec<LogEntry>>(200, "Entries, oldest first")
        .fails(&[400, 404])
        .done();
    doc.get("/v1/endpoint/{id}/healthz", "getEndpointHealth", "Health of an endpoint")
        .answer::<EndpointHealth>(200, "Health")
        .fails(&[400, 404])
        .done();
    doc.get("/v1/endpoint/{id}/header", "getEndpointHeader", "The C header made for an endpoint")
        .answer::<HeaderModel>(200, "Header")
        .fails(&[400, 404])
        .done();
    doc.route("post", "/v1/endpoint/{id}/regenerate", "regenerateEndpoint", "Renders, builds and attaches again")
        .answer::<EndpointModel>(200, "Endpoint")
        .fails(&[400, 404])
        .done();
}

fn addressing(doc: &mut Document) {
    let one = "/v1/ipam/{ip}";
    doc.get("/v1/identity", "listIdentities", "All identities").answer::<Vec<IdentityModel>>(200, "Identities").done();
    doc.get("/v1/identity/{id}", "getIdentity", "One identity").answer::<IdentityModel>(200, "Identity").fails(&[400, 404]).done();
    doc.route("post", "/v1/ipam", "allocateAddress", "Takes free addresses, for an endpoint that comes within five minutes")
        .query("v6", "boolean", false, "Take an IPv6 address")
        .query("v4", "boolean", false, "Take an IPv4 address")
        .answer::<IpamModel>(201, "Addresses")
        .fails(&[400, 409])
        .done();
    doc.route("post", one, "claimAddress", "Takes this address, for an endpoint that comes within five minutes")
        .answer::<IpamModel>(201, "Address")
        .fails(&[400, 409])
        .done();
    doc.route("delete", one, "releaseAddress", "Gives an address back").empty(204, "Free").fails(&[400, 404, 409]).done();
}

fn policy(doc: &mut Document) {
    doc.get("/v1/policy", "getPolicy", "Rules in force")
        .query("labels", "string", false, "Only rules that carry all of these labels, comma separated")
        .answer::<PolicyModel>(200, "Rules")
        .fails(&[400])
        .done();
    doc.route("put", "/v1/policy", "importPolicy", "Imports all documents or nothing")
        .body::<PolicyImport>()
        .answer::<PolicyRevision>(200, "Revision")
        .fails(&[400])
        .done();
    doc.route("delete", "/v1/policy", "deletePolicy", "Removes rules")
        .query("labels", "string", false, "Those that carry all of these labels, comma separated")
        .query("all", "boolean", false, "Every rule")
        .answer::<PolicyRevision>(200, "Revision")
        .fails(&[400])
        .done();
    doc.get("/v1/policy/wait", "waitPolicy", "Answers when every endpoint has realised a revision")
        .query("revision", "integer", true, "Revision to wait for")
        .query("timeout", "integer", false, "Seconds")
        .answer::<PolicyWait>(200, "Whether it is realised")
        .fails(&[400])
        .done();
    doc.route("post", "/v1/policy/validate", "validatePolicy", "Says what an import would say; changes nothing")
        .body::<PolicyImport>()
        .answer::<PolicyValidation>(200, "Mistakes and warnings")
        .fails(&[400])
        .done();
    doc.route("post", "/v1/policy/explain", "explainPolicy", "Says what becomes of a connection, and which rule decides")
        .body::<PolicyQuestion>()
        .answer::<PolicyAnswer>(200, "Verdict")
        .fails(&[400, 404])
        .done();
    doc.route("post", "/v1/policy/diff", "diffPolicy", "Says which verdicts an import would change; changes nothing")
        .body::<PolicyImport>()
        .answer::<PolicyDiff>(200, "Changes")
        .fails(&[400])
        .done();
}

fn tables(doc: &mut Document) {
    let (service, node) = ("/v1/service/{id}", "/v1/node/{name}");
    doc.get("/v1/service", "listServices", "All services").answer::<Vec<ServiceModel>>(200, "Services").done();
    doc.get(service, "getService", "One service").answer::<ServiceModel>(200, "Service").fails(&[400, 404]).done();
    doc.route("put", service, "putService", "Makes a service known to rules; answers when they follow it")
        .body::<ServiceRequest>()
        .answer::<ServiceModel>(200, "It was known, and is so now")
        .answer::<ServiceModel>(201, "Known")
        .fails(&[400, 409])
        .done();
    doc.route("delete", service, "deleteService", "Forgets a service").empty(204, "Forgotten").fails(&[400, 404]).done();
    doc.get("/v1/node", "listNodes", "This node and all that were told of").answer::<Vec<NodeModel>>(200, "Nodes").done();
    doc.get(node, "getNode", "One node").answer::<NodeModel>(200, "Node").fails(&[404]).done();
    doc.route("put", node, "putNode", "Makes another node known; answers when its addresses are told apart")
        .body::<NodeRequest>()
        .answer::<NodeModel>(200, "It was known, and is so now")
        .answer::<NodeModel>(201, "Known")
        .fails(&[400, 409])
        .done();
    doc.route("delete", node, "deleteNode", "Forgets another node").empty(204, "Forgotten").fails(&[400, 404]).done();
}

fn kernel(doc: &mut Document) {
    doc.get("/v1/map", "listMaps", "Maps of the datapath").answer::<Vec<MapInfo>>(200, "Maps").done();
    doc.get("/v1/map/{name}", "getMap", "Entries of a map").answer::<MapModel>(200, "Entries").fails(&[404]).done();
    doc.get("/v1/metrics", "listMetrics", "What the agent and the datapath count").answer::<Vec<MetricModel>>(200, "Samples").done();
    doc.get("/v1/flowtable", "listFlowTable", "Connections as the datapath keeps them")
        .query("endpoint", "string", false, "Only those of this endpoint")
        .answer::<Vec<FlowEntry>>(200, "Connections, both families")
        .fails(&[400, 404])
        .done();
    doc.route("delete", "/v1/flowtable", "flushFlowTable", "Forgets connections; policy judges their next packets anew")
        .query("endpoint", "string", false, "Only those of this endpoint")
        .answer::<FlushResult>(200, "How many there were")
        .fails(&[400, 404])
        .done();
    doc.get("/v1/flows", "followFlows", "Follows events, one JSON object a line")
        .query("type", "string", false, "Event types, comma separated")
        .query("from", "string", false, "Sending endpoints, comma separated")
        .query("to", "string", false, "Receiving endpoints, comma separated")
        .query("related", "string", false, "Endpoints that send or receive, comma separated")
        .stream::<FlowEvent>(200, "Events as they come")
        .fails(&[400, 404])
        .done();
}

fn template(doc: &mut Document) {
    doc.get("/v1/template", "getTemplate", "The templates that run and those on disk").answer::<TemplateStatus>(200, "Templates").done();
    doc.route("post", "/v1/template/check", "checkTemplate", "Builds the edited templates")
        .answer::<TemplateResult>(200, "Whether they build")
        .done();
    doc.route("post", "/v1/template/apply", "applyTemplate", "Swaps the edited templates in")
        .answer::<TemplateResult>(200, "Whether they run")
        .done();
}

struct Document {
    schemas: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Document {
    fn new() -> Document {
        let settings = SchemaSettings::draft2020_12().with(|s| {
            s.definitions_path = "/components/schemas".into();
            s.meta_schema = None;
        });
        Document { schemas: settings.into_generator(), paths: Map::new() }
    }

    fn get(&mut self, path: &'static str, id: &str, summary: &str) -> Route<'_> {
        self.route("get", path, id, summary)
    }

    fn route(&mut self, method: &'static str, path: &'static str, id: &str, summary: &str) -> Route<'_> {
        let mut operation = Map::new();
        operation.insert("operationId".into(), id.into());
        operation.insert("summary".into(), summary.into());
        let parameters = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).map(|name| {
            let schema = match path.starts_with("/v1/identity") {
                true => json!({"type": "integer"}),
                false => json!({"type": "string"}),
            };
            json!({"name": name, "in": "path", "required": true, "description": path_doc(path, name), "schema": schema})
        });
        let parameters = parameters.collect();
        Route { doc: self, method, path, operation, parameters, answers: Map::new() }
    }

    fn finish(mut self) -> Value {
        self.schemas.subschema_for::<ApiError>();
        json!({
            "openapi": "3.1.0",
            "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
            "info": {
                "title": "Pilus agent",
                "version": "v1",
                "description": "HTTP/1.1 with JSON over the agent's unix socket. Adding fields is compatible.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "http://pilus", "description": "the agent's unix socket, /run/pilus/pilus.sock unless configured"}],
            "paths": self.paths,
            "components": {
                "schemas": self.schemas.take_definitions(true),
                "responses": {"Error": {
                    "description": "The call failed; nothing was changed unless the message says so",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ApiError"}}},
                }},
            },
        })
    }
}

fn path_doc(path: &str, name: &str) -> &'static str {
    match name {
        "ip" => "An address",
        "name" if path.starts_with("/v1/node") => "Name of a node",
        "name" => "Name of a map, e.g. flows",
        _ if path.starts_with("/v1/service") => "NAMESPACE/NAME of a service, or its name in `default`; the slash as %2F",
        _ if path.starts_with("/v1/identity") => "Number of the identity",
        _ => "Reference of the endpoint: 257, name:NAME, container-id:ID, ipv4:ADDRESS or ipv6:ADDRESS",
    }
}

/// One operation while it is described.
struct Route<'a> {
    doc: &'a mut Document,
    method: &'static str,
    path: &'static str,
    operation: Map<String, Value>,
    parameters: Vec<Value>,
    answers: Map<String, Value>,
}

impl Route<'_> {
    fn query(mut self, name: &str, kind: &str, required: bool, doc: &str) -> Self {
        self.parameters.push(json!({"name": name, "in": "query", "required": required, "description": doc, "schema": {"type": kind}}));
        self
    }

    fn body<T: JsonSchema>(mut self) -> Self {
        let content = content("application/json", self.doc.schemas.subschema_for::<T>());
        self.operation.insert("requestBody".into(), json!({"required": true, "content": content}));
        self
    }

    fn answer<T: JsonSchema>(mut self, status: u16, doc: &str) -> Self {
        let content = content("application/json", self.doc.schemas.subschema_for::<T>());
        self.answers.insert(status.to_string(), json!({"description": doc, "content": content}));
        self
    }

    fn stream<T: JsonSchema>(mut self, status: u16, doc: &str) -> Self {
        let content = content("application/x-ndjson", self.doc.schemas.subschema_for::<T>());
        self.answers.insert(status.to_string(), json!({"description": doc, "content": content}));
        self
    }

    fn empty(mut self, status: u16, doc: &str) -> Self {
        self.answers.insert(status.to_string(), json!({"description": doc}));
        self
    }

    fn header(mut self, name: &str, doc: &str) -> Self {
        for answer in self.answers.values_mut() {
            answer["headers"] = json!({name: {"description": doc, "schema": {"type": "string"}}});
        }
        self
    }

    fn fails(mut self, statuses: &[u16]) -> Self {
        for status in statuses {
            self.answers.insert(status.to_string(), json!({"$ref": "#/components/responses/Error"}));
        }
        self
    }

    fn done(mut self) {
        self.answers.insert("default".into(), json!({"$ref": "#/components/responses/Error"}));
        if !self.parameters.is_empty() {
            self.operation.insert("parameters".into(), Value::Array(self.parameters));
        }
        self.operation.insert("responses".into(), Value::Object(self.answers));
        let methods = self.doc.paths.entry(self.path).or_insert_with(|| json!({}));
        methods[self.method] = Value::Object(self.operation);
    }
}

fn content(kind: &str, schema: Schema) -> Value {
    json!({kind: {"schema": schema}})
}
