//! What the probes try to reach, and what they say of it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;

use super::{FILE_MIB, MEMORY_MIB, PROCESSES, TMP_MIB, toolchain_directory, toolchains};

/// Starts what the probes try to reach, and says where it is.
pub(super) fn facts(directory: &Path, nonce: u32) -> String {
    let secret = directory.join("secret");
    fs::write(&secret, "secret").unwrap();
    let shared = directory.join("shared");
    fs::create_dir(&shared).unwrap();
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(&shared, open).unwrap();

    let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
    let tcp_port = tcp.local_addr().unwrap().port();
    std::thread::spawn(move || tcp.incoming().for_each(drop));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_port = udp.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((_, from)) = udp.recv_from(&mut [0; 8]) {
            let _ = udp.send_to(b"x", from);
        }
    });
    let socket = directory.join("socket");
    let unix = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || unix.incoming().for_each(drop));
    let datagram = directory.join("datagram");
    let unix = UnixDatagram::bind(&datagram).unwrap();
    std::thread::spawn(move || while unix.recv(&mut [0; 8]).is_ok() {});
    let name = format!("qk-hostile-{nonce}");
    let named = SocketAddr::from_abstract_name(&name).unwrap();
    let unix = UnixListener::bind_addr(&named).unwrap();
    std::thread::spawn(move || unix.incoming().for_each(drop));

    let home = std::env::home_dir().unwrap();
    let disks = ["/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/xvda"];
    let disk = disks.iter().find(|disk| Path::new(disk).exists());
    let files = ["/etc/machine-id", disk.unwrap_or(&"")];
    let files = files.iter().filter(|path| Path::new(path).exists());
    let files: Vec<&str> = files.copied().collect();
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let command = std::env::args().next().unwrap();
    // A probe lists them, and outside it is to find something.
    toolchains();
    let facts = [
        ("home", home.display().to_string()),
        ("secret", secret.display().to_string()),
        ("shared", shared.display().to_string()),
        ("data", toolchain_directory().display().to_string()),
        ("socket", socket.display().to_string()),
        ("datagram", datagram.display().to_string()),
        ("abstract", name),
        ("tcp", tcp_port.to_string()),
        ("udp", udp_port.to_string()),
        ("address", own_address()),
        ("pid", std::process::id().to_string()),
        (
            "command",
            Path::new(&command)
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned(),
        ),
        ("hostname", hostname.trim().to_owned()),
        ("files", files.join(":")),
        ("disk", disk.unwrap_or(&"/dev/none").to_string()),
        ("cgroup", cgroup()),
        ("processes", PROCESSES.to_string()),
        ("memory_mib", MEMORY_MIB.to_string()),
        ("tmp_mib", TMP_MIB.to_string()),
        ("file_mib", FILE_MIB.to_string()),
        ("nonce", nonce.to_string()),
    ];
    facts.iter().fold(String::new(), |text, (name, value)| {
        text + name + "=" + value + "\n"
    })
}

/// An address of this machine other than loopback; no packet is sent to find it.
fn own_address() -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let routed = socket
        .connect("192.0.2.1:9")
        .and_then(|()| socket.local_addr());
    routed.map_or(String::new(), |address| address.ip().to_string())
}

fn cgroup() -> String {
    let candidates = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
    let found = candidates
        .iter()
        .find(|path| Path::new(path).join("cgroup.procs").exists());
    found.unwrap_or(&"").to_string()
}

/// `<where> <probe>` → (outcome, detail).
pub(super) type Report = BTreeMap<String, (String, String)>;

/// What an executable prints.
pub(super) fn report(executable: &Path) -> Report {
    let output = Command::new(executable).output().unwrap();
    read(&String::from_utf8(output.stdout).unwrap())
}

pub(super) fn read(text: &str) -> Report {
    let line = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (place, name) = (word(), word());
        (format!("{place} {name}"), (word(), word()))
    };
    text.lines().map(line).collect()
}
