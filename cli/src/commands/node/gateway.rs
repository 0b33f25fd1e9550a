//! The gateway of `qk node`.

use std::sync::Arc;

use qk_node::gateway::{Gateway, GatewayConfig, GatewayError, GatewayLimits};
use qk_node::node::Node;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::args::NodeArgs;
use crate::failure::{Failure, Kind};

/// Binds it where one is wanted.
pub(super) async fn bind(
    args: &NodeArgs,
    config: &GatewayConfig,
) -> Result<Option<Gateway>, Failure> {
    let Some(address) = args.gateway.as_ref().or(config.listen.as_ref()) else {
        return Ok(None);
    };
    let bound = Gateway::bind(address, GatewayLimits::of(config)).await;
    let kind = |error: &GatewayError| match error {
        GatewayError::Address(_) => Kind::Usage,
        GatewayError::Bind { .. } => Kind::Other,
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
