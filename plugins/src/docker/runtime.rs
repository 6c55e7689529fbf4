// SPDX-License-Identifier: Apache-2.0
//! What is asked of Docker itself.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::labels;

type Result<T> = std::result::Result<T, String>;

/// Docker's API behind a unix socket.
#[derive(Clone, Debug)]
pub struct Docker {
    socket: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    names: Vec<String>,
    labels: Option<labels::Map>,
    network_settings: Option<NetworkSettings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    networks: Option<HashMap<String, EndpointSettings>>,
}

#[derive(Deserialize)]
struct EndpointSettings {
    #[serde(rename = "EndpointID", default)]
    endpoint: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    #[serde(default)]
    id: String,
    containers: Option<HashMap<String, Member>>,
}

#[derive(Deserialize)]
struct Member {
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "EndpointID", default)]
    endpoint: String,
}

/// Drives a connection for as long as its answer is read.
struct Driven(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Docker's events, one object a line.
pub struct Events {
    body: Incoming,
    _connection: Driven,
}

impl Events {
    /// Waits for an event, or several at once.
    pub async fn next(&mut self) -> Result<()> {
        match self.body.frame().await {
            Some(Ok(_)) => Ok(()),
            Some(Err(e)) => Err(e.to_string()),
            None => Err("the stream of events ended".into()),
        }
    }
}

/// Percent-encodes what a query's value may not hold as it is.
fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

impl Docker {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    async fn send(&self, target: &str) -> Result<(Driven, Response<Incoming>)> {
        let failed = |e: &dyn std::fmt::Display| format!("{} GET {target}: {e}", self.socket.display());
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| failed(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        let connection = Driven(tokio::spawn(connection));
        let request = Request::get(target).header(hyper::header::HOST, "docker").body(Empty::<Bytes>::new()).map_err(|e| failed(&e))?;
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        if !response.status().is_success() {
            return Err(failed(&response.status()));
        }
        Ok((connection, response))
    }

    async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T> {
        let (_connection, response) = self.send(target).await?;
        let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        serde_json::from_slice(&body).map_err(|e| format!("{} GET {target}: {e}", self.socket.display()))
    }

    /// What happens to containers and networks from now on.
    pub async fn events(&self) -> Result<Events> {
        let filters = encode(r#"{"type":["network"],"event":["connect","disconnect"]}"#);
        let (connection, response) = self.send(&format!("/events?filters={filters}")).await?;
        Ok(Events { body: response.into_body(), _connection: connection })
    }

    /// Labels of the container that an endpoint is made for. Docker answers these two requests while it waits for the driver;
    /// to inspect the container would wait for the driver's own answer.
    pub async fn labels_of(&self, network: &str, endpoint: &str) -> Result<Option<labels::Map>> {
        let network: Network = self.get(&format!("/networks/{}", encode(network))).await?;
        let members = network.containers.unwrap_or_default();
        let made_for = |(key, m): (&String, &Member)| {
            let is = key.strip_prefix("ep-") == Some(endpoint) || m.endpoint == endpoint;
            is.then(|| m.name.clone()).filter(|n| !n.is_empty())
        };
        let Some(name) = members.iter().find_map(made_for) else { return Ok(None) };
        let filters = encode(&format!(r#"{{"name":["^/{name}$"]}}"#));
        let containers: Vec<Container> = self.get(&format!("/containers/json?all=1&filters={filters}")).await?;
        let found = containers.into_iter().find(|c| c.names.iter().any(|n| n.strip_prefix('/') == Some(&name)));
        Ok(found.map(|c| c.labels.unwrap_or_default()))
    }

    /// Labels of every container by its endpoints.
    pub async fn endpoints(&self) -> Result<HashMap<String, labels::Map>> {
        let containers: Vec<Container> = self.get("/containers/json?all=1").await?;
        let mut found = HashMap::new();
        for container in containers {
            let networks = container.network_settings.and_then(|s| s.networks).unwrap_or_default();
            for endpoint in networks.into_values().map(|n| n.endpoint).filter(|e| !e.is_empty()) {
                found.insert(endpoint, container.labels.clone().unwrap_or_default());
            }
        }
        Ok(found)
    }

    /// Whether some network has this endpoint, although no container says so (yet).
    pub async fn knows(&self, endpoint: &str) -> Result<bool> {
        let networks: Vec<Network> = self.get("/networks").await?;
        for network in networks {
            let network: Network = self.get(&format!("/networks/{}", encode(&network.id))).await?;
            let members = network.containers.unwrap_or_default();
            if members.iter().any(|(key, m)| key.strip_prefix("ep-") == Some(endpoint) || m.endpoint == endpoint) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
