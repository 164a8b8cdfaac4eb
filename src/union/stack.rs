//! The stack of layers, and the lookup of one name through it.
//!
//! The rules are those of the kernel's overlayfs (Documentation/filesystems/overlayfs.rst): whiteouts and opaque
//! directories end the search, a redirect continues it elsewhere, a metacopy file takes its data from further below.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use super::error::{Error, Result};
use super::inode::{LowerRef, Lowers, UpperPart};
use crate::layer::format::PartialRecord;
use crate::layer::upper::Upper;
use crate::layer::{Layer, LayerLookup, Marks, Node, Opaque, Stat};
use crate::sys::sync::RwLock;

/// Bits of an inode number that are the real one; the filesystem's number lies above.
const INO_BITS: u32 = 48;

/// The layers of a union.
#[derive(Debug)]
pub(crate) struct Stack {
    /// Topmost first. Immutable.
    pub lowers: Vec<Arc<dyn Layer>>,
    /// Where the data-only layers begin in `lowers`. Immutable.
    data_from: usize,
    /// Immutable.
    pub upper: Option<Arc<Upper>>,
    /// Redirects are followed. Immutable.
    pub follow: bool,
    /// Device numbers in the order they were met; a leaf lock. The upper's is first, then the layers' in order,
    /// so that inode numbers are the same at each mount of the same layers.
    devices: RwLock<Vec<u64>>,
    /// Inode numbers for real ones that do not fit; a leaf lock.
    odd: RwLock<HashMap<(u64, u64), u64>>,
}

/// The directory that a name is looked up in.
#[derive(Clone, Debug)]
pub(crate) struct DirParts {
    pub upper: Option<UpperPart>,
    pub lowers: Lowers,
}

/// What the stack has under one name.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    /// The upper's part.
    pub upper: Option<ResolvedUpper>,
    /// The lower parts, topmost first.
    pub lowers: Lowers,
    /// Attributes of the topmost lower part.
    pub lower_stat: Option<Stat>,
    /// The upper's part is a metacopy: its data is the last of `lowers`.
    pub metacopy: bool,
}

/// The upper's part of a [`Resolved`].
#[derive(Clone, Debug)]
pub(crate) struct ResolvedUpper {
    pub node: Node,
    pub stat: Stat,
    pub marks: Marks,
}

impl Resolved {
    /// The attributes that count.
    pub(crate) fn stat(&self) -> Option<&Stat> {
        self.upper
            .as_ref()
            .map(|u| &u.stat)
            .or(self.lower_stat.as_ref())
    }
}

/// Where the search in the lower layers goes on: a name below the parent, or a path from each layer's root.
#[derive(Clone, Debug)]
enum Target {
    Name(OsString),
    Path(Vec<OsString>),
}

impl Target {
    /// Applies a redirect found on the element at `at` of the target (the last for `Name`).
    fn redirected(&self, at: usize, redirect: &OsStr) -> Result<Target> {
        let bytes = redirect.as_bytes();
        if let Some(path) = bytes.strip_prefix(b"/") {
            let mut parts = split(path)?;
            if let Target::Path(old) = self {
                parts.extend(old[at + 1..].iter().cloned());
            }
            return Ok(Target::Path(parts));
        }
        check_component(bytes)?;
        let name = OsString::from_vec(bytes.to_vec());
        Ok(match self {
            Target::Name(_) => Target::Name(name),
            Target::Path(old) => {
                let mut parts = old.clone();
                parts[at] = name;
                Target::Path(parts)
            }
        })
    }
}

/// A layer is not trusted to name a path outside the stack: each element is one plain name.
fn check_component(name: &[u8]) -> Result<()> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0)
    {
        return Err(Error::Corrupt(format!(
            "redirect with the element {:?}",
            OsStr::from_bytes(name)
        )));
    }
    Ok(())
}

fn split(path: &[u8]) -> Result<Vec<OsString>> {
    path.split(|&b| b == b'/')
        .filter(|part| !part.is_empty())
        .map(|part| {
            check_component(part)?;
            Ok(OsStr::from_bytes(part).to_owned())
        })
        .collect()
}

/// The search for the data of a metacopy file.
struct DataSearch {
    /// The last file that was found has none of its own.
    wanted: bool,
    /// Where the data-only layers may have it: what that file's own redirect says, where it is absolute.
    path: Option<Vec<OsString>>,
}

/// What one layer answered for a whole target.
enum Step {
    Missing,
    /// A whiteout or a file stands in the way: no layer below is asked.
    Stop,
    Found(Box<StepFound>),
}

struct StepFound {
    node: Node,
    stat: Stat,
    marks: Marks,
    /// This layer's part ends the search.
    last: bool,
}

impl Stack {
    pub(crate) fn new(
        lowers: Vec<Arc<dyn Layer>>,
        upper: Option<Arc<Upper>>,
        follow: bool,
        data_layers: usize,
    ) -> Stack {
        let mut devices: Vec<u64> = Vec::new();
        let all = upper
            .iter()
            .map(|u| u.dev())
            .chain(lowers.iter().map(|l| l.dev()));
        for dev in all {
            if !devices.contains(&dev) {
                devices.push(dev);
            }
        }
        Stack {
            data_from: lowers.len().saturating_sub(data_layers),
            lowers,
            upper,
            follow,
            devices: RwLock::new(devices),
            odd: RwLock::default(),
        }
    }

    pub(crate) fn lower(&self, at: &LowerRef) -> &Arc<dyn Layer> {
        &self.lowers[at.layer as usize]
    }

    /// The inode number in the union of a real one. `dynamic` gives a fresh number where the real one does not fit.
    pub(crate) fn ino(&self, dev: u64, real: u64, dynamic: impl FnOnce() -> u64) -> u64 {
        let known = self.devices.read().iter().position(|&d| d == dev);
        let number = known.unwrap_or_else(|| {
            let mut devices = self.devices.write();
            devices.iter().position(|&d| d == dev).unwrap_or_else(|| {
                devices.push(dev);
                devices.len() - 1
            })
        }) as u64;
        // 0 is no inode, 1 is FUSE's root.
        if real > 1 && real >> INO_BITS == 0 && number < 0x7e00 {
            return number << INO_BITS | real;
        }
        if let Some(&ino) = self.odd.read().get(&(dev, real)) {
            return ino;
        }
        *self.odd.write().entry((dev, real)).or_insert_with(dynamic)
    }

    /// The parts of the union's root.
    pub(crate) fn root(&self) -> Result<Resolved> {
        let upper = match &self.upper {
            Some(upper) => {
                let node = upper.root();
                let stat = upper.stat(&node)?;
                let marks = upper.marks(&node, &stat)?;
                Some(ResolvedUpper { node, stat, marks })
            }
            None => None,
        };
        let mut lowers = Lowers::new();
        let mut lower_stat = None;
        let opaque = upper
            .as_ref()
            .is_some_and(|u| u.marks.opaque == Opaque::Yes);
        for (i, layer) in self.lowers.iter().enumerate().take(self.data_from) {
            if opaque {
                break;
            }
            let node = layer.root();
            let stat = layer.stat(&node)?;
            let marks = layer.marks(&node, &stat)?;
            lower_stat.get_or_insert(stat);
            lowers.push(LowerRef {
                layer: i as u16,
                node,
                xwhiteouts: marks.opaque == Opaque::XWhiteouts,
            });
            if marks.opaque == Opaque::Yes {
                break;
            }
        }
        Ok(Resolved {
            upper,
            lowers,
            lower_stat,
            metacopy: false,
        })
    }

    /// What stands under `name` in a directory with these parts. `from`: the position of the topmost lower part that may
    /// have the name, where a listing has told; `skip_upper`: the listing told that the upper has no entry.
    pub(crate) fn resolve(
        &self,
        dir: &DirParts,
        name: &OsStr,
        skip_upper: bool,
        from: Option<usize>,
    ) -> Result<Option<Resolved>> {
        let mut target = Target::Name(name.to_owned());
        let mut out = Resolved {
            upper: None,
            lowers: Lowers::new(),
            lower_stat: None,
            metacopy: false,
        };
        let mut want_data = false;
        let mut from = from;
        if let (Some(part), Some(upper), false) = (&dir.upper, &self.upper, skip_upper) {
            match upper.lookup(&part.node, name, part.xwhiteouts)? {
                LayerLookup::Missing => {}
                LayerLookup::Whiteout => return Ok(None),
                LayerLookup::Found(found) => {
                    let marks = upper.marks(&found.node, &found.stat)?;
                    let is_dir = found.stat.is_dir();
                    want_data = found.stat.is_file() && marks.metacopy;
                    let stop = if is_dir {
                        marks.opaque == Opaque::Yes || found.beside_whiteout
                    } else {
                        !want_data
                    };
                    let partial = marks.partial.as_deref().filter(|_| want_data);
                    // A record that cannot be read leads nowhere.
                    let record = partial.map(|p| PartialRecord::decode(p).ok());
                    let redirect = marks.redirect.clone();
                    out.metacopy = want_data;
                    out.upper = Some(ResolvedUpper {
                        node: found.node,
                        stat: found.stat,
                        marks,
                    });
                    if stop {
                        return Ok(Some(out));
                    }
                    if let Some(record) = record {
                        let Some(record) = record else {
                            return Ok(Some(out));
                        };
                        target = Target::Path(split(record.path.as_bytes())?);
                        from = None;
                    } else if let Some(redirect) = redirect {
                        self.check_follow(&redirect)?;
                        target = target.redirected(0, &redirect)?;
                        // The listing spoke of the name, not of where it points.
                        from = None;
                    }
                }
            }
        }
        self.resolve_lowers(dir, target, from, want_data, &mut out)?;
        let is_partial = (out.upper.as_ref()).is_some_and(|u| u.marks.partial.is_some());
        if out.metacopy && out.lowers.is_empty() && !is_partial {
            return Err(Error::Corrupt(format!(
                "the data of the metacopy file {name:?} is in no lower layer"
            )));
        }
        Ok((out.upper.is_some() || !out.lowers.is_empty()).then_some(out))
    }

    fn check_follow(&self, redirect: &OsStr) -> Result<()> {
        if self.follow {
            return Ok(());
        }
        // As the kernel with redirect_dir=nofollow.
        log::warn!("refusing to follow the redirect to {redirect:?}");
        Err(Error::Errno(libc::EPERM))
    }

    fn resolve_lowers(
        &self,
        dir: &DirParts,
        target: Target,
        from: Option<usize>,
        want_data: bool,
        out: &mut Resolved,
    ) -> Result<()> {
        let mut search = DataSearch {
            wanted: want_data,
            path: None,
        };
        self.walk_lowers(dir, target, from, &mut search, out)?;
        let Some(last) = out.lowers.last().filter(|_| search.wanted) else {
            return Ok(());
        };
        if let Some(path) = &search.path
            && let Some(data) = self.find_data(path)?
        {
            out.lowers.push(data);
            return Ok(());
        }
        // Its own bytes are none.
        Err(Error::Corrupt(format!(
            "the data of a metacopy file of the layer {} is in no layer below it",
            self.lower(last).describe()
        )))
    }

    /// The first file that the data-only layers have at a path; whiteouts and marks mean nothing there.
    fn find_data(&self, path: &[OsString]) -> Result<Option<LowerRef>> {
        let layers = self.lowers.iter().enumerate().skip(self.data_from);
        'layers: for (index, layer) in layers {
            let mut node = layer.root();
            let mut is_file = false;
            for part in path {
                let LayerLookup::Found(found) = layer.lookup(&node, part, false)? else {
                    continue 'layers;
                };
                node = found.node;
                is_file = found.stat.is_file();
            }
            if is_file {
                return Ok(Some(LowerRef {
                    layer: index as u16,
                    node,
                    xwhiteouts: false,
                }));
            }
        }
        Ok(None)
    }

    fn walk_lowers(
        &self,
        dir: &DirParts,
        mut target: Target,
        from: Option<usize>,
        search: &mut DataSearch,
        out: &mut Resolved,
    ) -> Result<()> {
        let is_dir_above = out.upper.as_ref().is_some_and(|u| u.stat.is_dir());
        let mut from_root = matches!(target, Target::Path(_));
        let mut at = if from_root { 0 } else { from.unwrap_or(0) };
        loop {
            let len = if from_root {
                self.data_from
            } else {
                dir.lowers.len()
            };
            if at >= len {
                return Ok(());
            }
            let (index, node, xwhiteouts) = if from_root {
                (at as u16, self.lowers[at].root(), false)
            } else {
                let part = &dir.lowers[at];
                (part.layer, part.node.clone(), part.xwhiteouts)
            };
            at += 1;
            let before = target.clone();
            let step = self.step(index, node, xwhiteouts, &mut target)?;
            if let Step::Found(found) = step {
                let StepFound {
                    node,
                    stat,
                    marks,
                    mut last,
                } = *found;
                let dir_so_far = is_dir_above
                    || (out.upper.is_none() && !out.lowers.is_empty() && !search.wanted);
                if stat.is_dir() {
                    // A directory below a file is hidden by it; a metacopy's data is no directory.
                    if search.wanted {
                        return Ok(());
                    }
                } else if dir_so_far {
                    // A file below a directory ends the merge.
                    return Ok(());
                } else {
                    if search.wanted && !stat.is_file() {
                        return Ok(());
                    }
                    search.wanted = stat.is_file() && marks.metacopy;
                    search.path = None;
                    if search.wanted && marks.partial.is_some() {
                        return Err(Error::Corrupt(format!(
                            "a file of the layer {} was copied up partially: complete it first, by acetate complete \
                             on a mount that has the layer as its upper",
                            self.lowers[index as usize].describe()
                        )));
                    }
                    out.metacopy |= search.wanted;
                    last = !search.wanted;
                }
                out.lower_stat.get_or_insert(stat);
                out.lowers.push(LowerRef {
                    layer: index,
                    node,
                    xwhiteouts: marks.opaque == Opaque::XWhiteouts,
                });
                if last {
                    return Ok(());
                }
                if let Some(redirect) = &marks.redirect {
                    self.check_follow(redirect)?;
                    if search.wanted
                        && let Some(path) = redirect.as_bytes().strip_prefix(b"/")
                    {
                        search.path = Some(split(path)?);
                    }
                    let end = match &target {
                        Target::Name(_) => 0,
                        Target::Path(parts) => parts.len().saturating_sub(1),
                    };
                    target = target.redirected(end, redirect)?;
                }
            } else if matches!(step, Step::Stop) {
                return Ok(());
            }
            if !from_root && matches!(target, Target::Path(_)) && matches!(before, Target::Name(_))
            {
                // Only layers below the one that holds the redirect are meant by it.
                from_root = true;
                at = index as usize + 1;
            }
        }
    }

    /// Looks a whole target up in one layer. Redirects met on the way change the target for the layers below.
    fn step(&self, index: u16, dir: Node, xwhiteouts: bool, target: &mut Target) -> Result<Step> {
        let layer = &self.lowers[index as usize];
        let parts: Vec<OsString> = match target {
            Target::Name(name) => vec![name.clone()],
            Target::Path(parts) => parts.clone(),
        };
        let mut dir = dir;
        let mut xwhiteouts = xwhiteouts;
        let mut stop_below = false;
        let mut renamed = target.clone();
        // Elements put in front by an absolute redirect shift the rest of the path.
        let mut shift = 0isize;
        for (i, part) in parts.iter().enumerate() {
            let is_last = i + 1 == parts.len();
            match layer.lookup(&dir, part, xwhiteouts)? {
                LayerLookup::Missing if stop_below => return Ok(Step::Stop),
                LayerLookup::Missing => {
                    *target = renamed;
                    return Ok(Step::Missing);
                }
                LayerLookup::Whiteout => return Ok(Step::Stop),
                LayerLookup::Found(found) => {
                    let marks = if found.stat.is_dir() || (is_last && found.stat.is_file()) {
                        layer.marks(&found.node, &found.stat)?
                    } else {
                        Marks::default()
                    };
                    let opaque = found.stat.is_dir()
                        && (marks.opaque == Opaque::Yes || found.beside_whiteout);
                    if is_last {
                        *target = renamed;
                        return Ok(Step::Found(Box::new(StepFound {
                            node: found.node,
                            stat: found.stat,
                            last: opaque || stop_below,
                            marks,
                        })));
                    }
                    if !found.stat.is_dir() {
                        return Ok(Step::Stop);
                    }
                    stop_below |= opaque;
                    if let Some(redirect) = &marks.redirect {
                        self.check_follow(redirect)?;
                        let at = (i as isize + shift).max(0) as usize;
                        renamed = renamed.redirected(at, redirect)?;
                        if let Target::Path(new) = &renamed {
                            shift = new.len() as isize - parts.len() as isize;
                        }
                    }
                    xwhiteouts = marks.opaque == Opaque::XWhiteouts;
                    dir = found.node;
                }
            }
        }
        Err(Error::Corrupt("redirect to the root".into()))
    }

    /// Attributes of the data that the lower layers have at a path from their roots.
    pub(crate) fn data_at(&self, path: &OsStr) -> Result<Option<Stat>> {
        let mut out = Resolved {
            upper: None,
            lowers: Lowers::new(),
            lower_stat: None,
            metacopy: false,
        };
        let nowhere = DirParts {
            upper: None,
            lowers: Lowers::new(),
        };
        let target = Target::Path(split(path.as_bytes())?);
        self.resolve_lowers(&nowhere, target, None, true, &mut out)?;
        match out.lowers.last() {
            Some(data) => Ok(Some(self.lower(data).stat(&data.node)?)),
            None => Ok(None),
        }
    }

    /// Whether any lower part of a directory has this name, so that hiding it takes a whiteout.
    pub(crate) fn lowers_have(&self, dir: &DirParts, name: &OsStr) -> Result<bool> {
        for part in &dir.lowers {
            match self.lower(part).lookup(&part.node, name, part.xwhiteouts)? {
                LayerLookup::Missing => {}
                LayerLookup::Whiteout => return Ok(false),
                LayerLookup::Found(_) => return Ok(true),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(parts: &[&str]) -> Vec<OsString> {
        parts.iter().map(OsString::from).collect()
    }

    #[test]
    fn redirects_replace_what_they_stand_on() {
        let name = Target::Name("a".into());
        assert!(
            matches!(name.redirected(0, OsStr::new("b")).unwrap(), Target::Name(n) if n == "b")
        );
        let abs = name.redirected(0, OsStr::new("/x/y")).unwrap();
        assert!(matches!(&abs, Target::Path(p) if *p == path(&["x", "y"])));
        let mid = Target::Path(path(&["p", "q", "r"]));
        let rel = mid.redirected(1, OsStr::new("z")).unwrap();
        assert!(matches!(&rel, Target::Path(p) if *p == path(&["p", "z", "r"])));
        let mid = mid.redirected(1, OsStr::new("/n/m/o")).unwrap();
        assert!(matches!(&mid, Target::Path(p) if *p == path(&["n", "m", "o", "r"])));
    }

    #[test]
    fn redirects_cannot_lead_out() {
        let name = Target::Name("a".into());
        for bad in ["..", "/x/../..", "/./x", ".", "", "a/b"] {
            assert!(name.redirected(0, OsStr::new(bad)).is_err(), "{bad:?}");
        }
    }
}
