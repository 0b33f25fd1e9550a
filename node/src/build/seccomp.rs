//! The system calls that nothing in the sandbox gets.
//!
//! One program for both phases and both kinds of sandbox; bubblewrap is handed it and loads it last. A
//! deny list with two nets under it: numbers above the newest call this list was written against do not exist here
//! (which also shuts the x32 ABI out, whose numbers start at 2^30), and calls of another
//! architecture kill the process.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

/// Which calls a program is about; one without rules is meant whatever its arguments.
pub(super) type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Why no filter could be made.
#[derive(Debug, thiserror::Error)]
#[error("seccomp filter: {0}")]
pub struct SeccompError(#[from] seccompiler::BackendError);

/// The newest system call this list was written against (`mseal`). Later ones answer ENOSYS until
/// someone has looked at them.
const NEWEST_KNOWN: u32 = 462;
/// Offset of the number in `struct seccomp_data`.
const NUMBER_OFFSET: u32 = 0;
const SET_ID_BITS: [u64; 2] = [0o4000, 0o2000];

/// Refused with EPERM whatever the arguments.
const REFUSED: &[c_long] = &[
    // Keyrings are not namespaced.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Large attack surface that no build needs.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_lookup_dcookie,
    libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_vmsplice,
    libc::SYS_modify_ldt,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
];

/// Answered with ENOSYS, so that programs take their older way.
const ABSENT: &[c_long] = &[
    // Their flags lie in memory, where a filter cannot look.
    libc::SYS_clone3,
    libc::SYS_openat2,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Not every file system below a work directory has them, so no build may rest on them.
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_fchmodat2,
];

/// The namespaces that `clone` can make, one bit each.
const CLONE_NEW: &[i32] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The program as bubblewrap is to load it, the bytes of `struct sock_filter[]`.
///
/// # Errors
/// As [`program`].
pub(super) fn bytes() -> Result<Vec<u8>, SeccompError> {
    Ok(program()?.iter().flat_map(instruction).collect())
}

/// The program.
///
/// # Errors
/// When the rules do not make a program, which the tests rule out for the list above.
pub(super) fn program() -> Result<BpfProgram, SeccompError> {
    // A filter of seccompiler knows one answer; two answers are two filters in a row, where the
    // first falls through to the second instead of allowing.
    let mut code = newest_known();
    let absent = ABSENT.iter().map(|&call| (call, Vec::new())).collect();
    let first = compile(absent, libc::ENOSYS)?;
    code.extend(fall_through(first));
    code.extend(compile(refused()?, libc::EPERM)?);
    Ok(code)
}

/// A program that answers calls by these rules with `errno` and lets all others through.
pub(super) fn compile(rules: Rules, errno: i32) -> Result<BpfProgram, SeccompError> {
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

/// `if number > NEWEST_KNOWN { return ENOSYS }`, before anything else.
fn newest_known() -> BpfProgram {
    let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER_OFFSET),
        sock_filter {
            code: code(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K),
            jt: 0,
            jf: 1,
            k: NEWEST_KNOWN,
        },
        statement(libc::BPF_RET | libc::BPF_K, absent),
    ]
}

/// Turns each "allow" of `first` into a jump behind its end.
fn fall_through(first: BpfProgram) -> BpfProgram {
    let length = first.len();
    first
        .into_iter()
        .enumerate()
        .map(|(at, op)| {
            let returns = op.code == code(libc::BPF_RET | libc::BPF_K);
            if returns && op.k == libc::SECCOMP_RET_ALLOW {
                let behind = u32::try_from(length - at - 1).unwrap_or(u32::MAX);
                statement(libc::BPF_JMP | libc::BPF_JA, behind)
            } else {
                op
            }
        })
        .collect()
}

fn statement(op: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code(op),
        jt: 0,
        jf: 0,
        k,
    }
}

fn code(op: u32) -> u16 {
    // All of BPF's operation codes fit into one byte.
    (op & 0xff) as u16
}

fn instruction(op: &sock_filter) -> [u8; 8] {
    let code = op.code.to_ne_bytes();
    let k = op.k.to_ne_bytes();
    [code[0], code[1], op.jt, op.jf, k[0], k[1], k[2], k[3]]
}

/// Refused with EPERM, partly by what the arguments say.
fn refused() -> Result<Rules, SeccompError> {
    let mut rules: Rules = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    let clone = CLONE_NEW
        .iter()
        .map(|&bit| all([bits(0, u64::from(bit.unsigned_abs()))?]))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_clone, clone);
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, vec![other_families()?]);
    }
    rules.insert(libc::SYS_ioctl, terminal_input()?);
    rules.insert(libc::SYS_personality, vec![other_personalities()?]);
    for (call, argument) in [(libc::SYS_mknod, 1), (libc::SYS_mknodat, 2)] {
        let mut made = set_id(argument)?;
        made.extend(devices(argument)?);
        rules.insert(call, made);
    }
    for (call, argument) in [
        (libc::SYS_chmod, 1),
        (libc::SYS_fchmod, 1),
        (libc::SYS_fchmodat, 2),
        (libc::SYS_creat, 1),
        (libc::SYS_mkdir, 1),
        (libc::SYS_mkdirat, 2),
    ] {
        rules.insert(call, set_id(argument)?);
    }
    // The mode of open counts only where it makes a file; else it is whatever is in the register.
    for (call, flags) in [(libc::SYS_open, 1), (libc::SYS_openat, 2)] {
        rules.insert(call, set_id_on_creation(flags)?);
    }
    Ok(rules)
}

fn other_families() -> Result<SeccompRule, SeccompError> {
    let family = |family: i32| argument(0, SeccompCmpOp::Ne, u64::from(family.unsigned_abs()));
    all([
        family(libc::AF_UNIX)?,
        family(libc::AF_INET)?,
        family(libc::AF_INET6)?,
    ])
}

/// Typing into the terminal that the sandbox was started from, and changing its line discipline.
fn terminal_input() -> Result<Vec<SeccompRule>, SeccompError> {
    const TIOCLINUX: u64 = 0x541c;
    [libc::TIOCSTI, TIOCLINUX, libc::TIOCSETD]
        .into_iter()
        .map(|request| all([argument(1, SeccompCmpOp::Eq, request)?]))
        .collect()
}

/// `personality` may ask (0xffffffff) and set the plain one (0).
fn other_personalities() -> Result<SeccompRule, SeccompError> {
    all([
        argument(0, SeccompCmpOp::Ne, 0)?,
        argument(0, SeccompCmpOp::Ne, u64::from(u32::MAX))?,
    ])
}

fn devices(mode: u8) -> Result<Vec<SeccompRule>, SeccompError> {
    [libc::S_IFCHR, libc::S_IFBLK]
        .into_iter()
        .map(|kind| {
            let mask = SeccompCmpOp::MaskedEq(u64::from(libc::S_IFMT));
            all([argument(mode, mask, u64::from(kind))?])
        })
        .collect()
}

fn set_id(mode: u8) -> Result<Vec<SeccompRule>, SeccompError> {
    SET_ID_BITS
        .into_iter()
        .map(|bit| all([bits(mode, bit)?]))
        .collect()
}

fn set_id_on_creation(flags: u8) -> Result<Vec<SeccompRule>, SeccompError> {
    // O_TMPFILE contains O_DIRECTORY, which alone makes nothing.
    let unnamed = (libc::O_TMPFILE & !libc::O_DIRECTORY).unsigned_abs();
    let making = [libc::O_CREAT.unsigned_abs(), unnamed];
    SET_ID_BITS
        .into_iter()
        .flat_map(|bit| making.map(|flag| (bit, flag)))
        .map(|(bit, flag)| all([bits(flags, u64::from(flag))?, bits(flags + 1, bit)?]))
        .collect()
}

pub(super) fn all<const N: usize>(
    conditions: [SeccompCondition; N],
) -> Result<SeccompRule, SeccompError> {
    Ok(SeccompRule::new(conditions.into())?)
}

fn bits(argument_index: u8, bits: u64) -> Result<SeccompCondition, SeccompError> {
    argument(argument_index, SeccompCmpOp::MaskedEq(bits), bits)
}

/// The kernel takes these arguments as 32 bits, so the upper half must not hide them.
pub(super) fn argument(
    index: u8,
    op: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, SeccompError> {
    Ok(SeccompCondition::new(
        index,
        SeccompCmpArgLen::Dword,
        op,
        value,
    )?)
}
