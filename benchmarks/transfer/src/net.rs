//! A node's network side, as the product starts it on a LAN.

use std::future::ready;

use anyhow::{Context, Result};
use qk_node::blocks::behaviour::OnLane;
use qk_node::net::{Limits, Multiaddr, NatConfig, Net, NetConfig, identity_of};
use qk_protocol::hash::NetworkId;

/// A node that asks for nothing and answers nothing but blocks.
pub async fn start(on_lane: Option<OnLane>) -> Result<Net> {
    let mut secret = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut secret)?;
    let listen = match on_lane {
        Some(_) => vec!["/ip4/127.0.0.1/tcp/0".parse()?],
        None => Vec::new(),
    };
    let config = NetConfig {
        identity: identity_of(secret)?,
        network: NetworkId([7; 32]),
        listen,
        external: Vec::new(),
        bootstrap: Vec::new(),
        server: on_lane.is_some(),
        nat: NatConfig::default(),
        lan: None,
        pre_shared: None,
        quic: false,
        allow_private: true,
        limits: Limits::server(),
    };
    let refuse = |_, _, _| ready(Vec::new());
    Ok(Net::start(config, refuse, on_lane).await?)
}

/// Where a node listens, with its identity.
pub async fn address(net: &Net) -> Result<Multiaddr> {
    let addresses = net.listen_addrs().await?;
    let address = addresses.first().context("listens nowhere")?.clone();
    address
        .with_p2p(net.local_peer())
        .map_err(|address| anyhow::anyhow!("{address} is of another node"))
}
