//! What a mount is told, made of the options and of what the process may do.

use std::time::Duration;

use super::error::MountError;
use super::options::{MountOptions, Partial};
use crate::fuse::{Access, BUSY_POLL, Settings};
use crate::layer::format::OverrideStat;
use crate::layer::upper::{AccessTimes, Namespace, UpperOptions};
use crate::sys::caps;
use crate::sys::memory;
use crate::sys::mount::{self as sys_mount, MountFlags};
use crate::union::Params;
use crate::union::params::RedirectDir;

/// Files of more bytes than this are copied up by blocks.
const PARTIAL: u64 = 1 << 20;

/// What the process may do, which decides how the mount is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights {
    /// `mount(2)`.
    pub(super) mount: bool,
    /// `trusted.` xattrs and passthrough.
    pub(super) initial: bool,
}

impl Rights {
    pub(super) fn of_this_process() -> Rights {
        let mount = caps::has_sys_admin().unwrap_or(false);
        Rights {
            mount,
            initial: mount && sys_mount::in_initial_user_namespace(),
        }
    }
}

pub(super) fn wants_passthrough(
    options: &MountOptions,
    rights: Rights,
) -> Result<bool, MountError> {
    match options.passthrough {
        Some(true) if !rights.initial => Err(MountError::Usage(
            "passthrough=on needs CAP_SYS_ADMIN in the initial user namespace: run as root".into(),
        )),
        Some(wanted) => Ok(wanted),
        None => Ok(rights.initial && options.writeback != Some(true)),
    }
}

pub(super) fn upper_options(options: &MountOptions, rights: Rights, private: bool) -> UpperOptions {
    UpperOptions {
        namespace: namespace(options, rights),
        volatile: options.volatile || private,
        override_stat: options.override_stat,
        access_times: access_times(options.flags),
    }
}

/// The kernel reads files of the upper itself, so that the mount of the upper decides what the union's mount was told.
pub(super) fn access_times(flags: MountFlags) -> AccessTimes {
    if flags.contains(MountFlags::NOATIME) {
        AccessTimes::Never
    } else if flags.contains(MountFlags::STRICTATIME) {
        AccessTimes::Always
    } else {
        AccessTimes::AsBelow
    }
}

/// What a node takes: itself, its name, and its place in the table and in the listing of its directory (260 bytes were
/// measured), and what the allocator makes of it.
const NODE_BYTES: u64 = 320;

pub(super) fn settings(options: &MountOptions, passthrough: bool, stacked: bool) -> Settings {
    let cpus = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    Settings {
        passthrough,
        stack_depth: if stacked { 2 } else { 1 },
        writeback: !passthrough && options.writeback != Some(false),
        posix_acl: !options.noacl,
        no_xattrs: options.no_xattrs,
        threads: cpus.max(2),
        busy_poll: match options.busy_poll {
            // Nobody could ask meanwhile.
            _ if cpus < 2 => Duration::ZERO,
            limit => limit.unwrap_or(BUSY_POLL),
        },
        // Half of it is for all else.
        most_nodes: memory::limit()
            .map(|limit| usize::try_from(limit / 2 / NODE_BYTES).unwrap_or(usize::MAX)),
    }
}

/// Files that are copied up by blocks, unless asked otherwise, where any other reader knows them by `trusted.` xattrs.
pub(super) fn partial(options: &MountOptions, rights: Rights, upper: bool) -> Option<u64> {
    match options.partial {
        _ if !upper => None,
        Some(Partial::Off) => None,
        Some(Partial::Above(size)) => Some(size),
        None => (namespace(options, rights) == Namespace::Trusted).then_some(PARTIAL),
    }
}

/// Attributes are copied up alone, unless asked otherwise, in the form that the kernel's overlayfs knows: without
/// redirects a renamed file's data could not be found, and in the `user.` form the kernel refuses both.
pub(super) fn metacopy(options: &MountOptions, rights: Rights) -> bool {
    options.metacopy.unwrap_or_else(|| {
        namespace(options, rights) == Namespace::Trusted
            && matches!(options.redirect_dir, None | Some(RedirectDir::On))
            && options.override_stat == OverrideStat::Off
    })
}

pub(super) fn namespace(options: &MountOptions, rights: Rights) -> Namespace {
    if rights.initial && !options.userxattr {
        Namespace::Trusted
    } else {
        Namespace::User
    }
}

pub(super) fn params(options: &MountOptions, settings: Settings, no_upper: bool) -> Params {
    let default = Params::default();
    Params {
        redirect_dir: options.redirect_dir.unwrap_or(RedirectDir::On),
        metacopy: false,
        data_layers: 0,
        partial: None,
        index: options.index.unwrap_or(default.index),
        no_sync: options.volatile || options.fsync == Some(false),
        noacl: options.noacl,
        static_nlink: options.static_nlink,
        read_only: no_upper || options.read_only(),
        ids: options.ids.clone(),
        timeout: options.timeout.unwrap_or(default.timeout),
        passthrough: settings.passthrough,
        passthrough_lower: options
            .passthrough_lower
            .unwrap_or(default.passthrough_lower),
        writeback: settings.writeback,
    }
}

pub(super) fn access(options: &MountOptions) -> Access {
    if options.allow_root {
        Access::RootAndOwner
    } else {
        Access::AsKernelSays
    }
}
