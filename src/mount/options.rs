//! What `-o` says: the options of the kernel's overlayfs, of fuse-overlayfs, of FUSE and of `/etc/fstab`.
//!
//! Parsing is pure: nothing is opened, and relative paths stay as they are.

mod names;
mod values;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::names::{Flag, NAMED_ONCE, WITHOUT_EFFECT, flag, not_supported, unknown};
use self::values::{micros, on_off, one_zero, path, seconds, size, split, unescape};
use super::error::OptionError;
use super::mapping;
use crate::layer::format::OverrideStat;
use crate::sys::mount::MountFlags;
use crate::union::idmap::IdMaps;
use crate::union::params::{PassthroughLower, RedirectDir};

/// The options of one mount.
///
/// Written down for another program, the directories are left out: they are told with what they turned out to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountOptions {
    /// `lowerdir`, topmost first.
    #[serde(skip)]
    pub lowers: Vec<PathBuf>,
    /// `datadir+`, and what follows a double colon of `lowerdir`: data-only layers.
    #[serde(skip)]
    pub data_layers: Vec<PathBuf>,
    /// `upperdir`.
    #[serde(skip)]
    pub upper: Option<PathBuf>,
    /// `workdir`.
    #[serde(skip)]
    pub work: Option<PathBuf>,
    /// `ro`, `nosuid` and the other flags of `mount(2)`.
    #[serde(with = "flag_bits")]
    pub flags: MountFlags,
    /// Flags of those that were refused by name, as `suid` refuses `nosuid`, and so are not to be set by default.
    #[serde(skip, default = "MountFlags::empty")]
    pub refused_flags: MountFlags,
    /// `fsname`.
    pub fsname: Option<OsString>,
    /// `context` and its like, as the kernel takes them.
    pub security: Vec<OsString>,
    /// `allow_other`.
    pub allow_other: bool,
    /// `allow_root`.
    pub allow_root: bool,
    /// `redirect_dir`.
    pub redirect_dir: Option<RedirectDir>,
    /// `metacopy`.
    pub metacopy: Option<bool>,
    /// `partial`.
    pub partial: Option<Partial>,
    /// `complete`: after how long without a change a file that was copied up by blocks is completed.
    pub complete: Option<Complete>,
    /// `index`.
    pub index: Option<bool>,
    /// `userxattr`.
    pub userxattr: bool,
    /// `volatile`.
    pub volatile: bool,
    /// `remount`: nothing is mounted, a mount is given other flags.
    pub remount: bool,
    /// `fsync`.
    pub fsync: Option<bool>,
    /// `uidmapping`, `gidmapping`, `squash_to_root`, `squash_to_uid`, `squash_to_gid`.
    pub ids: IdMaps,
    /// `squash_to_root`, which stands in `ids` as well.
    squash_to_root: bool,
    /// `xattr_permissions`.
    pub override_stat: OverrideStat,
    /// `noacl`.
    pub noacl: bool,
    /// `noxattrs`.
    pub no_xattrs: bool,
    /// `static_nlink`.
    pub static_nlink: bool,
    /// `timeout`.
    pub timeout: Option<Duration>,
    /// `writeback`.
    pub writeback: Option<bool>,
    /// `passthrough`.
    pub passthrough: Option<bool>,
    /// `supervise`: the mount outlives its daemon.
    pub supervise: bool,
    /// `passthrough_lower`.
    pub passthrough_lower: Option<PassthroughLower>,
    /// `layer_index`.
    pub layer_index: LayerIndex,
    /// `debug`.
    pub debug: bool,
    /// `sandbox`.
    pub sandbox: bool,
    /// `busy_poll`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_poll: Option<Duration>,
}

mod flag_bits {
    use super::MountFlags;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(flags: &MountFlags, to: S) -> Result<S::Ok, S::Error> {
        flags.bits().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MountFlags, D::Error> {
        u32::deserialize(from).map(MountFlags::from_bits_retain)
    }
}

/// What `partial` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Partial {
    /// Files are copied up whole.
    Off,
    /// Files of more bytes than this are copied up by blocks.
    Above(u64),
}

/// What `complete` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Complete {
    /// Only when asked to, and at the end.
    Off,
    /// Only when asked to: at the end the upper is thrown away. No option says this.
    Never,
    /// After this long without a change.
    After(Duration),
}

/// What `layer_index` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerIndex {
    /// Layers of the store answer from the index that lies beside their tree.
    #[default]
    Stored,
    /// Layers are read as they lie.
    Off,
    /// And those that have none are read when they are mounted, and answer from memory.
    Built,
}

/// A partial file is larger than a block, of which one is always copied.
const SMALLEST_PARTIAL: u64 = 4096;

/// The longest `busy_poll`.
const MOST_BUSY_POLL: Duration = Duration::from_millis(1);

/// The largest file that any filesystem has.
const LARGEST_PARTIAL: u64 = i64::MAX as u64;

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            lowers: Vec::new(),
            data_layers: Vec::new(),
            upper: None,
            work: None,
            flags: MountFlags::empty(),
            refused_flags: MountFlags::empty(),
            fsname: None,
            security: Vec::new(),
            allow_other: false,
            allow_root: false,
            redirect_dir: None,
            metacopy: None,
            partial: None,
            complete: None,
            index: None,
            userxattr: false,
            volatile: false,
            remount: false,
            fsync: None,
            ids: IdMaps::default(),
            squash_to_root: false,
            override_stat: OverrideStat::Off,
            noacl: false,
            no_xattrs: false,
            static_nlink: false,
            timeout: None,
            writeback: None,
            passthrough: None,
            supervise: false,
            passthrough_lower: None,
            layer_index: LayerIndex::default(),
            debug: false,
            sandbox: true,
            busy_poll: None,
        }
    }
}

impl MountOptions {
    /// Parses the values of several `-o`, in their order.
    pub fn parse<S: AsRef<OsStr>>(values: &[S]) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        let mut seen = HashMap::new();
        for value in values {
            options.add(value.as_ref(), &mut seen)?;
        }
        options.check()?;
        Ok(options)
    }

    /// `seen`: the values of the options that have one.
    fn add(
        &mut self,
        value: &OsStr,
        seen: &mut HashMap<String, Vec<u8>>,
    ) -> Result<(), OptionError> {
        for option in split(value.as_bytes(), b',') {
            if option.is_empty() {
                continue;
            }
            let (name, value) = match option.iter().position(|b| *b == b'=') {
                Some(at) => (&option[..at], Some(&option[at + 1..])),
                None => (option, None),
            };
            let name = String::from_utf8_lossy(name);
            match value {
                None => self.word(&name)?,
                Some(value) if NAMED_ONCE.contains(&&*name) => {
                    match seen.insert(name.clone().into_owned(), value.to_owned()) {
                        None => self.assignment(&name, value)?,
                        Some(before) if before == value => {}
                        Some(_) => return Err(OptionError::Repeated(name.into_owned())),
                    }
                }
                Some(value) => self.assignment(&name, value)?,
            }
        }
        Ok(())
    }

    /// An option without a value.
    fn word(&mut self, name: &str) -> Result<(), OptionError> {
        match name {
            "allow_other" => self.allow_other = true,
            "allow_root" => self.allow_root = true,
            "userxattr" => self.userxattr = true,
            "volatile" => self.volatile = true,
            "remount" => self.remount = true,
            "squash_to_root" => {
                self.squash_to_root = true;
                // One that was named before stays, to be found in contradiction at the end.
                self.ids.squash_uid.get_or_insert(0);
                self.ids.squash_gid.get_or_insert(0);
            }
            "noacl" => self.noacl = true,
            "acl" => self.noacl = false,
            "static_nlink" => self.static_nlink = true,
            "debug" => self.debug = true,
            _ => match flag(name) {
                Some(Flag::Set(flag)) => {
                    self.flags |= flag;
                    self.refused_flags -= flag;
                }
                Some(Flag::Clear(flag)) => {
                    self.flags -= flag;
                    self.refused_flags |= flag;
                }
                Some(Flag::Nothing) => {}
                None if name.starts_with("x-") || name.starts_with("X-") => {}
                None => return Err(unknown(name)),
            },
        }
        Ok(())
    }

    /// An option with a value.
    fn assignment(&mut self, name: &str, raw: &[u8]) -> Result<(), OptionError> {
        let text = String::from_utf8_lossy(raw);
        let wrong = |expected| OptionError::Value {
            name: name.to_owned(),
            value: text.clone().into_owned(),
            expected,
        };
        match name {
            "lowerdir" => self.add_lowers(raw)?,
            "lowerdir+" if !self.data_layers.is_empty() => {
                return Err(OptionError::Conflict("lowerdir+", "datadir+ before it"));
            }
            "lowerdir+" => self.lowers.push(path(name, raw)?),
            "datadir+" => self.data_layers.push(path(name, raw)?),
            "upperdir" => self.upper = Some(path(name, raw)?),
            "workdir" => self.work = Some(path(name, raw)?),
            "fsname" => self.fsname = Some(OsString::from_vec(unescape(raw))),
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                let option = [name.as_bytes(), b"=", raw].concat();
                self.security.push(OsString::from_vec(option));
            }
            "redirect_dir" => {
                self.redirect_dir = Some(match &*text {
                    "on" => RedirectDir::On,
                    // As the kernel's `off`: none are made, and those that are there are followed.
                    "off" | "follow" => RedirectDir::Follow,
                    "nofollow" => RedirectDir::NoFollow,
                    _ => return Err(wrong("on, off, follow or nofollow")),
                });
            }
            "metacopy" => self.metacopy = Some(on_off(&text).ok_or_else(|| wrong("on or off"))?),
            "partial" => {
                self.partial = Some(match &*text {
                    "off" => Partial::Off,
                    _ => Partial::Above(
                        size(&text)
                            .filter(|size| (SMALLEST_PARTIAL..=LARGEST_PARTIAL).contains(size))
                            .ok_or_else(|| {
                                wrong(
                                    "off or a size of at least 4K, such as 1048576, 64K, 1M or 2G,",
                                )
                            })?,
                    ),
                });
            }
            "complete" => {
                self.complete = Some(match &*text {
                    "off" => Complete::Off,
                    _ => Complete::After(
                        seconds(&text).ok_or_else(|| wrong("off or a number of seconds"))?,
                    ),
                });
            }
            "index" => self.index = Some(on_off(&text).ok_or_else(|| wrong("on or off"))?),
            // Inode numbers are unique and lasting whatever the layers, so there is nothing to choose.
            "xino" if matches!(&*text, "on" | "off" | "auto") => {}
            "xino" => return Err(wrong("on, off or auto")),
            "uuid" if matches!(&*text, "on" | "off" | "auto" | "null") => {}
            "uuid" => return Err(wrong("on, off, auto or null")),
            "nfs_export" if text == "off" => {}
            "nfs_export" => return Err(not_supported(name, "the mount cannot be exported")),
            "verity" if text == "off" => {}
            "verity" => {
                return Err(not_supported(
                    name,
                    "digests of metacopy files are not checked",
                ));
            }
            "uidmapping" => self.ids.uids = mapping::parse(name, &text)?,
            "gidmapping" => self.ids.gids = mapping::parse(name, &text)?,
            "squash_to_uid" => {
                self.ids.squash_uid = Some(text.parse().map_err(|_| wrong("a user id"))?);
            }
            "squash_to_gid" => {
                self.ids.squash_gid = Some(text.parse().map_err(|_| wrong("a group id"))?);
            }
            "xattr_permissions" => {
                self.override_stat = match &*text {
                    "0" => OverrideStat::Off,
                    "1" => OverrideStat::Privileged,
                    "2" => OverrideStat::User,
                    _ => return Err(wrong("0, 1 or 2")),
                };
            }
            "fsync" => self.fsync = Some(one_zero(&text).ok_or_else(|| wrong("0 or 1"))?),
            "noxattrs" => self.no_xattrs = one_zero(&text).ok_or_else(|| wrong("0 or 1"))?,
            "writeback" => self.writeback = Some(one_zero(&text).ok_or_else(|| wrong("0 or 1"))?),
            "timeout" | "attr_timeout" | "entry_timeout" | "negative_timeout" => {
                let limit = seconds(&text).ok_or_else(|| wrong("a number of seconds"))?;
                // There is one limit for all, which none of those given may exceed.
                self.timeout = Some(self.timeout.map_or(limit, |other| other.min(limit)));
            }
            "passthrough" => {
                self.passthrough = Some(on_off(&text).ok_or_else(|| wrong("on or off"))?);
            }
            "supervise" => {
                self.supervise = on_off(&text).ok_or_else(|| wrong("on or off"))?;
            }
            "passthrough_lower" => {
                self.passthrough_lower = Some(match &*text {
                    "auto" => PassthroughLower::Auto,
                    "always" => PassthroughLower::Always,
                    "never" => PassthroughLower::Never,
                    _ => return Err(wrong("auto, always or never")),
                });
            }
            "sandbox" => self.sandbox = on_off(&text).ok_or_else(|| wrong("on or off"))?,
            "busy_poll" => {
                let limit = micros(&text).filter(|limit| *limit <= MOST_BUSY_POLL);
                self.busy_poll = Some(limit.ok_or_else(|| wrong("microseconds, at most 1000"))?);
            }
            "layer_index" => {
                self.layer_index = match &*text {
                    "on" => LayerIndex::Stored,
                    "off" => LayerIndex::Off,
                    "build" => LayerIndex::Built,
                    _ => return Err(wrong("on, off or build")),
                };
            }
            _ if WITHOUT_EFFECT.contains(&name)
                || name.starts_with("x-")
                || name.starts_with("X-") => {}
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    /// The layers of `lowerdir`: a colon between those that are merged, two before each that is data-only.
    fn add_lowers(&mut self, raw: &[u8]) -> Result<(), OptionError> {
        let mut data_only = false;
        let mut parts = split(raw, b':').into_iter();
        while let Some(part) = parts.next() {
            if part.is_empty() && !self.lowers.is_empty() {
                let layer = path("lowerdir", parts.next().unwrap_or_default())?;
                self.data_layers.push(layer);
                data_only = true;
            } else if data_only {
                return Err(OptionError::Value {
                    name: "lowerdir".to_owned(),
                    value: String::from_utf8_lossy(raw).into_owned(),
                    expected: "two colons before each layer that follows a data-only one",
                });
            } else {
                self.lowers.push(path("lowerdir", part)?);
            }
        }
        Ok(())
    }

    /// Options that cannot both be meant.
    fn check(&self) -> Result<(), OptionError> {
        let conflict = |a, b| Err(OptionError::Conflict(a, b));
        if self.upper.is_some() && self.work.is_none() {
            return Err(OptionError::Needs("upperdir", "workdir"));
        }
        if self.work.is_some() && self.upper.is_none() {
            return Err(OptionError::Needs("workdir", "upperdir"));
        }
        if self.volatile && self.fsync == Some(true) {
            return conflict("volatile", "fsync=1");
        }
        if self.allow_other && self.allow_root {
            return conflict("allow_other", "allow_root");
        }
        if !self.data_layers.is_empty() {
            if self.metacopy == Some(false) {
                return conflict("metacopy=off", "data-only layers");
            }
            if self.redirect_dir == Some(RedirectDir::NoFollow) {
                return conflict("redirect_dir=nofollow", "data-only layers");
            }
        }
        // Where a metacopy file is renamed its data is found by a redirect.
        if self.metacopy == Some(true) {
            match self.redirect_dir {
                Some(RedirectDir::Follow) => return conflict("metacopy=on", "redirect_dir=off"),
                Some(RedirectDir::NoFollow) => {
                    return conflict("metacopy=on", "redirect_dir=nofollow");
                }
                Some(RedirectDir::On) | None => {}
            }
        }
        if self.partial == Some(Partial::Off) && matches!(self.complete, Some(Complete::After(_))) {
            return conflict("partial=off", "complete");
        }
        if self.passthrough == Some(true) && self.writeback == Some(true) {
            return conflict("passthrough=on", "writeback=1");
        }
        if self.passthrough == Some(false)
            && matches!(self.passthrough_lower, Some(PassthroughLower::Always))
        {
            return conflict("passthrough=off", "passthrough_lower=always");
        }
        if self.squash_to_root && (self.ids.squash_uid, self.ids.squash_gid) != (Some(0), Some(0)) {
            return conflict("squash_to_root", "squash_to_uid or squash_to_gid");
        }
        if self.ids.squash_uid.is_some() && !self.ids.uids.is_empty() {
            return conflict("squash_to_uid", "uidmapping");
        }
        if self.ids.squash_gid.is_some() && !self.ids.gids.is_empty() {
            return conflict("squash_to_gid", "gidmapping");
        }
        Ok(())
    }

    /// `ro`.
    pub fn read_only(&self) -> bool {
        self.flags.contains(MountFlags::RDONLY)
    }
}

#[cfg(test)]
mod tests;
