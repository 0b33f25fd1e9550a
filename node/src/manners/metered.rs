//! Whether the connection is metered: the platform's part. On Linux NetworkManager is asked over
//! D-Bus; where there is neither, it is not.

use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;
use zbus::proxy::{Builder, CacheProperties, Proxy};
use zbus::{Connection, MessageStream};

const NAME: &str = "org.freedesktop.NetworkManager";
const PATH: &str = "/org/freedesktop/NetworkManager";
/// NMMetered: 1 is yes, 3 a guess that says yes; 0 is unknown, 2 and 4 are no.
const METERED: [u32; 2] = [1, 3];

/// How long after a failure the bus is tried again, doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Tells `seen` whenever it changes, until that is dropped.
pub(crate) async fn watch(seen: watch::Sender<Option<bool>>) {
    let mut retry = RETRY_MIN;
    loop {
        // Most servers and containers have no such bus: nothing to warn of.
        match follow(&seen, &mut retry).await {
            Ok(()) => tracing::debug!("the system bus ended"),
            Err(error) => tracing::debug!(%error, "no system bus to ask about metered links"),
        }
        tell(&seen, false);
        tokio::select! {
            () = tokio::time::sleep(retry) => {}
            () = seen.closed() => return,
        }
        retry = (retry * 2).min(RETRY_MAX);
    }
}

/// Follows the property until the bus goes away.
async fn follow(seen: &watch::Sender<Option<bool>>, retry: &mut Duration) -> zbus::Result<()> {
    let bus = Connection::system().await?;
    let manager = proxy(&bus, NAME).await?;
    // Before the first question, so that no change falls in between.
    let mut owners = manager.receive_owner_changed().await?;
    let properties = proxy(&bus, "org.freedesktop.DBus.Properties").await?;
    let of_manager = [(0, NAME)];
    let changed = properties.receive_signal_with_args("PropertiesChanged", &of_manager);
    let mut changed = changed.await?;
    let mut messages = MessageStream::from(&bus);
    *retry = RETRY_MIN;
    loop {
        told(manager.get_property::<u32>("Metered").await, seen);
        tokio::select! {
            owner = owners.next() => if owner.is_none() {
                return Ok(());
            },
            change = changed.next() => if change.is_none() {
                return Ok(());
            },
            () = ended(&mut messages) => return Ok(()),
        }
    }
}

/// Without a cache, which would have to be told when NetworkManager is started anew.
async fn proxy<'a>(bus: &Connection, interface: &'a str) -> zbus::Result<Proxy<'a>> {
    let proxy = Builder::new(bus).destination(NAME).path(PATH);
    let proxy = proxy
        .interface(interface)
        .cache_properties(CacheProperties::No);
    proxy.build().await
}

/// Until the connection is over, which only the stream of all messages tells.
async fn ended(messages: &mut MessageStream) {
    while let Some(Ok(_)) = messages.next().await {}
}

/// NetworkManager that does not run, or does not answer, says nothing: not metered.
fn told(value: zbus::Result<u32>, seen: &watch::Sender<Option<bool>>) {
    tell(seen, value.is_ok_and(|value| METERED.contains(&value)));
}

fn tell(seen: &watch::Sender<Option<bool>>, metered: bool) {
    seen.send_if_modified(|before| before.replace(metered) != Some(metered));
}
