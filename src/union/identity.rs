//! Who the file is that a name was found to be.

use std::sync::atomic::Ordering;

use super::Union;
use super::error::{Error, Result};
use super::inode::{Indexed, NlinkBase};
use super::stack::{Resolved, ResolvedUpper};
use crate::layer::{Layer, Stat};

/// Who an inode is.
pub(super) struct Identity {
    pub ino: u64,
    pub indexed: Option<Indexed>,
    /// A lower file of several names that a copy-up would part: each of them is a file from the beginning, as with the kernel's
    /// overlayfs, lest a change by one name goes to another.
    pub apart: bool,
}

impl Identity {
    /// A file without an index entry, whose names are one file.
    fn plain(ino: u64) -> Identity {
        Identity {
            ino,
            indexed: None,
            apart: false,
        }
    }
}

impl Union {
    /// Which inode number the found parts have: a copied-up file keeps its lower's.
    pub(super) fn identify(&self, resolved: &mut Resolved) -> Result<Identity> {
        let lower_ino = resolved
            .lower_stat
            .map(|s| self.stack.ino(s.dev, s.ino, || self.table.dynamic_ino()));
        let Some(upper) = &resolved.upper else {
            let (Some(ino), Some(stat)) = (lower_ino, resolved.lower_stat) else {
                return Err(Error::Corrupt("a name that is in no layer".into()));
            };
            if stat.is_dir() || stat.nlink <= 1 || self.stack.upper.is_none() {
                return Ok(Identity::plain(ino));
            }
            self.met_links.store(true, Ordering::Relaxed);
            if !self.params.index {
                return Ok(Identity {
                    apart: true,
                    ..Identity::plain(ino)
                });
            }
            return self.identify_linked(resolved, ino, &stat);
        };
        if upper.stat.is_dir() {
            return Ok(Identity::plain(
                lower_ino.unwrap_or_else(|| self.upper_number(upper.stat.ino)),
            ));
        }
        if let Some(identity) = self.identify_by_origin(upper)? {
            return Ok(identity);
        }
        Ok(Identity::plain(self.upper_number(upper.stat.ino)))
    }

    /// A lower file with several names: the index tells whether it was copied up under another.
    fn identify_linked(&self, resolved: &mut Resolved, ino: u64, stat: &Stat) -> Result<Identity> {
        let plain = Identity::plain(ino);
        let (Some(upper), Some(lower)) = (&self.stack.upper, resolved.lowers.first()) else {
            return Ok(plain);
        };
        let Some(handle) = self.stack.lower(lower).handle(&lower.node)? else {
            // There is nothing to find its entry by.
            return Ok(Identity {
                apart: true,
                ..plain
            });
        };
        if upper.index_is_empty() {
            return Ok(plain);
        }
        let Some((node, upper_stat)) = upper.index_lookup(&handle)? else {
            return Ok(plain);
        };
        let marks = upper.marks(&node, &upper_stat)?;
        let nlink = marks
            .nlink
            .as_deref()
            .and_then(NlinkBase::parse)
            .unwrap_or(NlinkBase::Lower(0));
        let metacopy = marks.metacopy;
        if !metacopy {
            resolved.lowers.clear();
        }
        resolved.metacopy = metacopy;
        resolved.upper = Some(ResolvedUpper {
            node,
            stat: upper_stat,
            marks,
        });
        Ok(Identity {
            indexed: Some(Indexed {
                handle,
                lower_nlink: Some(stat.nlink),
                nlink,
            }),
            ..plain
        })
    }

    fn identify_by_origin(&self, part: &ResolvedUpper) -> Result<Option<Identity>> {
        let (Some(upper), Some(origin)) = (&self.stack.upper, &part.marks.origin) else {
            return Ok(None);
        };
        let in_index = match upper.index_lookup(origin)? {
            Some((_, stat)) if stat.ino == part.stat.ino => true,
            // The index says that another file is the copy.
            Some(_) => return Ok(None),
            None => false,
        };
        let Some((dev, real, nlink)) = self.origin_number(origin)? else {
            return Ok(None);
        };
        if nlink.is_some_and(|nlink| nlink > 1) && !in_index {
            return Ok(None);
        }
        let indexed = in_index.then(|| Indexed {
            handle: origin.clone(),
            lower_nlink: nlink,
            nlink: part
                .marks
                .nlink
                .as_deref()
                .and_then(NlinkBase::parse)
                .unwrap_or(NlinkBase::Lower(0)),
        });
        let ino = self.stack.ino(dev, real, || self.table.dynamic_ino());
        Ok(Some(Identity {
            indexed,
            ..Identity::plain(ino)
        }))
    }

    /// Device and inode number of the lower that an origin names, and its link count where that is known.
    pub(crate) fn origin_number(
        &self,
        origin: &crate::layer::OverlayHandle,
    ) -> Result<Option<(u64, u64, Option<u64>)>> {
        let mut asked: Vec<u64> = Vec::new();
        for layer in &self.stack.lowers {
            if asked.contains(&layer.dev()) {
                continue;
            }
            asked.push(layer.dev());
            if let Some(stat) = layer.stat_by_handle(origin)? {
                return Ok(Some((stat.dev, stat.ino, Some(stat.nlink))));
            }
            // Without the right to open by handle, the handle itself still tells the number. A file of several names is
            // then known by its index entry alone.
            if let Some(ino) = layer.ino_of_handle(origin) {
                return Ok(Some((layer.dev(), ino, None)));
            }
        }
        Ok(None)
    }

    pub(super) fn upper_number(&self, real: u64) -> u64 {
        let dev = self.stack.upper.as_ref().map_or(0, |u| u.dev());
        self.stack.ino(dev, real, || self.table.dynamic_ino())
    }
}
