//! A wire with a delay, for kernels without netem: two interfaces whose packets this program carries
//! from one to the other, each after its time. How many bytes a second pass is up to `tc` on the
//! interfaces.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Link;

/// Longer than a packet of the interfaces' MTU.
const PACKET_BYTES_MAX: usize = 4096;

pub fn run(args: Link) -> Result<()> {
    let delay = Duration::from_millis(args.delay_ms);
    let (left, right) = (interface(&args.left)?, interface(&args.right)?);
    carry(left.try_clone()?, right.try_clone()?, delay);
    carry(right, left, delay);
    println!("{{}}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    // The threads and the interfaces end with the process.
    std::process::exit(0);
}

/// Creates a TUN interface, which is there as long as the file is open.
fn interface(name: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    let tun = options.read(true).write(true).open("/dev/net/tun");
    let tun = tun.context("/dev/net/tun")?;
    ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long");
    // struct ifreq: the name, then the flags, then what this request does not use.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + 2].copy_from_slice(&flags.to_ne_bytes());
    #[expect(
        unsafe_code,
        reason = "no safe wrapper for TUNSETIFF; the buffer is as long as ifreq"
    )]
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    ensure!(
        made == 0,
        "cannot make the interface {name}: {}",
        std::io::Error::last_os_error()
    );
    Ok(tun)
}

/// Packets of `from` come out of `to` after `delay`.
fn carry(from: File, to: File, delay: Duration) {
    let (sender, receiver) = channel();
    thread::spawn(move || take(from, delay, &sender));
    thread::spawn(move || give(to, &receiver));
}

fn take(mut from: File, delay: Duration, on_the_way: &Sender<(Instant, Vec<u8>)>) {
    let mut packet = [0; PACKET_BYTES_MAX];
    loop {
        // An interface that is down has no packets, and will have some when it is up.
        let Ok(bytes) = from.read(&mut packet) else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let due = Instant::now() + delay;
        if on_the_way.send((due, packet[..bytes].to_vec())).is_err() {
            return;
        }
    }
}

fn give(mut to: File, on_the_way: &Receiver<(Instant, Vec<u8>)>) {
    for (due, packet) in on_the_way {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // A packet that is not taken is lost, as on any wire.
        let _ = to.write_all(&packet);
    }
}
