//! The gateway of `qk node`.

use std::sync::Arc;

use qk_node::gateway::{Gateway, GatewayConfig, GatewayError, GatewayKey, GatewayLimits};
use qk_node::home::Home;
use qk_node::node::Node;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::args::NodeArgs;
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed};

/// Binds it where one is wanted.
pub(super) async fn bind(
    args: &NodeArgs,
    config: &GatewayConfig,
    home: &Home,
) -> Result<Option<Gateway>, Failure> {
    let Some(address) = args.gateway.as_ref().or(config.listen.as_ref()) else {
        return Ok(None);
    };
    let bound = Gateway::bind(address, GatewayLimits::of(config), config, home).await;
    let kind = |error: &GatewayError| match error {
        GatewayError::Address(_) | GatewayError::HalfTls | GatewayError::File { .. } => Kind::Usage,
        GatewayError::Bind { .. } | GatewayError::Key(_) => Kind::Other,
    };
    bound
        .map(Some)
        .map_err(|error| Failure::new(kind(&error), error))
}

/// Lets it answer until the sender says otherwise.
pub(super) fn start(
    gateway: Option<Gateway>,
    node: &Arc<Node>,
) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (stop, stopping) = oneshot::channel();
    let node = node.clone();
    let serving = tokio::spawn(async move {
        if let Some(gateway) = gateway {
            let stopped = async {
                let _ = stopping.await;
            };
            gateway.serve(node, stopped).await;
        }
    });
    (stop, serving)
}

/// Prints the public half of what it signs with.
pub(super) fn key(session: &Session) -> Outcome {
    let key = GatewayKey::of(&session.home).map_err(failed)?;
    let key = Key { key: key.public() };
    session.output.result(&key, |key| key.key.clone());
    Ok(())
}

/// The public half.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Key {
    key: String,
}
