//! The system calls that namespaces would make harmless, and that nothing gets without them.

use libc::c_long;
use seccompiler::{BpfProgram, SeccompCmpOp, SeccompRule};

use super::super::seccomp::{Rules, SeccompError, all, argument, compile};

/// Not yet in `libc`.
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;

/// Refused whatever the arguments.
const REFUSED: &[c_long] = &[
    // Memory, messages and counters that all processes of a user share, and that outlive them.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    // Landlock does not look at what is watched.
    libc::SYS_inotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    // What is mounted on the host.
    STATMOUNT,
    LISTMOUNT,
    // Handles of processes outside.
    libc::SYS_pidfd_open,
    libc::SYS_process_mrelease,
];

/// Calls on another process's resources, by where they name it; 0 is the caller.
const OF_ANOTHER: &[(c_long, u8)] = &[
    (libc::SYS_prlimit64, 0),
    (libc::SYS_sched_setaffinity, 0),
    (libc::SYS_sched_setparam, 0),
    (libc::SYS_sched_setscheduler, 0),
    (libc::SYS_sched_setattr, 0),
    (libc::SYS_setpriority, 0),
    (libc::SYS_setpriority, 1),
    (libc::SYS_ioprio_set, 1),
];

/// Changes of files that need no access to what is in them, so that Landlock lets them through:
/// modes, owners, times, attributes.
const ATTRIBUTES: &[c_long] = &[
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_utimensat,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];

/// What is refused with EPERM. With `network` there are sockets of the internet, and no others.
pub(super) fn refused(network: bool) -> Result<BpfProgram, SeccompError> {
    let mut rules: Rules = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    for &(call, at) in OF_ANOTHER {
        let named = all([argument(at, SeccompCmpOp::Ne, 0)?])?;
        rules.entry(call).or_default().push(named);
    }
    // Of one process, not of a group or of all that a user has.
    let group = all([argument(0, SeccompCmpOp::Ne, 1)?])?;
    rules.entry(libc::SYS_ioprio_set).or_default().push(group);
    let socket = match network {
        true => vec![outside_the_internet()?],
        false => Vec::new(),
    };
    rules.insert(libc::SYS_socket, socket);
    rules.insert(libc::SYS_socketpair, vec![datagram(2)?, datagram(3)?]);
    rules.insert(libc::SYS_ioctl, flags()?);
    let lease = u64::from(libc::F_SETLEASE.unsigned_abs());
    let lease = all([argument(1, SeccompCmpOp::Eq, lease)?])?;
    rules.insert(libc::SYS_fcntl, vec![lease]);
    compile(rules, libc::EPERM)
}

/// What answers "done" and does nothing. For builds that run as the user, who owns more than the
/// build may touch: `chmod` of a path in the user's home would work. Compilers and `cp` set modes
/// and times of what they just made, and go on without.
pub(super) fn pretended() -> Result<BpfProgram, SeccompError> {
    let rules = ATTRIBUTES.iter().map(|&call| (call, Vec::new())).collect();
    compile(rules, 0)
}

fn outside_the_internet() -> Result<SeccompRule, SeccompError> {
    let family = |family: i32| argument(0, SeccompCmpOp::Ne, u64::from(family.unsigned_abs()));
    all([family(libc::AF_INET)?, family(libc::AF_INET6)?])
}

/// A pair of datagram sockets can send to any other by path; `kind` as the kernel numbers it (a raw
/// one of this family is a datagram one).
fn datagram(kind: u64) -> Result<SeccompRule, SeccompError> {
    all([argument(1, SeccompCmpOp::MaskedEq(0xf), kind)?])
}

/// The flags of a file, which its owner may change through a file opened for reading.
fn flags() -> Result<Vec<SeccompRule>, SeccompError> {
    const FS_IOC_SETFLAGS: u64 = 0x4008_6602;
    const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
    [FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR]
        .into_iter()
        .map(|request| all([argument(1, SeccompCmpOp::Eq, request)?]))
        .collect()
}
