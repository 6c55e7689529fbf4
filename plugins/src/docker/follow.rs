// SPDX-License-Identifier: Apache-2.0
//! Brings the agent up to what Docker says: labels that were not known in time, and containers that vanished unnoticed.

use std::sync::Arc;
use std::time::Duration;

use pilus_api::types::EndpointModel;

use super::{Driver, PREFIX, lock, reference};
use crate::labels;

/// Between two attempts to reach Docker or the agent.
const PAUSE: Duration = Duration::from_millis(500);

/// Follows Docker for ever. Each connection begins with all that there is, so that nothing depends on an event's arrival.
pub async fn follow(driver: Arc<Driver>) {
    loop {
        if let Err(e) = connection(&driver).await {
            tracing::info!(error = e, "Docker is not followed now");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn connection(driver: &Driver) -> Result<(), String> {
    let mut events = driver.docker.events().await?;
    compare(driver).await?;
    tracing::info!("Docker is followed");
    loop {
        events.next().await?;
        compare(driver).await?;
    }
}

async fn compare(driver: &Driver) -> Result<(), String> {
    // First what we have: what Docker makes meanwhile is not taken for something that it has forgotten.
    let (ours, _) = driver.agent.call(|| driver.agent.client.endpoints()).await.map_err(|e| e.to_string())?;
    let theirs = driver.docker.endpoints().await?;
    let mut result = Ok(());
    for model in ours {
        let Some(endpoint) = model.name.strip_prefix(PREFIX) else { continue };
        // One that cannot be helped now holds up no other.
        if let Err(e) = bring_up(driver, &model, endpoint, theirs.get(endpoint)).await {
            tracing::warn!(endpoint, error = e, "not as Docker has it yet");
            result = Err(e);
        }
    }
    result
}

async fn bring_up(driver: &Driver, model: &EndpointModel, endpoint: &str, known: Option<&labels::Map>) -> Result<(), String> {
    if let Some(labels) = known {
        return driver.set_labels(model, labels).await;
    }
    if !lock(&driver.made).contains(endpoint) && !driver.docker.knows(endpoint).await? {
        // Docker gives back what it remembers; of the rest nobody will ever speak again.
        let name = reference(endpoint);
        driver.agent.call(|| driver.agent.client.delete_endpoint(&name, true)).await.map_err(|e| e.to_string())?;
        lock(&driver.joined).remove(endpoint);
        tracing::info!(endpoint, "removed: Docker does not know it any more");
    }
    Ok(())
}
